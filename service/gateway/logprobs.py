"""Log-probabilities as an answer tells them: lists side by side, one entry for each token."""

from collections.abc import Iterable, Sequence

import msgspec

from service.protocol import TokenLogprobs


class Logprobs(msgspec.Struct):
    """How likely each token was before it came, in nats; a prompt's first token, which nothing precedes, has null."""

    token_ids: list[int] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[tuple[tuple[int, float], ...] | None] = []
    """For each place the likeliest ids, likeliest first."""

    def add(self, entries: Iterable[TokenLogprobs]) -> None:
        """Append what is told of some tokens."""
        for entry in entries:
            self.token_ids.append(entry.token_id)
            self.token_logprobs.append(entry.logprob)
            self.top_logprobs.append(entry.top)

    def add_first(self, token_ids: Sequence[int]) -> None:
        """Append the first token of a prompt; none, if the prompt is no longer kept."""
        for token_id in token_ids[:1]:
            self.token_ids.append(token_id)
            self.token_logprobs.append(None)
            self.top_logprobs.append(None)

    def extend(self, other: "Logprobs") -> None:
        """Append what follows."""
        self.token_ids += other.token_ids
        self.token_logprobs += other.token_logprobs
        self.top_logprobs += other.top_logprobs
