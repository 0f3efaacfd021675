"""docker-compose.yml as a user runs it, under a project name and on ports of its own."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import yaml

from tests.fleet.redis_server import free_port

ROOT = Path(__file__).parents[2]


class Compose:
    """A project of docker compose.

    Args:
        project: Its name.
    """

    def __init__(self, project: str) -> None:
        self.ports = {name: free_port() for name in ("MINIGPT_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")}
        self._command = [*compose_command(), f"--project-name={project}"]

    def run(self, *words: str) -> str:
        """Run a command of docker compose; return what it prints.

        Raises:
            AssertionError: it fails; says what it said.
        """
        environment = os.environ | {name: str(port) for name, port in self.ports.items()}
        return _run(*self._command, *words, environment=environment)

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's containers."""
        return self.run("ps", "-q", service).split()


def compose_command() -> list[str]:
    """Return how docker compose is called here: as a plugin of docker, or, before that, a program of its own."""
    plugin = ["docker", "compose"]
    return (
        plugin
        if subprocess.run([*plugin, "version"], capture_output=True, check=False).returncode == 0
        else ["docker-compose"]
    )


def why_not() -> str | None:
    """Return what is missing to build the images here; None: nothing."""
    if shutil.which("docker") is None or not _succeeds("docker", "info"):
        return "no docker engine"
    if shutil.which(compose_command()[0]) is None:
        return "no docker compose"
    missing = [image for image in ("python:3.11-slim-bookworm", "redis:7-bookworm") if not _is_at_hand(image)]
    return f"no image {', '.join(missing)}, and no registry to pull it from" if missing else None


def startable_services() -> list[str]:
    """Return the services that are built here or whose image can be had."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return [name for name, service in services.items() if "build" in service or _is_at_hand(service["image"])]


def inspect(container: str) -> dict:
    """Return what the engine knows of a container."""
    return json.loads(_run("docker", "inspect", container))[0]


def kill(container: str) -> None:
    """Kill a container as a lack of memory does: without a word to it."""
    _run("docker", "kill", container)


def _is_at_hand(image: str) -> bool:
    return _succeeds("docker", "image", "inspect", image) or _succeeds("docker", "pull", image)


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run(*command: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-4000:]}"
    return done.stdout
