"""Hugging Face's `generate` on the same checkpoint folder: the speed that a user has without minigpt."""

import importlib
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from service.bench.offline import EngineRun
from service.protocol import Request
from training.manifest import TOKENIZER
from training.tokenizers.loading import load_tokenizer


class TransformersPeer:
    """Greedy generation by transformers.

    Args:
        checkpoint: Folder of a model in the Qwen3 layout.
        device: Where it computes.
        dtype: What it computes in.
    """

    def __init__(self, checkpoint: Path, device: torch.device, dtype: torch.dtype) -> None:
        transformers: Any = importlib.import_module("transformers")  # half typed, which is worse than not at all
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, local_files_only=True)
        model.generation_config = transformers.GenerationConfig(pad_token_id=0)
        self._model = model.to(device).eval()
        # The engine never draws these either; without an end-of-text id every answer has its full length.
        self._never = sorted(load_tokenizer(checkpoint / TOKENIZER).special_ids)

    def run(self, requests: Sequence[Request]) -> EngineRun:
        """Compute `requests`, all of one length, as one batch."""
        steps = _StepClock()
        began = time.perf_counter()
        token_ids = self.generate(requests, steps)
        return EngineRun(
            tokens=sum(map(len, token_ids)),
            seconds=time.perf_counter() - began,
            step_s=[later - earlier for earlier, later in pairwise(steps.times)],
        )

    def generate(self, requests: Sequence[Request], steps: "_StepClock | None" = None) -> list[list[int]]:
        """Return the tokens that continue each of `requests`."""
        prompts = torch.tensor([request.token_ids for request in requests], device=self._model.device)
        output = self._model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            max_new_tokens=requests[0].params.max_tokens,
            suppress_tokens=self._never,
            streamer=steps,
        )
        return output[:, prompts.size(1) :].tolist()


class _StepClock:
    """A streamer that keeps only when each token came; the prompt, which comes first, is not one."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt_came = False

    def put(self, _token_ids: Tensor) -> None:
        if self._prompt_came:
            self.times.append(time.perf_counter())
        self._prompt_came = True

    def end(self) -> None:
        pass
