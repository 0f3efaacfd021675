"""What `kubectl apply -k k8s/overlays/…` would apply: valid, and true to what the processes need."""

import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FLEETS = ["base", "overlays/cpu", "overlays/gpu", "overlays/autoscale"]
BESIDE = ["overlays/monitoring"]
CUSTOM = {"ScaledObject", "ServiceMonitor", "PodMonitor", "PrometheusRule"}
"""Kinds of operators, whose schemas are not Kubernetes' own."""

Resource = dict
Resources = dict[tuple[str, str], Resource]


@pytest.fixture(scope="module", params=[*FLEETS, *BESIDE])
def rendered(request) -> Resources:
    return render(request.param)


@pytest.fixture(scope="module", params=FLEETS)
def fleet(request) -> Resources:
    return render(request.param)


def render(folder: str) -> Resources:
    """Kind and name → resource, of a folder of k8s/."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    command = ["kubectl", "kustomize", ROOT / "k8s" / folder]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    resources = list(yaml.safe_load_all(text))
    by_name = {(resource["kind"], resource["metadata"]["name"]): resource for resource in resources}
    assert len(by_name) == len(resources)
    return by_name


def pods(resources: Resources) -> dict[str, dict]:
    """Name → specification of the pods, of everything that makes pods."""
    return {
        name: resource["spec"]["template"]["spec"]
        for (kind, name), resource in resources.items()
        if kind in {"Deployment", "StatefulSet"}
    }


def container(resources: Resources, name: str) -> dict:
    [only] = pods(resources)[name]["containers"]
    return only


def argument(resources: Resources, name: str, option: str) -> str:
    [value] = [word.partition("=")[2] for word in container(resources, name)["args"] if word.startswith(f"{option}=")]
    return value


def test_every_resource_is_valid(rendered):
    for (kind, _), resource in rendered.items():
        if kind not in CUSTOM:
            kubernetes_validate.validate(resource, "1.32", strict=True)


def test_everything_is_in_one_namespace(rendered):
    inside = [resource for (kind, _), resource in rendered.items() if kind != "Namespace"]
    assert {resource["metadata"].get("namespace") for resource in inside} == {"minigpt"}


def test_pods_may_next_to_nothing(fleet):
    for pod in pods(fleet).values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            allowed = container["securityContext"]
            assert allowed["readOnlyRootFilesystem"] is True
            assert allowed["allowPrivilegeEscalation"] is False
            assert allowed["capabilities"] == {"drop": ["ALL"]}


def test_every_account_is_a_pods_and_has_no_token(fleet):
    accounts = {name: resource for (kind, name), resource in fleet.items() if kind == "ServiceAccount"}
    assert accounts.keys() == {pod["serviceAccountName"] for pod in pods(fleet).values()}
    assert all(account["automountServiceAccountToken"] is False for account in accounts.values())


def test_images_are_pinned_and_of_this_version(fleet):
    version = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["worker"]["image"].partition(":")[2]
    for pod in pods(fleet).values():
        for container in pod["containers"]:
            name, _, tag = container["image"].partition(":")
            assert tag not in {"", "latest"}
            assert not name.startswith("minigpt") or tag.removesuffix("-cu130") == version


def test_every_container_is_probed_and_bounded(fleet):
    for pod in pods(fleet).values():
        for container in pod["containers"]:
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
            ports = {port["name"] for port in container["ports"]}
            probes = [container[name].get("httpGet") for name in ("startupProbe", "livenessProbe", "readinessProbe")]
            assert {probe["port"] for probe in probes if probe} <= ports


@pytest.mark.parametrize("name", ["minigpt-gateway", "minigpt-worker"])
def test_the_drain_fits_into_the_grace_period(fleet, name):
    hook = container(fleet, name).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["", "0"])
    needed = float(hook[1]) + float(argument(fleet, name, "--drain-s")) + 5
    assert pods(fleet)[name]["terminationGracePeriodSeconds"] > needed


def test_a_worker_has_its_pods_name_and_its_metrics_where_the_probes_look(fleet):
    worker = container(fleet, "minigpt-worker")
    assert argument(fleet, "minigpt-worker", "--name") == "$(POD_NAME)"
    sources = {variable["name"]: variable.get("valueFrom") for variable in worker["env"]}
    assert sources["POD_NAME"]["fieldRef"]["fieldPath"] == "metadata.name"
    [port] = worker["ports"]
    assert argument(fleet, "minigpt-worker", "--metrics-port") == str(port["containerPort"])


def test_gateways_ask_for_keys(fleet):
    assert "--keys=redis" in container(fleet, "minigpt-gateway")["args"]


def test_nobody_talks_to_anybody_by_default(fleet):
    policies = {name: resource["spec"] for (kind, name), resource in fleet.items() if kind == "NetworkPolicy"}
    assert policies["minigpt-deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_selectors_select_pods(fleet):
    """Of services, budgets, policies and spreads: a label that no pod has would protect or reach nothing, silently."""
    labels = [
        resource["spec"]["template"]["metadata"]["labels"]
        for (kind, _), resource in fleet.items()
        if kind in {"Deployment", "StatefulSet"}
    ]
    selectors = [
        resource["spec"]["selector"] if kind == "Service" else resource["spec"]["selector"]["matchLabels"]
        for (kind, _), resource in fleet.items()
        if kind in {"Service", "PodDisruptionBudget"}
    ]
    for selector in selectors:
        assert any(selector.items() <= pod.items() for pod in labels), selector


def test_who_scales_workers_is_not_the_manifest(fleet):
    assert "replicas" not in fleet["Deployment", "minigpt-worker"]["spec"]


def test_a_gpu_worker_has_a_gpu():
    worker = container(render("overlays/gpu"), "minigpt-worker")
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "--device=cuda" in worker["args"]
    assert worker["image"].endswith("-cu130")


def test_the_autoscaler_works_from_no_worker_on():
    """It asks the gateways, which are there, and which no missing worker makes unready."""
    resources = render("overlays/autoscale")
    scaler = resources["ScaledObject", "minigpt-worker"]["spec"]
    assert ("Deployment", scaler["scaleTargetRef"]["name"]) in resources
    assert scaler["minReplicaCount"] == 0
    service = resources["Service", "minigpt-gateway"]
    where = f"http://minigpt-gateway.minigpt.svc:{service['spec']['ports'][0]['port']}/metrics"
    for trigger in scaler["triggers"]:
        assert trigger["type"] == "metrics-api"
        assert trigger["metadata"]["url"] == where
        assert trigger["metadata"]["format"] == "prometheus"
        assert float(trigger["metadata"]["targetValue"]) > 0
    gateway = container(resources, "minigpt-gateway")
    assert gateway["readinessProbe"]["httpGet"]["path"] == "/livez"
    assert "--wait-for-workers" in gateway["args"]


def test_monitors_look_where_the_metrics_are():
    monitoring, fleet = render("overlays/monitoring"), render("overlays/cpu")
    service_monitor = monitoring["ServiceMonitor", "minigpt-gateway"]["spec"]
    service = fleet["Service", "minigpt-gateway"]
    assert service_monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service_monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    pod_monitor = monitoring["PodMonitor", "minigpt-worker"]["spec"]
    template = fleet["Deployment", "minigpt-worker"]["spec"]["template"]
    assert pod_monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert pod_monitor["podMetricsEndpoints"][0]["port"] == container(fleet, "minigpt-worker")["ports"][0]["name"]


def test_alerts_are_those_of_docker_compose():
    rule = render("overlays/monitoring")["PrometheusRule", "minigpt"]
    assert rule["spec"] == yaml.safe_load((ROOT / "monitoring" / "alerts.yml").read_text())
