import itertools
from collections.abc import Callable, Iterable

import pytest
from torch import Tensor

from service.config import EngineSettings
from service.engine.backends.cuda_graphs import GraphRunner, Step
from service.engine.backends.paged_kv import Attention, PagedKV, PagedState
from service.engine.engine import Engine
from service.engine.kernels.library import best_level
from service.engine.loading import make_engine
from service.protocol import Claim
from tests.claims import make_request
from tests.conftest import SHAPES, SLOT_FAMILIES
from training.models.families import AnyModel
from training.models.gpt import GPT
from training.models.layouts import is_portable
from training.tokenizers.char import CharTokenizer

MakeEngine = Callable[..., Engine]
MakeGraphRunner = Callable[..., GraphRunner]
MakeModel = Callable[..., AnyModel]

WAYS = ("native", "torch", "graphs")
"""Of computing a GPT; the other families have no graphs."""
WAYS_OF_MODELS = [*itertools.product(WAYS, SHAPES), *itertools.product(WAYS[:2], SLOT_FAMILIES)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let whoever makes engines do so in each way, and with each model that is computed in it."""
    if "way" in metafunc.fixturenames:
        if "model" in metafunc.fixturenames:
            metafunc.parametrize(("way", "model"), WAYS_OF_MODELS, indirect=["model"])
        else:
            metafunc.parametrize("way", WAYS)


@pytest.fixture
def make_graph_runner() -> MakeGraphRunner:
    """Make the runner of CUDA graphs on a CPU; what stands for a graph computes into the same tensor each time."""

    def record(step: Step) -> Step:
        result = step()

        def replay() -> Tensor:
            return result.copy_(step())

        return replay

    def make(
        model: GPT, num_pages: int, page_size: int, *, attention: Attention = PagedState, max_num_seqs: int = 8
    ) -> GraphRunner:
        weight = model.lm_head.weight
        kv = PagedKV(model.state_spec, num_pages + 1, page_size, dtype=weight.dtype, device=weight.device)
        return GraphRunner(model, kv, attention, max_num_seqs=max_num_seqs, record=record)

    return make


@pytest.fixture
def model(request: pytest.FixtureRequest, make_gpt: MakeModel, make_model_of: MakeModel) -> AnyModel:
    """One model of each layout and each family."""
    return make_gpt(**SHAPES[request.param]) if request.param in SHAPES else make_model_of(request.param)


@pytest.fixture
def engine_of(way: str, tokenizer: CharTokenizer, make_graph_runner: MakeGraphRunner) -> MakeEngine:
    """Make small engines: with the native kernels for what they cover, with torch and with graphs for every GPT.

    `num_pages` counts pages of 4 tokens; the kernels' pages have 16. Or it counts slots.
    """

    def make(model: AnyModel, num_pages: int | None = None, **settings: object) -> Engine:
        small = {"max_num_seqs": 8, "max_step_tokens": 16, "page_size": 4, "device": "cpu", "dtype": "fp32"}
        native = {"page_size": 16, "kernels": "native"}
        if way != "native" or (isinstance(model, GPT) and not is_portable(model.config)):
            native = {"kernels": "torch"}
        elif best_level() is None:
            pytest.skip("no native kernels: the package was installed without a C++ compiler")
        chosen = EngineSettings(**(small | native | settings))
        if isinstance(model, GPT):
            num_pages = num_pages and num_pages * 4 // chosen.page_size
        engine = make_engine(model, tokenizer, chosen, num_pages=num_pages)
        if way == "graphs":
            engine.backend = engine.backend._replace(
                runner=make_graph_runner(model, engine.backend.pool.num_pages, chosen.page_size)
            )
        return engine

    return make


def claim(
    id_: str, token_ids: Iterable[int], logged: Iterable[int] = (), *, tenant: str = "", **params: object
) -> Claim:
    chosen = {"max_tokens": 12, "temperature": 0.0} | params
    request = make_request(id_, token_ids=tuple(token_ids), tenant=tenant, **chosen)
    return Claim(request=request, epoch=1, token_ids=tuple(logged))


@pytest.fixture
def make_claim() -> Callable[..., Claim]:
    return claim
