"""What alerts, dashboard and autoscaler ask for is what the service counts, and every alert is explained."""

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from service.errors import ServiceError
from service.metrics import GatewayMetrics, WorkerMetrics

ROOT = Path(__file__).parents[2]
ALERTS = yaml.safe_load((ROOT / "monitoring" / "alerts.yml").read_text())["groups"][0]["rules"]
ASKING = ["monitoring/alerts.yml", "monitoring/grafana/minigpt.json", "k8s/overlays/autoscale/scaled-object.yaml"]


def counted() -> set[str]:
    """Every name under which Prometheus knows a series of ours."""
    registries = CollectorRegistry(), CollectorRegistry()
    GatewayMetrics(registries[0], ["m"])
    WorkerMetrics(registries[1], "m")
    families = [family for registry in registries for family in registry.collect()]
    endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
    return {family.name + ending for family in families for ending in endings[family.type]}


@pytest.mark.parametrize("file", ASKING)
def test_what_is_asked_for_is_counted(file):
    asked = set(re.findall(r"\bminigpt_\w+", (ROOT / file).read_text()))
    assert asked
    assert asked - counted() == set()


def test_errors_in_alerts_are_codes():
    codes = {kind.code for kind in (ServiceError, *ServiceError.__subclasses__())}
    named = re.findall(r'error=~?"([^"]+)"', "".join(alert["expr"] for alert in ALERTS))
    assert {code for names in named for code in names.split("|")} <= codes


def test_every_alert_is_explained():
    operations = (ROOT / "docs" / "operations.md").read_text("utf-8")
    assert re.findall(r"^\| `(Minigpt\w+)` \|", operations, re.MULTILINE) == [alert["alert"] for alert in ALERTS]


def test_every_panel_is_reachable_and_none_covers_another():
    panels = json.loads((ROOT / "monitoring" / "grafana" / "minigpt.json").read_text())["panels"]
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_one_version_everywhere():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    named = [
        tag
        for file in ("Dockerfile", "docker-compose.yml", *map(str, (ROOT / "k8s").rglob("*.yaml")))
        for tag in re.findall(r"minigpt-(?:gateway|worker):([\d.]+\d)", (ROOT / file).read_text())
    ]
    assert set(named) == {version}
