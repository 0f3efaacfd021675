import io

import pytest
from rich.console import Console

from training.commands.reading_bar import LONG_BYTES, reading_bar


def shown(total_bytes: int, *, is_terminal: bool) -> str:
    screen = io.StringIO()
    with reading_bar(Console(file=screen, force_terminal=is_terminal)) as tell:
        tell("encoding", total_bytes // 4, total_bytes)
        tell("encoding", total_bytes // 2, total_bytes)
    return screen.getvalue()


def test_a_long_text_has_a_bar() -> None:
    assert "50%  encoding" in shown(LONG_BYTES, is_terminal=True)


@pytest.mark.parametrize(("total_bytes", "is_terminal"), [(LONG_BYTES - 1, True), (LONG_BYTES, False)])
def test_a_short_text_or_no_terminal_has_none(total_bytes: int, is_terminal: bool) -> None:
    assert "encoding" not in shown(total_bytes, is_terminal=is_terminal)
