"""What the commands that train have in common: the text made ready, a run from its first step to its last file."""

import contextlib
import fcntl
import os
import signal
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from training.commands.options import make_console
from training.commands.reading_bar import reading_bar
from training.config import DataConfig, TrainConfig
from training.errors import ConfigError, TrainingError

if TYPE_CHECKING:  # torch is loaded when a run begins
    from training.data.prepare import PreparedData
    from training.distributed import Ranks
    from training.events import Event
    from training.trainer import Trainer


def load_data(config: DataConfig, data: Path | None) -> "tuple[DataConfig, PreparedData]":
    """Read the corpus and make its token files; the settings come back with the name that the corpus is found by.

    Raises:
        CorpusError, TokenizerError: as `load_corpus` and `prepare`.
    """
    from training.data.corpus import default_cache_dir, load_corpus
    from training.data.prepare import prepare

    with reading_bar(make_console()) as progress:
        corpus = load_corpus(config.corpus, data, progress=progress)
        return config.replace(corpus=corpus.name), prepare(config, corpus, default_cache_dir())


def run_training(
    config: TrainConfig,
    prepared: "PreparedData",
    folder: Path,
    console: Console,
    *,
    resume: bool = False,
    ranks: "Ranks | None" = None,
) -> "Trainer":
    """Train to the end of the budget or to Ctrl-C, showing and logging what happens.

    Of several processes the first shows and logs; its `console` is the only one that is not quiet.

    Returns:
        The trainer; its `ending` is None where the run was interrupted, and then it is saved.

    Raises:
        TrainingError: another process trains in the folder.
    """
    from training.display import Display
    from training.distributed import ALONE
    from training.runlog import RunLog, plot_curves
    from training.tensorboard import open_tensorboard
    from training.trainer import Trainer

    ranks = ranks or ALONE
    with _the_only_run_in(folder) if ranks.is_first else contextlib.nullcontext():
        trainer = Trainer(config, prepared, folder, resume=resume, ranks=ranks, notice=console.print)
        num_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        console.print(
            f"{config.data.corpus}: {len(prepared.train):,} training tokens, {len(prepared.validation):,} held out · "
            f"{num_parameters / 1e6:.2f}M parameters · {trainer.device}, {str(trainer.dtype).removeprefix('torch.')}"
        )
        log = RunLog(folder / "log.jsonl", trainer.state.step if resume else None) if ranks.is_first else None
        with contextlib.ExitStack() as stack:
            sinks: list[Callable[[Event], None]] = [stack.enter_context(Display(console)).show]
            if log:
                sinks.append(log.write)
                if config.run.tensorboard:
                    sinks.append(stack.enter_context(open_tensorboard(folder, console.print, trainer.state.tokens)))
            interrupted = stack.enter_context(catch_interrupts())
            for event in trainer.run():
                for sink in sinks:
                    sink(event)
                if ranks.any(interrupted()) and trainer.ending is None:
                    break
        if trainer.ending is None:
            trainer.save()
        if log:
            plot_curves(log.events, folder / "curve.png", f"{folder.name}: {num_parameters / 1e6:.2f}M parameters")
    return trainer


def claim_folder(folder: Path, *, resume: bool) -> None:
    """Make the folder of a run.

    Raises:
        TrainingError: a run is there already, or nothing can be written there.
    """
    if not resume and (folder / "log.jsonl").exists():
        raise TrainingError(f"{folder}: a run is there already; go on with --resume, or choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink(missing_ok=True)  # other processes of the run do the same
    except OSError as error:
        raise TrainingError(f"{folder}: cannot write there: {error.strerror}; choose another --out") from error


@contextlib.contextmanager
def _the_only_run_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder: two would write over each other. The system forgets it with the process.

    Raises:
        TrainingError: there is one.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"{folder}: another process trains there; choose another --out, or wait") from None
        yield
    finally:
        os.close(handle)


def require_one_process(what: str) -> None:
    """Refuse `what` under torchrun, where every process would do it for itself.

    Raises:
        ConfigError: there are several processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError(f"{what} is for one process: under torchrun name a preset to train")


@contextlib.contextmanager
def catch_interrupts() -> Iterator[Callable[[], bool]]:
    """Make Ctrl-C (and SIGTERM) wait for the end of a step: half a step cannot be saved. The second one kills.

    Yields:
        What tells whether one came.
    """
    seen: list[int] = []

    def remember(number: int, _frame: types.FrameType | None) -> None:
        seen.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
