"""What `bench engine` measures: requests that help nobody, counts that are the model's, memory that is really held."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.bench.costs import count_costs
from service.bench.limits import Limits, measure_limits
from service.bench.offline import OfflineEngine
from service.bench.subject import read_shape
from service.errors import SettingError
from training.models.gpt import GPT


def test_requests_are_the_same_each_time_and_differ_among_themselves(subject):
    first, again, later = subject.requests(4), subject.requests(4), subject.requests(4, seed=1)
    assert first == again
    assert len({request.token_ids for request in first + later}) == 8
    assert all(len(request.token_ids) == 7 for request in first)
    assert not subject.tokenizer.special_ids & {id_ for request in first for id_ in request.token_ids}


@given(streams=st.integers(1, 9), rounds=st.integers(0, 5), rest=st.integers(0, 8))
def test_streams_start_and_end_with_shorter_answers(subject, streams, rounds, rest):
    count = max(1, streams * rounds + rest)
    lengths = [request.params.max_tokens for request in subject.stream_requests(streams, count)]
    assert len(lengths) == count
    assert all(1 <= length <= subject.max_tokens for length in lengths)
    first, middle = lengths[:streams], lengths[streams : max(streams, count - streams)]
    assert first == sorted(first)
    assert set(middle) <= {subject.max_tokens}
    if count >= 2 * streams:
        last = lengths[-streams:]
        assert last == sorted(last, reverse=True)
        both = subject.max_tokens * (streams + 1) / streams
        assert all(abs(a + b - both) <= 1 for a, b in zip(first, last, strict=True))


def test_more_requests_than_streams_are_all_computed(subject, settings):
    run = OfflineEngine(subject.folder, settings).run(subject.requests(5), streams=2)
    assert run.tokens == 5 * 20


def test_two_streams_hold_twice_the_keys_and_values_of_one(subject, settings):
    engine = OfflineEngine(subject.folder, settings)
    one, two = (engine.run(subject.requests(2, seed=streams), streams).kv_cache_peak_bytes for streams in (1, 2))
    assert two == 2 * one <= engine.info.kv_cache_bytes


def test_what_does_not_fit_the_context_is_refused(subject, settings):
    engine = OfflineEngine(subject.folder, settings)
    too_long = dataclasses.replace(subject, prompt_tokens=250).requests(1)
    with pytest.raises(SettingError, match="--prompt-tokens"):
        engine.run(too_long, 1)


@pytest.mark.parametrize(("shape", "heads", "width"), [("6x384", 6, 64), ("2x32", 1, 32), ("4x200", 3, 64)])
def test_a_shape_has_heads_of_64(shape, heads, width):
    config = read_shape(shape, 1024, 128)
    assert (config.n_head, config.head_width, config.context_length) == (heads, width, 256)


def test_costs_are_those_of_the_model(gpt: GPT):
    costs = count_costs(gpt.config, "bf16")
    layers = [module for module in gpt.model.modules() if isinstance(module, torch.nn.Linear)]
    assert costs.layer_weights == sum(layer.weight.numel() for layer in layers)
    assert costs.head_weights == gpt.lm_head.weight.numel()
    spec = gpt.state_spec
    assert costs.kv_bytes == 2 * 2 * spec.n_layer * spec.n_kv_head * spec.head_dim


def test_work_grows_with_the_batch_and_weights_are_read_once(gpt: GPT):
    costs = count_costs(gpt.config, "int8")
    assert costs.flops(3, 5, 4) == 3 * costs.flops(1, 5, 4)
    assert costs.flops(1, 1, 1) == 2 * (costs.layer_weights + costs.head_weights)
    both, one = costs.step_bytes(2, 5, 4), costs.step_bytes(1, 5, 4)
    assert both - one == costs.kv_bytes * 7
    assert 2 * one - both == costs.layer_weights + costs.head_weights


@pytest.mark.parametrize(("dtype", "measured"), [("fp32", "float32"), ("bf16", "bfloat16"), ("int8", "bfloat16")])
def test_limits_are_measured_in_the_arithmetic_of_the_engine(dtype, measured):
    limits = measure_limits(dtype, torch.device("cpu"))
    assert limits.dtype == measured
    assert limits.flops > 0
    assert limits.read_bytes > 0


def test_the_better_of_two_measurements_counts():
    one, two = (Limits(dtype="float32", flops=f, read_bytes=r) for f, r in ((5.0, 1.0), (3.0, 4.0)))
    assert one.best(two) == two.best(one) == Limits(dtype="float32", flops=5.0, read_bytes=4.0)
