"""`minigpt bench weights`: a model in the formats that servers of other makes load."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from service.bench.workload import MIN_CONTEXT, save_random
from service.errors import SettingError
from training.exchange.formats import GgufType
from training.exchange.gguf_file import write_gguf
from training.manifest import resolve_checkpoint


def write_weights(model: Path | str, vocab_size: int, out: Path, types: Sequence[str]) -> list[Path]:
    """Write the files; return their paths.

    Args:
        model: Folder of a checkpoint or of a run; or a shape, `LAYERSxWIDTH`, which is written as a checkpoint too.
        vocab_size: Entries of the vocabulary of a shape.
        out: Folder for all of it.
        types: Of the weights, a GGUF file each.

    Raises:
        SettingError: no such shape or type.
        CheckpointError: no checkpoint there, or a model that GGUF does not hold.
        ConfigError: widths that a type does not hold.
    """
    unknown = set(types) - set(get_args(GgufType))
    if unknown:
        raise SettingError(f"--gguf {min(unknown)}: choose some of {', '.join(get_args(GgufType))}")
    is_shape = isinstance(model, str)
    folder = save_random(out, model, vocab_size, MIN_CONTEXT) if isinstance(model, str) else resolve_checkpoint(model)
    files = {kind: out / f"{folder.name}-{kind}.gguf" for kind in get_args(GgufType) if kind in types}
    out.mkdir(parents=True, exist_ok=True)
    for kind, file in files.items():
        write_gguf(folder, file, kind)
    return [folder, *files.values()] if is_shape else list(files.values())
