"""What can go wrong while training, said in one line that names what, where and the remedy.

    MinigptError
    ├── ConfigError       a preset, an option or their combination
    ├── CorpusError       the text: missing, unreadable, empty, not the one expected
    ├── TokenizerError    a vocabulary that cannot be made, or a file that is none
    ├── CheckpointError   a folder that is missing, truncated, altered or foreign
    └── TrainingError     a run that cannot go on: not finite, no memory, nothing to resume

The command line prints the message after `error:` and exits with 2; no traceback reaches a user for these.
"""


class MinigptError(Exception):
    """Base of every error that is told to a user instead of traced."""


class ConfigError(MinigptError):
    """A preset, an option, or their combination is refused."""


class CorpusError(MinigptError):
    """The text to train on is missing, unreadable, empty or not the one expected."""


class TokenizerError(MinigptError):
    """A vocabulary cannot be made, or a file does not hold one."""


class CheckpointError(MinigptError):
    """A checkpoint folder is missing, truncated, altered or foreign."""


class TrainingError(MinigptError):
    """A run cannot go on."""
