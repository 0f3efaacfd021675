"""The two rules that every queue keeps: the order of claims, and what becomes of requests that kill workers.

The local queue has them in Python (`local/fair_line.py`, `local/suspects.py`), the Redis queue in Lua
(`redis/lines.lua`, `redis/claims.lua`); tests/contracts holds both to the same tests. The constants stand here once.

Order: who is next
------------------

1. A *line* is what waits for one revision of one model, in one priority. A worker claims from the lines that it serves.
2. In a line, tenants take turns by start-time fair queueing. Each tenant has a tag: the start tag of its next request
   while it waits, else its finish tag. The tenant with the least start tag is next (among equal ones the first by
   name), with its oldest request.
3. A tenant that begins to wait starts at the line's virtual time, or at its own finish tag where that is later. When it
   is served, its start tag becomes the virtual time, and its tag grows by the request's cost. A request that ends
   without being served costs nothing.
4. A line where nobody waits forgets its virtual time and all tags: everyone starts at 0 again.
5. Between lines, the request is next that was submitted first, after `PATIENCE_S` of its priority is added to its time
   (among equal ones the first to arrive). So a bulk request waits at most that much longer than a high one.
6. A request that is taken back from a worker keeps its arrival number and time: it waits in front of what its tenant
   sent later. When it is claimed again, it costs again.

So of two tenants that wait all the time, neither gets ahead of the other by more than the cost of one request of each.

Source: Goyal, Vin, Cheng, *Start-time Fair Queueing*, SIGCOMM 1996.

Suspects: a request that kills its workers must not kill them all, nor end those in one batch with it
------------------------------------------------------------------------------------------------------

1. A request's *attempts* are the workers that died with it, by proof. A lease that ran out proves nothing: the worker
   may have slept. Nor does a GAP: the log may have lost its tail. A worker that hands a request back is alive.
2. A request without attempts is ordinary, and the order above tells its turn. One with an attempt is a *suspect*. It
   waits among the suspects of its model's revision, the oldest first, and is claimed before ordinary ones. At most a
   quarter of what a worker holds and claims may be suspects, but always one: so few others die with a poisonous one.
3. A suspect with one attempt left has its *last chance*, and runs alone. The first worker of its model that asks is
   reserved: it gets nothing more until it is empty and takes the last chance, and nothing else while it holds it. If
   the worker dies then, this request was the cause. A model's revision has one reserved worker at a time. The
   reservation ends when the worker is gone or claims no more, and when a last chance of this revision is taken or ends.
4. A suspect that has made `CLEARED_AFTER` tokens with one worker is ordinary again, without attempts. What kills
   workers kills them where it did before: at most a few tokens later, those that were never logged. So after a death
   the innocent wait for one another only for moments.
5. With `max_attempts` a request is *dead*. It ends in an error and its prompt is forgotten at once. What else is known
   of the last `MAX_DEAD` is kept for whoever looks into them.

So a worker that asks gets: nothing while it holds a last chance; else the last chance that waits, as rule 3 says; else
suspects within the quota; then ordinary requests.
"""

from service.protocol import Priority

PATIENCE_S: dict[Priority, float] = {"high": 0.0, "normal": 5.0, "bulk": 60.0}
"""Seconds for which a request lets those of the highest priority pass that came later."""
CLEARED_AFTER = 32
"""Tokens after which a suspect is ordinary again; more than a worker gathers before it sends them."""
MAX_DEAD = 1000
"""Dead requests of which something is kept."""
QUARANTINE_ERROR = " workers died with this request: it is given up"
"""What the client of a dead request is told, after the number of workers."""
