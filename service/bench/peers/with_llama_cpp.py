"""llama.cpp through llama-cpp-python's bindings: all sequences in one `llama_decode` a step, the likeliest taken."""

import ctypes
import time
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


def load(options: dict[str, Any]) -> tuple[str, "Generator"]:
    """Load a GGUF file, whose weights decide the dtype."""
    llama_cpp.llama_backend_init()
    generator = Generator(options["model"], len(options["cpus"]), options["max_batch"], options["context"])
    return llama_cpp.__version__, generator


class Generator:
    """Greedy generation.

    Args:
        model: GGUF file.
        num_threads: Threads that compute.
        max_batch: Sequences at once, at most.
        context: Tokens of a prompt with its answer, at most.
    """

    def __init__(self, model: str, num_threads: int, max_batch: int, context: int) -> None:
        self._model = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        if self._model is None:
            raise ValueError(f"llama.cpp cannot load {model}")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._num_threads, self._context_length = num_threads, context
        self._batch = Batch(max_batch * context)
        self._contexts: dict[int, ctypes.c_void_p] = {}

    def __call__(self, prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], list[float]]:
        """Continue `prompts`, all of one length, by `max_tokens` each; return them and the seconds of each step."""
        context = self._context(len(prompts))
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        length = len(prompts[0])
        self._batch.fill_prompts(np.asarray(prompts))
        tokens = [self._decode(context, len(prompts))]
        times = [time.perf_counter()]
        self._batch.seat(len(prompts))
        for position in range(length, length + max_tokens - 1):
            self._batch.fill_step(tokens[-1], position)
            tokens.append(self._decode(context, len(prompts)))
            times.append(time.perf_counter())
        return np.stack(tokens, axis=1).tolist(), np.diff(times).tolist()

    def _context(self, num_seqs: int) -> ctypes.c_void_p:
        """Return a context for exactly so many sequences: a wider one is slower."""
        if num_seqs not in self._contexts:
            params = llama_cpp.llama_context_default_params()
            params.n_seq_max = num_seqs
            params.n_ctx = num_seqs * self._context_length
            params.n_batch = num_seqs * self._context_length
            params.n_threads = params.n_threads_batch = self._num_threads
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
            params.no_perf = True
            self._contexts[num_seqs] = llama_cpp.llama_init_from_model(self._model, params)
        return self._contexts[num_seqs]

    def _decode(self, context: ctypes.c_void_p, num_seqs: int) -> Ids:
        status = llama_cpp.llama_decode(context, self._batch.raw)
        if status != 0:
            raise RuntimeError(f"llama_decode: {status}")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (num_seqs, self._vocab_size))
        return logits.argmax(1)


class Batch:
    """A `llama_batch`, written through arrays."""

    def __init__(self, size: int) -> None:
        self.raw = llama_cpp.llama_batch_init(size, 0, 1)
        self._token, self._pos, self._n_seq_id, self._logits = (
            np.ctypeslib.as_array(getattr(self.raw, field), (size,)) for field in ("token", "pos", "n_seq_id", "logits")
        )
        self._n_seq_id[:] = 1

    def fill_prompts(self, prompts: Ids) -> None:
        """Take prompts `(B, T)`; logits are wanted of the last token of each."""
        num_seqs, length = prompts.shape
        self.raw.n_tokens = prompts.size
        self._token[: prompts.size] = prompts.reshape(-1)
        self._pos[: prompts.size] = np.tile(np.arange(length), num_seqs)
        self._logits[: prompts.size] = np.tile(np.arange(length) == length - 1, num_seqs)
        for index in range(prompts.size):
            self.raw.seq_id[index][0] = index // length

    def seat(self, num_seqs: int) -> None:
        """Make room for steps of one token of each sequence."""
        self.raw.n_tokens = num_seqs
        self._logits[:num_seqs] = 1
        for index in range(num_seqs):
            self.raw.seq_id[index][0] = index

    def fill_step(self, token_ids: Ids, position: int) -> None:
        """Take the last token of each sequence, `(B,)`."""
        self._token[: token_ids.size] = token_ids
        self._pos[: token_ids.size] = position
