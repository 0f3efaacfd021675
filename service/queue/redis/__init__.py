"""The queue in Redis: a small Lua library that keeps the contract, and the two interfaces over it in Python."""
