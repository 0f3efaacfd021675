"""Requests on their way to a worker, and tokens on their way back: one contract, two backends."""
