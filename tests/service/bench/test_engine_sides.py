"""What `bench engine` measures: requests that help nobody, counts that are the model's, memory that is really held."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.bench.costs import count_costs
from service.bench.gpt_beside import open_gpt_beside
from service.bench.limits import Limits, measure_limits
from service.bench.offline import OfflineEngine
from service.bench.workload import FAMILIES, open_workload, read_shape
from service.errors import SettingError
from training.checkpoint import load_checkpoint
from training.models.base import SlotSpec
from training.models.families import AnyModel, make_model
from training.models.gpt import GPT


@pytest.fixture
def model_of_each(family, make_model_of) -> AnyModel:
    return make_model_of(family)


def test_requests_are_the_same_each_time_and_differ_among_themselves(workload):
    first, again, later = workload.requests(4), workload.requests(4), workload.requests(4, seed=1)
    assert first == again
    assert len({request.token_ids for request in first + later}) == 8
    assert all(len(request.token_ids) == 7 for request in first)
    assert not workload.tokenizer.special_ids & {id_ for request in first for id_ in request.token_ids}


@given(streams=st.integers(1, 9), rounds=st.integers(0, 5), rest=st.integers(0, 8))
def test_streams_start_and_end_with_shorter_answers(workload, streams, rounds, rest):
    count = max(1, streams * rounds + rest)
    lengths = [request.params.max_tokens for request in workload.stream_requests(streams, count)]
    assert len(lengths) == count
    assert all(1 <= length <= workload.max_tokens for length in lengths)
    first, middle = lengths[:streams], lengths[streams : max(streams, count - streams)]
    assert first == sorted(first)
    assert set(middle) <= {workload.max_tokens}
    if count >= 2 * streams:
        last = lengths[-streams:]
        assert last == sorted(last, reverse=True)
        both = workload.max_tokens * (streams + 1) / streams
        assert all(abs(a + b - both) <= 1 for a, b in zip(first, last, strict=True))


def test_more_requests_than_streams_are_all_computed(workload, settings):
    run = OfflineEngine(workload.folder, settings).run(workload.requests(5), streams=2)
    assert run.tokens == 5 * 20


def test_two_streams_hold_twice_the_keys_and_values_of_one(workload, settings):
    engine = OfflineEngine(workload.folder, settings)
    one, two = (engine.run(workload.requests(2, seed=streams), streams).kv_cache_peak_bytes for streams in (1, 2))
    assert two == 2 * one <= engine.info.kv_cache_bytes


def test_what_does_not_fit_the_context_is_refused(workload, settings):
    engine = OfflineEngine(workload.folder, settings)
    too_long = dataclasses.replace(workload, prompt_tokens=250).requests(1)
    with pytest.raises(SettingError, match="--prompt-tokens"):
        engine.run(too_long, 1)


@pytest.mark.parametrize(("shape", "heads", "width"), [("6x384", 6, 64), ("2x32", 1, 32), ("4x200", 3, 64)])
def test_a_shape_has_heads_of_64(shape, heads, width):
    config = read_shape(shape, 1024, 128)
    assert (config.n_head, config.head_width, config.context_length) == (heads, width, 256)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shape_of_any_family_has_its_layers_and_width(family):
    config = read_shape(f"{family}:3x48", 64, 128)
    layers = [parameter for parameter in make_model(config).parameters() if 48 in parameter.shape]
    assert (config.n_layer, config.vocab_size) == (3, 64)
    assert len(layers) >= 3


@pytest.mark.parametrize("shape", ["gru:2", "2x", "transformer:2x32", "conv:0x32"])
def test_what_is_no_shape_is_refused(shape):
    with pytest.raises(SettingError, match=f"--shape {shape}: "):
        read_shape(shape, 64, 128)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_costs_are_those_of_the_model(model_of_each: AnyModel, dtype: str):
    costs, model = count_costs(model_of_each.config, dtype), model_of_each
    tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    beside = {id(weight) for weight in (*tables, model.lm_head.weight)}
    layers = [weight for weight in model.parameters() if weight.dim() == 2 and id(weight) not in beside]
    assert costs.layer_weights == sum(weight.numel() for weight in layers)
    assert costs.head_weights == model.lm_head.weight.numel()
    spec, number_bytes = model.state_spec, 4 if dtype == "fp32" else 2
    if isinstance(spec, SlotSpec):
        assert (costs.slot_bytes, costs.kv_bytes) == (number_bytes * sum(map(math.prod, spec.shapes.values())), 0)
    else:
        kv_bytes = number_bytes * 2 * spec.n_layer * spec.n_kv_head * spec.head_dim
        assert (costs.slot_bytes, costs.kv_bytes) == (0, kv_bytes)


def test_beside_another_family_stands_a_gpt_of_its_size_and_vocabulary():
    with (
        open_workload("lstm:2x96", 64, prompt_tokens=7, max_tokens=20) as workload,
        open_gpt_beside(workload) as folder,
    ):
        gpt, lstm = load_checkpoint(folder), load_checkpoint(workload.folder)
        assert isinstance(gpt.model, GPT)
        assert not workload.is_gpt
        assert gpt.manifest.num_parameters == pytest.approx(lstm.manifest.num_parameters, rel=0.3)
        assert gpt.tokenizer.end_of_text_id == workload.tokenizer.end_of_text_id


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
