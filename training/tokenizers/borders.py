"""Where a text may be cut in two, so that the parts, encoded apart, give the ids of the whole."""

import re

# Before a space that follows no white space, and after what is certainly a letter or a digit, where no word goes on:
# there each split pattern of GPT-2's kind ends a token, whatever follows, and begins one, whatever stood before.
_UP_TO_LAST_BORDER = re.compile(
    r".+(?:(?<=\S)(?= )|(?<=[0-9A-Za-z\u4e00-\u9fff])(?=[\r\n,.\u3001\u3002\uff0c]))", re.DOTALL
)


def last_border(text: str) -> int:
    """Return the last place within `text` where it may be cut, whatever follows it; 0 where there is none."""
    found = _UP_TO_LAST_BORDER.match(text)
    return found.end() if found else 0
