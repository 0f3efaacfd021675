"""Nothing that a step makes is lost or sent twice, and what a client waits for does not wait."""

from typing import NamedTuple

from service.protocol import End, TokenLogprobs
from service.worker.unsent import UnsentOutput


class Output(NamedTuple):
    token_ids: tuple[int, ...]
    end: End | None = None
    id: str = "a"
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


def entry(token_id: int) -> TokenLogprobs:
    return TokenLogprobs(token_id=token_id, logprob=-1.0)


def test_first_tokens_and_ends_are_urgent_and_what_comes_between_is_not():
    held = UnsentOutput(epoch=3, num_sent=7)
    assert not held.is_urgent
    held.emit("a")  # empty: asks whether it is still wanted
    held.add(Output((1,)))
    assert held.is_urgent
    held.emit("a")
    held.add(Output((2,)))
    assert not held.is_urgent
    held.add(Output((), End(finish_reason="stop")))
    assert held.is_urgent


def test_what_gathered_is_sent_once_from_where_the_log_ends():
    held = UnsentOutput(epoch=3, num_sent=7)
    held.add(Output((1,), logprobs=(entry(1),), prompt_logprobs=(entry(9),)))
    held.add(Output((2, 3), logprobs=(entry(2), entry(3))))
    emission = held.emit("a")
    assert (emission.id, emission.epoch, emission.base, emission.token_ids) == ("a", 3, 7, (1, 2, 3))
    assert emission.logprobs == (entry(1), entry(2), entry(3))
    assert emission.prompt_logprobs == (entry(9),)
    again = held.emit("a")
    assert (again.base, again.token_ids, again.logprobs, again.prompt_logprobs) == (10, (), (), ())
