"""What runs in a peer's process: `python program.py MODULE OPTIONS`, the module a neighbour of this file.

The Python may be another one, so nothing of minigpt is imported. A line of JSON on stdin is a run, and so is the line
that answers it on stdout:

- first, unasked: `{"version"}`, or `{"error"}` where the peer cannot be loaded;
- then for each `{"prompts", "max_tokens"}`: `{"token_ids", "seconds", "step_s"}`.

OPTIONS are JSON: `model` (folder or file), `dtype` (fp32 or bf16), `device`, `cpus` (their numbers), `max_batch`
(sequences at once), `context` (tokens of a prompt with its answer) and `never` (ids that are not to be drawn). MODULE
has a function `load` that takes them and returns the peer's version and `generate(prompts, max_tokens)`, which returns
the tokens of each answer, and the seconds of each step that only decoded.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import IO, Any


def main() -> None:
    """Load the peer, then answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    try:
        version, generate = importlib.import_module(sys.argv[1]).load(json.loads(sys.argv[2]))
    except Exception as error:
        _write(answers, {"error": f"{type(error).__name__}: {error}"})
        raise
    _write(answers, {"version": version})
    for line in sys.stdin:
        _write(answers, _run(generate, json.loads(line)))


def _run(generate: Callable[..., tuple[list[list[int]], list[float]]], load: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    token_ids, step_s = generate(**load)
    return {"token_ids": token_ids, "seconds": time.perf_counter() - began, "step_s": step_s}


def _write(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
