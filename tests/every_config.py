"""Every field of every family's config, away from its default: what each path must compute, or refuse by name."""

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from training.model_config import ConvConfig, GPTConfig, MLPConfig, RecurrentConfig

CONFIGS = {"gpt": GPTConfig, "lstm": RecurrentConfig, "mlp": MLPConfig, "conv": ConvConfig}
BASE: Mapping[str, Mapping[str, Any]] = {
    "gpt": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_hidden": 64},
    "lstm": {"n_layer": 2, "n_embd": 32, "n_hidden": 48},
    "mlp": {"n_layer": 2, "n_embd": 32, "n_hidden": 48, "window": 7},
    "conv": {"n_layer": 3, "n_embd": 32, "n_hidden": 48},
}
"""The native kernels compute these; the names are those of the fixture `make_model_of`."""
SIZES = {
    "vocab_size": 40,
    "context_length": 48,
    "n_layer": 3,
    "n_embd": 64,
    "n_head": 1,
    "n_kv_head": 1,
    "head_dim": 32,
    "n_hidden": 80,
    "window": 4,
    "kernel_size": 3,
    "dilation_cycle": 2,
    "norm_eps": 0.01,
    "rope_theta": 500.0,
    "dropout": 0.3,
    "ngram_orders": (2, 3),
    "ngram_rows": 500,
}
"""Another value for each field that is no choice of names; a field that is missing here fails the tests."""
TAKES = {"activation": {"lstm": {"cell": "rnn"}}}
"""What a field needs beside it."""


def other_values(family: str) -> Iterator[tuple[str, Any]]:
    """Yield each field of a family's config with each value that it may have instead, or one of them for a size."""
    config = CONFIGS[family]
    hints, defaults = get_type_hints(config), config().replace(**BASE[family])
    for field in config.__struct_fields__:
        for value in _choices(hints[field]) or (SIZES[field],):
            if value != getattr(defaults, field):
                yield field, value


def shape_of(family: str, field: str, value: Any) -> dict[str, Any]:
    """Return the table of a config (beside its family) in which `field` is `value`."""
    return {**BASE[family], **TAKES.get(field, {}).get(family, {}), field: value}


def _choices(hint: Any) -> list[Any]:
    """Return what a type that is a choice of names, or yes and no, allows."""
    if hint is bool:
        return [False, True]
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return [choice for part in get_args(hint) for choice in _choices(part)]
    return []


EVERY = [(family, field, value) for family in CONFIGS for field, value in other_values(family)]
