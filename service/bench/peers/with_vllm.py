"""vLLM in this very process, as `LLM.generate` runs it: its scheduler, its paged attention, its compiled model."""

import os
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def load(options: dict[str, Any]) -> tuple[str, Callable[..., tuple[list[list[int]], list[float]]]]:
    """Load a folder in the Qwen3 layout."""
    max_batch, context = options["max_batch"], options["context"]
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # its engine in a process of its own shares the same cores: slower
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, options["cpus"])),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)  # vLLM reads them when it is imported
    import vllm

    llm = vllm.LLM(
        options["model"],
        dtype=DTYPES[options["dtype"]],
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=context,
        max_num_seqs=max_batch,
        max_num_batched_tokens=max(2048, max_batch * context),
    )

    def generate(prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], list[float]]:
        """Continue `prompts` by `max_tokens` each; return them and the seconds of each step that only decoded."""
        params = vllm.SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        engine, times = llm.llm_engine, []
        done: dict[str, list[int]] = {}
        for number, token_ids in enumerate(prompts):
            engine.add_request(str(number), {"prompt_token_ids": token_ids}, params)
        while engine.has_unfinished_requests():
            done |= {output.request_id: output.outputs[0].token_ids for output in engine.step() if output.finished}
            times.append(time.perf_counter())
        return [list(done[str(number)]) for number in range(len(prompts))], _decode_steps(times, max_tokens)

    return vllm.__version__, generate


def _decode_steps(times: list[float], max_tokens: int) -> list[float]:
    """Return the seconds of the last steps, one for each token but the first: prompts may take several before them."""
    return [later - earlier for earlier, later in pairwise(times[-max_tokens:])]
