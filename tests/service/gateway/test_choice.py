"""One choice read from a position on: what follows is what a reader of all of it would have read there."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.detokenizer import TextStream
from service.errors import Diverged
from service.gateway.choice import Choice
from service.gateway.stream_position import START, StreamPosition
from service.protocol import End, Request, TokenLogprobs, Update
from tests.claims import make_request as make_small_request
from training.tokenizers.bpe import BpeTokenizer

TOKENIZER = BpeTokenizer([])  # a token is a byte
END = End(finish_reason="length")
token_ids = st.lists(st.sampled_from([*b"ab ", *"é🦜".encode(), 256]), max_size=12)
stops = st.lists(st.text("ab é", min_size=1, max_size=4), max_size=3).map(tuple)


def make_request(stop: tuple[str, ...] = (), **fields: object) -> Request:
    told = {"logprobs": 0, "prompt_logprobs": bool(fields.get("echo"))}
    return make_small_request("0-0", token_ids=tuple(b"pr"), max_tokens=20, stop=stop, **told, **fields)


def split(ids: list[int], cuts: set[int]) -> list[Update]:
    """The updates of a log of `ids` that came in chunks, and then its end."""
    borders = [0, *sorted(cut for cut in cuts if cut < len(ids)), len(ids)]
    updates = [make_update(start, ids[start:stop]) for start, stop in itertools.pairwise(borders)]
    return [*updates, make_update(len(ids), [], END)]


def make_update(base: int, ids: list[int], end: End | None = None) -> Update:
    told = tuple(TokenLogprobs(token_id=id_, logprob=-1.0) for id_ in ids)
    prompt = (TokenLogprobs(token_id=ord("r"), logprob=-2.0),) if base == 0 else ()
    return Update(id="0-0", base=base, token_ids=tuple(ids), end=end, logprobs=told, prompt_logprobs=prompt)


def read(request: Request, updates: list[Update], after: StreamPosition = START) -> tuple[str, list[int], list[int]]:
    choice = Choice(request, 0, TOKENIZER, after)
    deltas = [delta for update in updates if (delta := choice.take(update)) is not None]
    assert [delta.end for delta in deltas] == [None] * (len(deltas) - 1) + [END]
    assert deltas[-1].position == StreamPosition(choice.num_tokens, True)
    return (
        "".join(delta.text for delta in deltas),
        [id_ for delta in deltas for id_ in delta.token_ids],
        [id_ for delta in deltas for id_ in delta.logprobs.token_ids],
    )


@given(
    ids=token_ids, stop=stops, cuts=st.sets(st.integers(1, 11)), other_cuts=st.sets(st.integers(1, 11)), data=st.data()
)
def test_after_a_position_comes_the_text_that_its_tokens_left_open(ids, stop, cuts, other_cuts, data):
    request = make_request(stop, echo=data.draw(st.booleans()))
    text, told_ids, logprobs = read(request, split(ids, cuts))
    known = data.draw(st.integers(1, len(ids))) if ids else 0
    settled = ("pr" if request.echo else "") + TextStream(TOKENIZER, stop).push(ids[:known])
    rest = read(request, split(ids, other_cuts), StreamPosition(known))
    assert told_ids == ids
    if known:
        assert (settled + rest[0], rest[1], rest[2]) == (text, ids[known:], ids[known:])
    else:
        assert rest == (text, ids, logprobs)


@given(ids=token_ids, stop=stops)
def test_after_an_end_there_is_the_end_alone(ids, stop):
    assert read(make_request(stop, echo=True), split(ids, set()), StreamPosition(len(ids), True)) == ("", [], [])


@pytest.mark.parametrize("position", [StreamPosition(4), StreamPosition(4, True), StreamPosition(2, True)])
def test_a_position_that_the_log_never_had_is_told(position):
    with pytest.raises(Diverged):
        read(make_request(), split(list(b"abc"), set()), position)


def test_a_prompt_that_is_no_longer_kept_hinders_nobody():
    request = msgspec.structs.replace(make_request(echo=True), token_ids=())
    assert Choice(request, 0, TOKENIZER).take(make_update(0, [], END)).text == ""
