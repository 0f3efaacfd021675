"""The order in which waiting requests are claimed. The local queue runs this code; the Redis library keeps the same rule.

1. A *line* is what waits for one revision of one model, in one priority. A worker claims from the lines it serves.
2. In a line, tenants take turns by start-time fair queueing: the tenant whose next request has the least start tag is
   next, with its oldest request. A start tag is the later of the line's virtual time (the start tag served last) and
   the tenant's own finish tag; a finish tag is a start tag plus the request's cost.
3. Between lines the one is next whose next request was submitted first, with `PATIENCE_S` of its priority added: a bulk
   request waits at most so much longer than a high one, and never for ever.

Source: Goyal, Vin, Cheng, *Start-time Fair Queueing*, SIGCOMM 1996.
"""

from service.protocol import Priority

PATIENCE_S: dict[Priority, float] = {"high": 0.0, "normal": 5.0, "bulk": 60.0}
"""Seconds for which a request lets those of the highest priority pass that came later."""
