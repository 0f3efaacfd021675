"""What every table of settings is: frozen, typed, refusing unknown keys and bad values."""

from typing import Self

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen table of settings that refuses unknown keys and wrong types."""

    def replace(self, **changes: object) -> Self:
        """Return a copy with `changes`, checked again."""
        return msgspec.structs.replace(self, **changes)


def require(condition: bool, field: str, value: object, remedy: str) -> None:
    """Refuse `value` of `field` unless `condition` holds.

    Raises:
        ValueError: naming the field, the value and the remedy (msgspec adds the path and makes it a ValidationError).
    """
    if not condition:
        raise ValueError(f"{field} = {value!r}: {remedy}")


def option(help_: str) -> msgspec.Meta:
    """Make a field an option of the commands that take its table; `help_` is one line for `--help`."""
    return msgspec.Meta(description=help_)
