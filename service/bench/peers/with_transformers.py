"""Hugging Face's `generate`: the speed that a user has without anything else."""

import importlib
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load(options: dict[str, Any]) -> tuple[str, Callable[..., tuple[list[list[int]], list[float]]]]:
    """Load a folder in the Qwen3 layout."""
    transformers: Any = importlib.import_module("transformers")  # half typed, which is worse than not at all
    model, dtype, device = options["model"], DTYPES[options["dtype"]], options["device"]
    torch.set_num_threads(len(options["cpus"]))
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype, local_files_only=True)
    loaded.generation_config = transformers.GenerationConfig(pad_token_id=0)  # no end of text: answers of full length
    loaded = loaded.to(device).eval()

    def generate(prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], list[float]]:
        """Continue `prompts`, all of one length, by `max_tokens` each; return them and the seconds of each step."""
        steps = StepClock()
        tokens = torch.tensor(prompts, device=device)
        output = loaded.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=max_tokens,
            suppress_tokens=options["never"],
            streamer=steps,
        )
        return output[:, tokens.size(1) :].tolist(), [later - earlier for earlier, later in pairwise(steps.times)]

    return transformers.__version__, generate


class StepClock:
    """A streamer that keeps only when each token came; the prompt, which comes first, is not one."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt_came = False

    def put(self, _token_ids: Tensor) -> None:
        """Take the next tokens."""
        if self._prompt_came:
            self.times.append(time.perf_counter())
        self._prompt_came = True

    def end(self) -> None:
        """Take the end."""
