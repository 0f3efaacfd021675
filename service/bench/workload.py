"""What is measured: a checkpoint, or a shape with random weights; and the requests that it is given."""

import contextlib
import random
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from service.errors import SettingError
from service.protocol import Request, SamplingParams
from training.checkpoint import save_checkpoint
from training.config import BudgetConfig, TrainConfig
from training.manifest import CONFIG, TOKENIZER, resolve_checkpoint
from training.model_config import DEFAULT_FAMILY, GPTConfig, ModelConfig, parse_model_config
from training.models.families import make_model
from training.models.layouts import from_hf_config
from training.tokenizers.base import Tokenizer
from training.tokenizers.char import CharTokenizer
from training.tokenizers.loading import load_tokenizer

SEED = 1337
HEAD_WIDTH = 64
MIN_CONTEXT = 256
FAMILIES: Mapping[str, Mapping[str, str]] = {
    "gpt": {"family": "gpt"},
    **{cell: {"family": "recurrent", "cell": cell} for cell in ("rnn", "lstm", "gru")},
    "mlp": {"family": "mlp"},
    "conv": {"family": "conv"},
}
"""What a shape may begin with → what it says."""
FIRST_CHARACTER = 0x100
MAX_VOCAB = 0xD800 - FIRST_CHARACTER
"""From there on come the surrogates, which are no characters."""
NEVER = -100.0
"""Logit bias of a token that is not to be drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model and what is asked of it."""

    folder: Path
    """Its checkpoint."""
    tokenizer: Tokenizer
    config: ModelConfig
    prompt_tokens: int
    max_tokens: int

    @property
    def is_gpt(self) -> bool:
        """Whether other engines may have it, too."""
        return isinstance(self.config, GPTConfig)

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
def open_workload(model: Path | str, vocab_size: int, *, prompt_tokens: int, max_tokens: int) -> Iterator[Workload]:
    """Give a checkpoint as it is, or, for the time of the context, one of random weights.

    Args:
        model: Folder of a checkpoint or of a run; or a shape, `[FAMILY:]LAYERSxWIDTH`.
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
        yield Workload(
            folder=folder,
            tokenizer=load_tokenizer(folder / TOKENIZER),
            config=from_hf_config(msgspec.json.decode((folder / CONFIG).read_bytes())),
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
        )


def read_shape(shape: str, vocab_size: int, context_length: int) -> ModelConfig:
    """Return the model that `[FAMILY:]LAYERSxWIDTH` means; what it does not say is as the family's config has it.

    A GPT has heads of 64. The width of an MLP is that of its hidden layers.

    Raises:
        SettingError: it means none.
    """
    match = re.fullmatch(r"(?:(\w+):)?(\d+)x(\d+)", shape)
    family = (match and match[1]) or DEFAULT_FAMILY
    if match is None or family not in FAMILIES:
        raise SettingError(
            f"--shape {shape}: write [FAMILY:]LAYERSxWIDTH, e.g. 6x384 or lstm:2x512; families: {', '.join(FAMILIES)}"
        )
    if not 3 <= vocab_size <= MAX_VOCAB:
        raise SettingError(f"--vocab {vocab_size}: 3 to {MAX_VOCAB}")
    n_layer, width = int(match[2]), int(match[3])
    fields: dict[str, Any] = {
        **FAMILIES[family],
        "n_layer": n_layer,
        "n_hidden" if family == "mlp" else "n_embd": width,
        "vocab_size": vocab_size,
        "context_length": max(MIN_CONTEXT, context_length),
    }
    if family == DEFAULT_FAMILY:
        fields |= {"n_head": max(1, width // HEAD_WIDTH), "head_dim": min(HEAD_WIDTH, width)}
    try:
        return parse_model_config(fields)
    except msgspec.ValidationError as error:
        raise SettingError(f"--shape {shape}: {error}") from error


def save_random(
    parent: Path, shape: str, vocab_size: int, context_length: int, tokenizer: Tokenizer | None = None
) -> Path:
    """Write a checkpoint of random weights; return its folder, named like the shape.

    Its vocabulary is that of `tokenizer`, or characters.

    Raises:
        SettingError: no such shape.
    """
    config = read_shape(shape, vocab_size, context_length)
    generator = torch.Generator().manual_seed(SEED)
    model = make_model(config, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2 and not parameter.any():  # zero at the start of a training
                parameter.normal_(0.0, 0.02, generator=generator)
    characters = map(chr, range(FIRST_CHARACTER, FIRST_CHARACTER + config.vocab_size - 2))
    train_config = TrainConfig(budget=BudgetConfig(steps=1), model=config)
    folder = parent / shape.replace(":", "-")
    save_checkpoint(folder, model, tokenizer or CharTokenizer(characters), train_config)
    return folder
