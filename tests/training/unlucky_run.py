"""A run to which things happen: `python -m tests.training.unlucky_run killed|full FOLDER TEXT`, settings on stdin."""

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.data.corpus import Corpus
from training.data.prepare import encode_splits
from training.errors import MinigptError
from training.tokenizers.char import CharTokenizer
from training.trainer import Trainer

NUM_KILLS = 6
MakeTrainer = Callable[[], Trainer]


def kill_again_and_again(make_trainer: MakeTrainer) -> None:
    """Print, after each kill, the step of the state and of the checkpoint that are found."""
    saved = make_trainer().resume_file
    moments = random.Random(7)
    for _ in range(NUM_KILLS):
        before = saved.stat().st_mtime_ns if saved.exists() else None
        pid = os.fork()
        if not pid:
            for _ in make_trainer().run():
                pass
        while not saved.exists() or saved.stat().st_mtime_ns == before:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.05))  # synchronizes nothing: the moment is to be any
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        sys.stdout.write(f"{make_trainer().state.step} {load_checkpoint(saved.parent).manifest.step}\n")


def fill_the_disk(make_trainer: MakeTrainer) -> None:
    """Print what is said of writes that find no room after the first step."""
    trainer = make_trainer()
    trainer.train_step()
    trainer.evaluate()
    trainer.save()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    trainer.train_step()
    trainer.state = trainer.state.replace(best_loss=None)  # so that the next evaluation is the best
    for write in (trainer.save, trainer.evaluate):
        try:
            write()
        except MinigptError as error:
            sys.stdout.write(f"{error}\n")


def main() -> None:
    kind, folder, text = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    config = msgspec.json.decode(sys.stdin.read(), type=TrainConfig)
    data = encode_splits(config.data, Corpus(name="fox", documents=(text,)), CharTokenizer.train([text]))

    def make_trainer() -> Trainer:
        return Trainer(config, data, folder, resume=(folder / "resume.safetensors").exists())

    {"killed": kill_again_and_again, "full": fill_the_disk}[kind](make_trainer)


if __name__ == "__main__":
    main()
