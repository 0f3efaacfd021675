"""Where a reader stands, as event ids write it and clients send it back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadRequest
from service.gateway.stream_position import StreamPosition, read_after, write_positions

ANSWER = "0123456789abcdef" * 2
positions = st.lists(st.builds(StreamPosition, st.integers(0, 10**10 - 1), st.booleans()), min_size=1, max_size=5)


@given(positions=positions)
def test_what_is_written_is_read_back(positions):
    text = write_positions(positions)
    assert read_after(ANSWER, f"{ANSWER}-{text}", None) == positions
    assert read_after(ANSWER, None, text) == positions


def test_one_place_is_a_number_and_an_end_has_its_mark():
    assert write_positions([StreamPosition(12)]) == "12"
    assert write_positions([StreamPosition(12, True), StreamPosition(0), StreamPosition(3)]) == "12e.0.3"


def test_who_has_nothing_says_nothing_and_the_header_goes_first():
    assert read_after(ANSWER, None, None) is None
    assert read_after(ANSWER, f"{ANSWER}-5", "3") == [StreamPosition(5)]


WRONG = ["", "e", "1.", ".1", "1..2", "1,2", "1 ", "+1", "1E", "1ee", "0x1", "١", "²", "12345678901", "1.x"]


@pytest.mark.parametrize("text", WRONG)
def test_another_form_is_refused_with_an_example(text):
    with pytest.raises(BadRequest, match=r"^starting_after: .* e\.g\. 12 or 12\.7e$"):
        read_after(ANSWER, None, text)
    with pytest.raises(BadRequest, match=rf"^Last-Event-ID: .*{ANSWER}-12"):
        read_after(ANSWER, f"{ANSWER}-{text}", "1")


@pytest.mark.parametrize("text", ["", "5", ANSWER])
def test_an_event_id_has_the_answers_id_in_front(text):
    with pytest.raises(BadRequest, match="must say how many tokens"):
        read_after(ANSWER, text, None)


def test_an_event_of_another_stream_is_refused():
    with pytest.raises(BadRequest, match="another stream"):
        read_after(ANSWER, f"{'f' * 32}-5", None)
