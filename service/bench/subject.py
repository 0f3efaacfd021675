"""What is measured: a checkpoint, or a shape with random weights; and the requests that it is given."""

import contextlib
import random
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from service.config import parse_settings
from service.errors import SettingError
from service.protocol import Request, SamplingParams
from training.checkpoint import save_checkpoint
from training.config import BudgetConfig, TrainConfig
from training.manifest import CONFIG, TOKENIZER, resolve_checkpoint
from training.model_config import GPTConfig
from training.models.gpt import GPT
from training.models.layouts import from_hf_config
from training.tokenizers.base import Tokenizer
from training.tokenizers.char import CharTokenizer
from training.tokenizers.loading import load_tokenizer

SEED = 1337
HEAD_WIDTH = 64
MIN_CONTEXT = 256
FIRST_CHARACTER = 0x100
MAX_VOCAB = 0xD800 - FIRST_CHARACTER
"""From there on come the surrogates, which are no characters."""
NEVER = -100.0
"""Logit bias of a token that is not to be drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model and what is asked of it."""

    folder: Path
    """Its checkpoint."""
    tokenizer: Tokenizer
    config: GPTConfig
    prompt_tokens: int
    max_tokens: int

    def requests(self, count: int, seed: int = 0) -> list[Request]:
        """Return requests with random prompts, whose answers are greedy and exactly `max_tokens` long.

        Another seed gives other prompts: what a server kept of earlier ones helps none.
        """
        return [self._request(number, self.max_tokens, seed) for number in range(count)]

    def stream_requests(self, streams: int, count: int, seed: int = 0) -> list[Request]:
        """Return requests for `streams` at once, whose first and last answers are shorter, each by another length.

        So the streams get out of step, each asks while the others are being answered, and all end together.
        """
        shares = [(number + 1) / streams for number in range(streams)]
        num_last = min(streams, max(0, count - streams))
        firsts, lasts = shares[:count], shares[:num_last][::-1]
        whole = [1.0] * (count - len(firsts) - len(lasts))
        lengths = [max(1, round(share * self.max_tokens)) for share in (*firsts, *whole, *lasts)]
        return [self._request(number, length, seed) for number, length in enumerate(lengths)]

    def _request(self, number: int, max_tokens: int, seed: int) -> Request:
        rng = random.Random(f"{SEED} {seed} {number}")
        ids = sorted(set(range(self.tokenizer.vocab_size)) - self.tokenizer.special_ids)
        endless = {self.tokenizer.end_of_text_id: NEVER}
        return Request(
            id=f"bench-{seed}-{number}",
            model="bench",
            revision="bench",
            token_ids=tuple(rng.choices(ids, k=self.prompt_tokens)),
            params=SamplingParams(max_tokens=max_tokens, seed=SEED, temperature=0.0, logit_bias=endless),
        )

    def describe(self) -> dict[str, str | int]:
        """Return which model it is, and how long prompts and answers are."""
        return {"model": self.folder.name, "prompt_tokens": self.prompt_tokens, "max_tokens": self.max_tokens}


@contextlib.contextmanager
def open_subject(model: Path | str, vocab_size: int, *, prompt_tokens: int, max_tokens: int) -> Iterator[Subject]:
    """Give a checkpoint as it is, or, for the time of the context, one of random weights.

    Args:
        model: Folder of a checkpoint or of a run; or a shape, `LAYERSxWIDTH`.
        vocab_size: Entries of the vocabulary of a shape.
        prompt_tokens: Tokens of each prompt.
        max_tokens: Tokens of each answer; a shape gets a context that holds both.

    Raises:
        SettingError: no such shape.
        CheckpointError: no checkpoint there.
    """
    with tempfile.TemporaryDirectory(prefix="minigpt-bench-") as temporary:
        if isinstance(model, Path):
            folder = resolve_checkpoint(model)
        else:
            folder = save_random(Path(temporary), model, vocab_size, prompt_tokens + max_tokens)
        yield Subject(
            folder=folder,
            tokenizer=load_tokenizer(folder / TOKENIZER),
            config=from_hf_config(msgspec.json.decode((folder / CONFIG).read_bytes())),
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
        )


def read_shape(shape: str, vocab_size: int, context_length: int) -> GPTConfig:
    """Return the model that `LAYERSxWIDTH` means: heads of 64, the rest as in `GPTConfig`.

    Raises:
        SettingError: it means none.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", shape)
    if match is None:
        raise SettingError(f"--shape {shape}: write LAYERSxWIDTH, e.g. 6x384")
    if not 3 <= vocab_size <= MAX_VOCAB:
        raise SettingError(f"--vocab {vocab_size}: 3 to {MAX_VOCAB}")
    n_layer, n_embd = map(int, match.groups())
    fields = {
        "n_layer": n_layer,
        "n_embd": n_embd,
        "n_head": max(1, n_embd // HEAD_WIDTH),
        "head_dim": min(HEAD_WIDTH, n_embd),
        "vocab_size": vocab_size,
        "context_length": max(MIN_CONTEXT, context_length),
    }
    return parse_settings(GPTConfig, fields)


def save_random(parent: Path, shape: str, vocab_size: int, context_length: int) -> Path:
    """Write a checkpoint of random weights, whose vocabulary is characters; return its folder, named like the shape.

    Raises:
        SettingError: no such shape.
    """
    config = read_shape(shape, vocab_size, context_length)
    generator = torch.Generator().manual_seed(SEED)
    model = GPT(config, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):  # zero at the start of a training
                parameter.normal_(0.0, 0.02, generator=generator)
    characters = map(chr, range(FIRST_CHARACTER, FIRST_CHARACTER + config.vocab_size - 2))
    train_config = TrainConfig(budget=BudgetConfig(steps=1), model=config)
    save_checkpoint(parent / shape, model, CharTokenizer(characters), train_config)
    return parent / shape
