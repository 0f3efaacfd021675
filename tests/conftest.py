import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tinyshakespeare() -> Path:
    beside = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"
    file = Path(os.environ.get("MINIGPT_TINYSHAKESPEARE", beside))
    if not file.is_file():
        pytest.skip("tinyshakespeare is missing")
    return file
