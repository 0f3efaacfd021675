"""Logs on standard error: readable lines, or a JSON object a line.

Never a prompt: of an exception only its kind and its place are written, for its message may quote one.
"""

import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType

import msgspec

from service.config import LogFormat, LogLevel

FIELDS = ("request_id", "worker")
"""What a call may add by `extra=`; other extras are not written."""

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def configure_logging(level: LogLevel, log_format: LogFormat) -> None:
    """Log everything from `level` on, of libraries warnings only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else PlainFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("service").setLevel(level.upper())


class PlainFormatter(logging.Formatter):
    """`12:30:00 warning service.worker.supervisor: message request_id=…`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, and after it the places of an exception."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        line = f"{time} {record.levelname.lower()} {record.name}: {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802 - logging's name
        """Return the kind of an exception and where it came up."""
        kind, _, trace = ei
        return "".join([*traceback.format_tb(trace), kind.__name__ if kind else ""])


class JsonFormatter(PlainFormatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(content).decode()


def _fields(record: logging.LogRecord) -> dict[str, str]:
    return {name: str(value) for name in FIELDS if (value := getattr(record, name, None)) is not None}
