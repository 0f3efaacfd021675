"""What the docs say is what the code has: links, options, status codes, metrics, the tests that hold an invariant."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector
from typer.core import TyperCommand, TyperGroup, TyperOption

from service.__main__ import app
from service.errors import ServiceError
from service.metrics import GatewayMetrics, WorkerMetrics

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PRESENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""What tells of the code as it is."""
REFERENCE = (ROOT / "docs" / "reference.md").read_text("utf-8")


def rows(pattern: str) -> list[tuple[str, ...]]:
    """The first cells of the rows of docs/reference.md that start with `pattern`, its groups as a tuple."""
    return re.findall(rf"^\| {pattern} \|", REFERENCE, re.MULTILINE)


OPTIONS = rows(r"`(--[a-z-]+)` \| ([^|]+) \| ([^|]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]*)(#[^)\s]+)?\)", page.read_text("utf-8"))
    ours = [(page.parent / path if path else page, anchor) for path, anchor in targets if "://" not in path]
    assert [path for path, _ in ours if not path.exists()] == []
    assert [(path.name, anchor) for path, anchor in ours if anchor and anchor not in anchors(path)] == []


def anchors(page: Path) -> set[str]:
    """What may follow the name of a page in a link: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(app: TyperGroup, path: str = "") -> Iterator[tuple[str, TyperCommand]]:
    """Every command that serves or looks after what serves, by what is typed."""
    for name, command in app.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path}{name} ")
        else:
            yield path + name, command


SERVICE = {
    name: command
    for name, command in commands(typer.main.get_command(app))
    if name.split()[0] in {"serve", "gateway", "worker", "queue", "keys"}
}


def default_of(option: TyperOption) -> str | None:
    """What the table says of an option that is left out; `None`: its own words."""
    return "required" if option.required else None if option.default is None else str(option.default)


@pytest.mark.parametrize("name", SERVICE)
def test_every_option_stands_with_its_default(name):
    options = [option for option in SERVICE[name].params if option.param_type_name == "option"]
    told = {option: default for option, default, of in OPTIONS if name in of.split(", ")}
    assert told.keys() == {option.opts[0] for option in options}
    for option in options:
        assert default_of(option) in (None, told[option.opts[0]])


def test_every_option_is_some_commands():
    assert {name for _, _, of in OPTIONS for name in of.split(", ")} == SERVICE.keys()


def test_every_error_stands_with_its_status():
    kinds = {ServiceError, *ServiceError.__subclasses__()}
    assert sorted(rows(r"(\d{3}) \| `(\w+)`")) == sorted((str(kind.status), kind.code) for kind in kinds)


def test_every_metric_stands_with_its_labels():
    gateway, worker = CollectorRegistry(), CollectorRegistry()
    GatewayMetrics(gateway, ["m"])
    WorkerMetrics(worker, "m")
    metrics = [metric for registry in (gateway, worker) for metric in registry._collector_to_names]
    assert sorted(rows(r"`(minigpt_\w+)` \| ([\w, ]*)")) == sorted(map(name_and_labels, metrics))


def name_and_labels(metric: Collector) -> tuple[str, str]:
    [family] = metric.describe()
    return family.name + "_total" * (family.type == "counter"), ", ".join(metric._labelnames)


@pytest.mark.parametrize("page", PRESENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_is_named_exists(page):
    named = re.findall(r"`((?:service|training|tests|docs|k8s|monitoring)/[\w./-]+)`", page.read_text("utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_tree_of_modules_is_whole():
    [tree] = re.findall(
        r"^```text\n(.*?)^```", (ROOT / "docs" / "architecture.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    folders: list[str] = []
    listed = set()
    for line in tree.splitlines():
        folders[(len(line) - len(line.lstrip())) // 2 :] = [line.split()[0]]
        listed.add(ROOT.joinpath(*folders))
    assert [path for path in listed if not path.exists()] == []
    sources = {path for package in ("service", "training") for path in (ROOT / package).rglob("*.*")}
    modules = {
        path for path in sources if path.suffix in {".py", ".lua", ".cpp", ".hpp"} and path.name != "__init__.py"
    }
    assert modules - listed == set()


@pytest.mark.parametrize("page", ["architecture.md", "reliability.md"])
def test_every_test_that_is_named_exists(page):
    named = re.findall(r"\| ([\w/]+\.py): (`test_.*`) \|$", (ROOT / "docs" / page).read_text("utf-8"), re.MULTILINE)
    assert named
    for file, tests in named:
        source = (ROOT / "tests" / file).read_text("utf-8")
        assert [test for test in re.findall(r"`(\w+)`", tests) if f"def {test}(" not in source] == []
