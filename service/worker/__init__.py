"""The worker process: claims requests, steps an engine, sends what it makes to the queue."""
