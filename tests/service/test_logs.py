"""Logs: one line a record, with its ids; of an exception its kind and place, never its words."""

import json
import logging
import sys

import pytest

from service.logs import JsonFormatter, PlainFormatter

PROMPT = "the secret prompt"


def make_record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    record = logging.makeLogRecord(
        {"name": "service.worker.worker", "levelno": logging.WARNING, "levelname": "WARNING"}
    )
    record.msg, record.args, record.created = message, args, 1_700_000_000.5
    record.__dict__.update(extra)
    return record


def failed_record() -> logging.LogRecord:
    try:
        raise ValueError(PROMPT)
    except ValueError:
        return make_record("it failed", exc_info=sys.exc_info())


def test_json_is_one_object_with_the_ids_and_nothing_else():
    line = JsonFormatter().format(make_record('said "%s"\n', "no", request_id="r1", prompt=PROMPT))
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.500000+00:00",
        "level": "warning",
        "logger": "service.worker.worker",
        "message": 'said "no"\n',
        "request_id": "r1",
    }
    assert "\n" not in line


def test_a_plain_line_reads_well():
    line = PlainFormatter().format(make_record("dropped: %s", "cancel", request_id="r1"))
    assert line.endswith(" warning service.worker.worker: dropped: cancel request_id=r1")


@pytest.mark.parametrize("formatter", [PlainFormatter(), JsonFormatter()])
def test_an_exceptions_words_stay_out(formatter):
    line = formatter.format(failed_record())
    assert "ValueError" in line
    assert "failed_record" in line
    assert PROMPT not in line.replace("raise ValueError(PROMPT)", "")
