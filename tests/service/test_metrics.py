"""Figures by name; several processes add up; a dead worker leaves no gauge behind."""

import subprocess
import sys
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry, generate_latest

from service.errors import QueueFull
from service.metrics import GatewayMetrics, WorkerMetrics
from service.protocol import End, QueueStats

WORKER = """
from prometheus_client import CollectorRegistry
from service.metrics import WorkerMetrics
metrics = WorkerMetrics(CollectorRegistry(), "tiny")
metrics.step(0.002, 4, {usage}, num_preempted=2, num_queried_tokens=40, num_found_tokens=16)
import os
print(os.getpid())
"""
GATEWAY = """
import sys
from prometheus_client import CollectorRegistry
from service.metrics import GatewayMetrics, forget_process
metrics = GatewayMetrics(CollectorRegistry(), ["tiny"])
metrics.models["tiny"].start(3, 0.01)
for pid in sys.argv[1:]:
    forget_process(int(pid))
sys.stdout.write(metrics.render().decode())
"""


def run(script: str, folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_figures_of_several_processes_come_together(tmp_path):
    pids = [run(WORKER.format(usage=usage), tmp_path).strip() for usage in (0.25, 0.75)]
    lines = run(GATEWAY, tmp_path).splitlines()
    assert 'minigpt_step_seconds_count{model="tiny"} 2.0' in lines
    assert 'minigpt_batch_size_sum{model="tiny"} 8.0' in lines
    assert 'minigpt_preemptions_total{model="tiny"} 4.0' in lines
    assert 'minigpt_prefix_cache_queries_total{model="tiny"} 80.0' in lines
    assert 'minigpt_prefix_cache_hits_total{model="tiny"} 32.0' in lines
    assert 'minigpt_kv_cache_usage_ratio{model="tiny"} 0.75' in lines
    assert 'minigpt_generated_tokens_total{model="tiny"} 3.0' in lines

    lines = run(GATEWAY, tmp_path, *pids).splitlines()
    assert not any(line.startswith("minigpt_kv_cache_usage_ratio{") for line in lines)
    assert 'minigpt_preemptions_total{model="tiny"} 4.0' in lines


def test_a_worker_alone_has_its_figures_in_its_own_registry():
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry, "tiny")
    metrics.step(0.0002, 1, 0.5)
    text = generate_latest(registry).decode()
    assert 'minigpt_step_seconds_bucket{le="0.0001",model="tiny"} 0.0' in text
    assert 'minigpt_step_seconds_bucket{le="0.00025",model="tiny"} 1.0' in text
    assert 'minigpt_kv_cache_usage_ratio{model="tiny"} 0.5' in text


def test_depth_and_workers_are_those_of_the_queue():
    metrics = GatewayMetrics(CollectorRegistry(), ["tiny"])
    metrics.observe_queue(QueueStats(waiting=3, running=2, waiting_tokens=70, workers=1, drain_tokens_per_s=9.0))
    text = metrics.render().decode()
    for line in ("requests_waiting 3.0", "requests_running 2.0", "queue_tokens 70.0", "workers 1.0"):
        assert f"minigpt_{line}\n" in text


def test_a_queue_that_cannot_be_reached_is_told_and_leaves_its_last_figures():
    metrics = GatewayMetrics(CollectorRegistry(), ["tiny"])
    metrics.observe_queue(QueueStats(waiting=3, running=2, waiting_tokens=70, workers=1, drain_tokens_per_s=9.0))
    assert "minigpt_queue_up 1.0\n" in metrics.render().decode()
    metrics.observe_queue(None)
    text = metrics.render().decode()
    assert "minigpt_queue_up 0.0\n" in text
    assert "minigpt_requests_waiting 3.0\n" in text


def test_what_the_queue_counts_is_shown_once_however_often_it_is_read():
    metrics = GatewayMetrics(CollectorRegistry(), ["tiny"])
    stats = QueueStats(waiting=0, running=0, waiting_tokens=0, workers=1, drain_tokens_per_s=0.0, resumed=2, fenced=5)
    later = msgspec.structs.replace(stats, resumed=3, quarantined=1)
    for seen in (stats, stats, later):
        metrics.observe_queue(seen)
    text = metrics.render().decode()
    for line in ("requests_resumed_total 3.0", "fenced_emits_total 5.0", "requests_quarantined_total 1.0"):
        assert f"minigpt_{line}\n" in text


def test_a_queue_that_counts_from_nothing_again_takes_nothing_back():
    metrics = GatewayMetrics(CollectorRegistry(), ["tiny"])
    stats = QueueStats(waiting=0, running=0, waiting_tokens=0, workers=1, drain_tokens_per_s=0.0)
    for resumed in (5, 2, 3):
        metrics.observe_queue(msgspec.structs.replace(stats, resumed=resumed))
    assert "minigpt_requests_resumed_total 8.0\n" in metrics.render().decode()


def test_tokens_that_come_together_share_their_latency():
    metrics = GatewayMetrics(CollectorRegistry(), ["tiny"])
    metrics.models["tiny"].go_on(4, 0.02)
    assert 'minigpt_inter_token_latency_seconds_sum{model="tiny"} 0.005' in metrics.render().decode()


def test_labels_are_closed_sets():
    metrics = GatewayMetrics(CollectorRegistry(), ["tiny"])
    metrics.receive("other", "INVENTED")
    metrics.fail(QueueFull("full"))
    metrics.models["tiny"].end(End(finish_reason="length"), 3, 0.1, 0.2)
    text = metrics.render().decode()
    assert "INVENTED" not in text
    assert 'minigpt_request_failures_total{error="queue_full"} 1.0' in text
    assert 'minigpt_requests_total{finish_reason="length",model="tiny"} 1.0' in text
    assert 'minigpt_requests_total{finish_reason="stop",model="tiny"} 0.0' in text
