"""Follows token logs: what a watcher has not seen yet of its requests."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from service.protocol import Update
from service.queue.local.entry import Entry


async def watch(entries: Sequence[Entry]) -> AsyncIterator[list[Update]]:
    """Yield the logs of `entries` from their first tokens, then together what is added to any, up to the last end."""
    changed = asyncio.Event()
    readers = [_Reader(entry) for entry in entries]
    for entry in entries:
        entry.watchers.add(changed)
    try:
        while readers:
            changed.clear()
            updates = [update for reader in readers if (update := reader.read()) is not None]
            if updates:
                readers = [reader for reader in readers if not reader.has_ended]
                yield updates
            else:
                await changed.wait()
    finally:
        for entry in entries:
            entry.watchers.discard(changed)


class _Reader:
    """A place in one log."""

    def __init__(self, entry: Entry) -> None:
        self.has_ended = False
        self._entry = entry
        self._num_read = 0
        self._knows_prompt = False

    def read(self) -> Update | None:
        """Return what is new; None if nothing is."""
        entry, base = self._entry, self._num_read
        prompt_logprobs = () if self._knows_prompt else entry.prompt_logprobs
        if len(entry.log) == base and entry.end is None and not prompt_logprobs:
            return None
        self._num_read = len(entry.log)
        self._knows_prompt |= bool(prompt_logprobs)
        self.has_ended = entry.end is not None
        return Update(
            id=entry.request.id,
            base=base,
            token_ids=tuple(entry.log[base:]),
            end=entry.end,
            logprobs=tuple(entry.logprobs[base:]),
            prompt_logprobs=prompt_logprobs,
            queued_s=entry.queued_s or 0.0,
        )
