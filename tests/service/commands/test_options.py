"""Options come from the tables of settings: type, default and help stand there, and nowhere else."""

import itertools

import pytest
import typer

from service.__main__ import app
from service.commands.options import with_settings
from service.config import EngineSettings, GatewaySettings, LogSettings, QueueSettings, WorkerSettings

TABLES = (GatewaySettings, QueueSettings, EngineSettings, WorkerSettings, LogSettings)
TAKEN = {
    "serve": TABLES,
    "gateway": (GatewaySettings, QueueSettings, LogSettings),
    "worker": (EngineSettings, WorkerSettings, LogSettings),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_command_has_the_options_of_its_tables_with_their_defaults(name):
    parameters = {parameter.name: parameter for parameter in typer.main.get_command(app).commands[name].params}
    for table in TAKEN[name]:
        described = {field for field, hint in table.__annotations__.items() if hasattr(hint, "__metadata__")}
        assert described <= parameters.keys()
        for field in described:
            assert parameters[field].default == getattr(table(), field)
            assert parameters[field].help


def test_a_field_that_is_in_two_tables_has_one_default():
    for one, other in itertools.combinations(TABLES, 2):
        for field in set(one.__struct_fields__) & set(other.__struct_fields__):
            assert getattr(one(), field) == getattr(other(), field)


def test_such_a_field_is_one_option_and_both_tables_get_its_value():
    taken = {}

    def command(*, gateway: GatewaySettings, worker: WorkerSettings, extra: int = 3) -> None:
        taken.update(gateway=gateway, worker=worker, extra=extra)

    tool = typer.Typer()
    tool.command()(with_settings(command))
    runnable = typer.main.get_command(tool)
    assert [parameter.name for parameter in runnable.params].count("drain_s") == 1
    runnable.main(["--drain-s=7", "--wait-for-workers", "--extra=4"], standalone_mode=False)
    assert (taken["gateway"].drain_s, taken["worker"].drain_s, taken["extra"]) == (7.0, 7.0, 4)
    assert taken["gateway"].wait_for_workers
    with pytest.raises(Exception, match="No such option"):
        runnable.main(["--no-wait-for-workers"], standalone_mode=False)


@pytest.mark.parametrize("option", ["--dtype=fp8", "--kernels=some", "--log-level=loud", "--port=99999"])
def test_a_value_that_is_none_is_refused_in_one_line(refused, option):
    field, value = option.removeprefix("--").split("=")
    line = refused("serve", option)
    assert field.replace("-", "_") in line
    assert value in line
