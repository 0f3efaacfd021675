"""Both sides of `bench engine` do the same work: same weights, same prompts, same answers."""

import dataclasses

import pytest
import torch

from service.bench.offline import OfflineEngine
from service.bench.subject import Subject, open_subject, read_shape
from service.bench.transformers_peer import TransformersPeer
from service.config import EngineSettings
from service.engine.loading import load_engine
from service.errors import SettingError
from service.protocol import Claim

SETTINGS = EngineSettings(device="cpu", dtype="fp32", page_size=4)


@pytest.fixture(scope="module")
def subject():
    with open_subject("2x32", 64, prompt_tokens=7, max_tokens=20) as opened:
        yield opened


def answers_of_engine(subject: Subject, count: int) -> list[list[int]]:
    engine = load_engine(subject.folder, SETTINGS)
    answers = {request.id: [] for request in subject.requests(count)}
    for request in subject.requests(count):
        engine.add(Claim(request=request, epoch=1))
    while engine.has_work:
        for output in engine.step():
            answers[output.id] += output.token_ids
    return list(answers.values())


def test_transformers_and_engine_write_the_same(subject):
    peer = TransformersPeer(subject.folder, torch.device("cpu"), torch.float32)
    assert peer.generate(subject.requests(3)) == answers_of_engine(subject, 3)


def test_requests_are_the_same_each_time_and_differ_among_themselves(subject):
    first, again = subject.requests(4), subject.requests(4)
    assert first == again
    assert len({request.token_ids for request in first}) == 4
    assert all(len(request.token_ids) == 7 for request in first)
    assert not subject.tokenizer.special_ids & {id_ for request in first for id_ in request.token_ids}


def test_more_requests_than_streams_are_all_computed(subject):
    run = OfflineEngine(subject.folder, SETTINGS).run(subject.requests(5), streams=2)
    assert run.tokens == 5 * 20


def test_two_streams_hold_twice_the_keys_and_values_of_one(subject):
    engine = OfflineEngine(subject.folder, SETTINGS)
    one, two = (engine.run(subject.requests(2), streams).kv_cache_peak_bytes for streams in (1, 2))
    assert two == 2 * one <= engine.kv_cache_bytes


def test_what_does_not_fit_the_context_is_refused(subject):
    engine = OfflineEngine(subject.folder, SETTINGS)
    too_long = dataclasses.replace(subject, prompt_tokens=250).requests(1)
    with pytest.raises(SettingError, match="--prompt-tokens"):
        engine.run(too_long, 1)


@pytest.mark.parametrize(("shape", "heads", "width"), [("6x384", 6, 64), ("2x32", 1, 32), ("4x200", 3, 64)])
def test_a_shape_has_heads_of_64(shape, heads, width):
    config = read_shape(shape, 1024, 128)
    assert (config.n_head, config.head_width, config.context_length) == (heads, width, 256)
