"""The queue in Redis: a small Lua library that keeps the contract, and its two faces in Python."""
