"""Corpora larger than memory: what preparing takes does not grow with the text."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from training.data.prepare import TRAIN, VALIDATION

MB = 2**20
PREPARE = """
import sys
from pathlib import Path
from training.config import DataConfig
from training.data.corpus import load_corpus
from training.data.prepare import prepare

if __name__ == "__main__":
    text, cache, tokenizer, vocab_size, memory_mb = sys.argv[1:]
    config = DataConfig(tokenizer=tokenizer, vocab_size=int(vocab_size) or None, memory_mb=int(memory_mb))
    prepare(config, load_corpus(text), Path(cache))
"""


def write_text(path: Path, num_bytes: int) -> None:
    """Write words as frequent as in a real text (Zipf's law), a good part of them rare; megabytes come again."""
    rng = np.random.default_rng(3)
    letters = rng.choice(list("etaoinshrdlu"), (100_000, 9))
    words = np.array(["".join(row[: 2 + i % 8]) + "\n" * (i % 12 == 0) for i, row in enumerate(letters)])
    blocks = [" ".join(words[rng.zipf(1.2, 200_000) % len(words)]) for _ in range(min(24, 1 + num_bytes // MB))]
    with path.open("w") as file:
        while file.tell() < num_bytes:
            file.write(blocks[rng.integers(len(blocks))])


def peak_mb(tmp_path: Path, *arguments: object) -> float:
    """Prepare in a process of its own; return the most that it and those it starts have taken together, in MB."""
    (tmp_path / "main.py").write_text(PREPARE)
    command = [sys.executable, str(tmp_path / "main.py"), *map(str, arguments)]
    most = 0
    with subprocess.Popen(command, cwd=Path(__file__).parents[3]) as main:
        while main.poll() is None:
            most = max(most, taken_bytes(psutil.Process(main.pid)))
            wait(main, 0.05)
    assert main.returncode == 0
    return most / MB


def taken_bytes(main: psutil.Process) -> int:
    total = 0
    for process in (main, *main.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def wait(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    peaks = []
    for size in (8, 24):
        text = tmp_path / f"{size}.txt"
        write_text(text, size * MB)
        peaks.append(peak_mb(tmp_path, text, tmp_path / "cache", "char", 0, 256))
    assert peaks[1] < 256
    assert peaks[1] - peaks[0] < 32  # as a str, as bytes and as ids 16 MB more would take more than 64


@pytest.mark.big
@pytest.mark.timeout(10 * 3600)  # minutes on a laptop
@pytest.mark.parametrize(("tokenizer", "vocab_size"), [("char", 0), ("bpe", 1024)])
def test_a_gigabyte_is_prepared_in_600_mb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer: str, vocab_size: int
) -> None:
    text, cache = tmp_path / "gigabyte.txt", tmp_path / "cache"
    write_text(text, 10**9)
    size_mb = text.stat().st_size / 1e6
    start = time.monotonic()
    most = peak_mb(tmp_path, text, cache, tokenizer, vocab_size, 512)
    seconds = time.monotonic() - start
    num_tokens = sum(file.stat().st_size for name in (TRAIN, VALIDATION) for file in cache.rglob(name)) // 2
    with capsys.disabled():
        rate = f"{size_mb / seconds:.1f} MB/s, {num_tokens / 1e6:.0f}M tokens"
        sys.stdout.write(f"\n{tokenizer}: {size_mb:.0f} MB in {seconds:.0f} s: {rate}, peak {most:.0f} MB\n")
    assert most < 600
