"""Each runner computes every value of every field of every family's config as the plain module does, or refuses it."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from service.config import EngineSettings
from service.engine.backends import choose
from service.engine.backends.base import Backend
from service.engine.backends.choose import choose_backend, why_not_native
from service.engine.kernels.library import best_level
from service.engine.scheduler import ScheduledChunk
from service.engine.sequence import Sequence
from service.errors import SettingError
from service.protocol import Claim
from tests.every_config import EVERY, shape_of
from training.models.families import AnyModel, make_model
from training.tokenizers.char import CharTokenizer

MakeModel = Callable[..., AnyModel]
MakeClaim = Callable[..., Claim]
KINDS = {
    "native": {"kernels": "native", "dtype": "fp32", "page_size": 16},
    "torch": {"kernels": "torch", "dtype": "fp32", "page_size": 4},
}
LENGTH = 30
CASES = [(*case, kind) for case in EVERY for kind in (*KINDS, "graphs") if case[0] == "gpt" or kind != "graphs"]
"""The other families have no graphs."""


@pytest.fixture
def logits_of(tokenizer: CharTokenizer, make_claim: MakeClaim) -> Callable[[Backend], Tensor]:
    def run(backend: Backend) -> Tensor:
        sequence = Sequence(make_claim("a", range(LENGTH), prompt_logprobs=True, logprobs=0), tokenizer, 0.0)
        assert backend.pool.admit(sequence)
        return backend.runner.run([ScheduledChunk(sequence, LENGTH)])

    return run


@pytest.mark.parametrize(("family", "field", "value", "kind"), CASES)
def test_a_runner_computes_it_or_refuses_it_by_name(
    make_model_of: MakeModel,
    make_graph_runner: Callable[..., object],
    tokenizer: CharTokenizer,
    logits_of: Callable[[Backend], Tensor],
    family: str,
    field: str,
    value: object,
    kind: str,
) -> None:
    model = make_model_of(family, **shape_of(family, field, value))
    if kind == "native" and best_level() is None:
        pytest.skip("no native kernels: the package was installed without a C++ compiler")
    with torch.inference_mode():
        plain = model(torch.arange(LENGTH)[None])[0]
    settings = EngineSettings(device="cpu", max_num_seqs=1, max_step_tokens=LENGTH, **KINDS.get(kind, KINDS["torch"]))
    if kind == "native" and (obstacle := why_not_native(model, 16)):
        assert f"{field} = {value!r}" in obstacle
        with pytest.raises(SettingError, match=re.escape(obstacle)):
            choose_backend(model, tokenizer, settings, num_pages=16)
        return
    backend = choose_backend(model, tokenizer, settings, num_pages=16)
    if kind == "graphs":
        backend = backend._replace(runner=make_graph_runner(model, 16, 4))
    torch.testing.assert_close(logits_of(backend), plain, rtol=0, atol=1e-5 * max(1.0, plain.abs().max().item()))


@pytest.mark.parametrize(("family", "field"), [("gpt", "norm"), ("lstm", "cell"), ("conv", "kernel_size")])
def test_a_field_that_the_kernels_do_not_know_is_refused(
    make_model_of: MakeModel, monkeypatch: pytest.MonkeyPatch, family: str, field: str
) -> None:
    """As a field that is new would be: nobody has listed it yet."""
    value = next(value for of, name, value in EVERY if (of, name) == (family, field))
    model = make_model_of(family, **shape_of(family, field, value))
    config = type(model.config)
    if family != "gpt":
        assert why_not_native(model, 16) is None
        monkeypatch.setitem(choose._COMPUTED, config, choose._COMPUTED[config] - {field})
    assert f"{field} = {value!r}" in (why_not_native(model, 16) or "")


@pytest.mark.parametrize("field", ["activation", "gate_activation"])
def test_a_name_that_the_kernels_do_not_know_is_refused(
    make_model_of: MakeModel, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    model = make_model_of("conv", n_embd=32, n_hidden=48, **{field: "silu"})
    assert why_not_native(model, 16) is None
    monkeypatch.setitem(choose._NAMED, field, ("tanh", "sigmoid"))
    assert f"{field} = 'silu'" in (why_not_native(model, 16) or "")


@pytest.mark.skipif(best_level() is None, reason="no native kernels: installed without a C++ compiler")
@pytest.mark.parametrize("family", ["gpt", "lstm", "mlp", "conv"])
def test_a_parameter_that_the_kernels_do_not_read_is_refused(
    make_model_of: MakeModel, tokenizer: CharTokenizer, family: str
) -> None:
    """As of a model that has learned something new, of which the config says nothing."""
    model = make_model_of(family, n_embd=32, n_hidden=48)
    model.get_submodule("lm_head").register_parameter("soft_cap", torch.nn.Parameter(torch.ones(1)))
    settings = EngineSettings(kernels="native", device="cpu", max_num_seqs=1, max_step_tokens=8)
    with pytest.raises(SettingError, match=r"do not read lm_head\.soft_cap of this model; choose --kernels torch"):
        choose_backend(model, tokenizer, settings, num_pages=4)
    assert make_model(model.config).state_dict().keys() | {"lm_head.soft_cap"} == model.state_dict().keys()
