"""Continuous batching over paged keys and values. Synchronous, no I/O; knows neither HTTP nor Redis."""
