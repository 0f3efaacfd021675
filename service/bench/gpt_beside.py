"""What a model of another family is measured beside: a GPT of as many parameters, in the same engine."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from service.bench.workload import Workload, read_shape, save_random
from training.costs import count_costs

LAYERS = 6
WIDTHS = range(16, 2049, 16)
"""Those that the native kernels compute."""


@contextlib.contextmanager
def open_gpt_beside(workload: Workload) -> Iterator[Path]:
    """Give, for the time of the context, the folder of a GPT of random weights with the vocabulary of `workload`."""
    context_length = workload.prompt_tokens + workload.max_tokens
    vocab_size, num_parameters = workload.config.vocab_size, count_costs(workload.config).num_parameters

    def distance(shape: str) -> int:
        return abs(count_costs(read_shape(shape, vocab_size, context_length)).num_parameters - num_parameters)

    shape = min((f"{LAYERS}x{width}" for width in WIDTHS), key=distance)
    with tempfile.TemporaryDirectory(prefix="minigpt-bench-") as temporary:
        yield save_random(Path(temporary), shape, vocab_size, context_length, workload.tokenizer)
