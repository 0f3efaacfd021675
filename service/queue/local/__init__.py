"""The queue in the gateway's process, and the way of workers to it."""
