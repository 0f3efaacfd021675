"""A peer in its own process does the same work as our engine, and says in one line why it cannot."""

import dataclasses
import sys
from pathlib import Path

import pytest

from service.bench.offline import OfflineEngine
from service.bench.peers.choice import choose_peers
from service.bench.peers.process import start_peer
from service.bench.workload import Workload
from service.config import EngineSettings
from service.engine.loading import load_engine
from service.errors import SettingError
from service.protocol import Claim
from tests.checkpoints import save_untrained
from tests.service.engine.stepping import finish
from training.errors import CheckpointError


def answers_of_engine(workload: Workload, settings: EngineSettings, count: int) -> list[list[int]]:
    requests = workload.requests(count)
    answers = finish(load_engine(workload.folder, settings), *(Claim(request=each, epoch=1) for each in requests))
    return [answers[request.id] for request in requests]


def test_transformers_and_engine_write_the_same(workload, settings):
    info = OfflineEngine(workload.folder, settings).info
    [choice] = choose_peers(["transformers"], [])
    with start_peer(choice, workload, info, 3) as peer:
        answer = peer.generate(workload.requests(3))
        again = peer.run(workload.requests(1))
    assert peer.name == "transformers:fp32"
    assert peer.version
    assert answer.token_ids == answers_of_engine(workload, settings, 3)
    assert len(answer.step_s) == 19
    assert sum(answer.step_s) < answer.seconds
    assert again.tokens == 20


def test_a_model_of_a_foreign_layout_is_refused(workload, settings, make_gpt, tmp_path):
    model = make_gpt(position="learned", vocab_size=64)
    folder = save_untrained(tmp_path / "foreign", model, workload.tokenizer)
    info = OfflineEngine(folder, settings).info
    for engine in ("transformers", "llama.cpp"):
        [choice] = choose_peers([engine], [])
        with (
            pytest.raises((SettingError, CheckpointError)) as caught,
            start_peer(choice, dataclasses.replace(workload, folder=folder), info, 1),
        ):
            pass
        assert "\n" not in str(caught.value)


def test_a_python_without_the_peer_is_told(workload, settings):
    info = OfflineEngine(workload.folder, settings).info
    [choice] = choose_peers(["vllm"], [])
    with pytest.raises(SettingError, match=r"--against vllm:fp32: .*vllm.*none"), start_peer(choice, workload, info, 1):
        pass


@pytest.mark.parametrize(("script", "words"), [("exit 3", "it said nothing"), ("echo no room >&2; exit 1", "no room")])
def test_a_peer_that_dies_is_told(workload, settings, tmp_path: Path, script, words):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    info = OfflineEngine(workload.folder, settings).info
    [choice] = choose_peers(["transformers"], [str(python)])
    with pytest.raises(SettingError, match=words), start_peer(choice, workload, info, 1):
        pass


def test_peers_are_chosen_with_arithmetic_and_python():
    peers = choose_peers(["transformers,llama.cpp", "llama.cpp:int8"], ["/a/python", "llama.cpp=/b/python"])
    assert [(peer.engine, peer.dtype, peer.python) for peer in peers] == [
        ("transformers", None, "/a/python"),
        ("llama.cpp", None, "/b/python"),
        ("llama.cpp", "int8", "/b/python"),
    ]
    assert [peer.dtype_beside("int8") for peer in peers] == ["bf16", "int8", "int8"]
    assert [peer.dtype_beside("fp32") for peer in peers] == ["fp32", "fp32", "int8"]
    assert choose_peers(["none"], []) == []
    assert [(peer.engine, peer.python) for peer in choose_peers(["auto"], [])] == [("transformers", sys.executable)]


@pytest.mark.parametrize(
    ("against", "pythons"), [(["abacus"], []), (["vllm:int8"], []), (["none,vllm"], []), (["vllm"], ["abacus=/bin/x"])]
)
def test_no_such_peer(against, pythons):
    with pytest.raises(SettingError, match=r"--(against|peer-python)"):
        choose_peers(against, pythons)


def test_no_such_python(workload, settings):
    info = OfflineEngine(workload.folder, settings).info
    [choice] = choose_peers(["vllm"], ["/nowhere/python"])
    with pytest.raises(SettingError, match="--peer-python /nowhere/python"), start_peer(choice, workload, info, 1):
        pass
