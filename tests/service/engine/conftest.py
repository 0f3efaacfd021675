from collections.abc import Callable, Iterable

import pytest

from service.config import EngineSettings
from service.engine.engine import Engine
from service.engine.kernels.library import load_kernels
from service.engine.loading import make_engine
from service.protocol import Claim, Request, SamplingParams
from training.models.gpt import GPT
from training.models.layouts import is_portable
from training.tokenizers.char import CharTokenizer

MakeEngine = Callable[..., Engine]


@pytest.fixture(params=["native", "torch"])
def engine_of(request: pytest.FixtureRequest, tokenizer: CharTokenizer) -> MakeEngine:
    """Make small engines: with the native kernels for what they cover, and with torch for everything.

    `num_pages` counts pages of 4 tokens; the kernels' pages have 16.
    """

    def make(model: GPT, num_pages: int | None = None, **settings: object) -> Engine:
        small = {"max_num_seqs": 8, "max_step_tokens": 16, "page_size": 4, "device": "cpu", "dtype": "fp32"}
        native = {"page_size": 16, "kernels": "native"}
        if request.param == "torch" or not is_portable(model.config):
            native = {"kernels": "torch"}
        elif load_kernels() is None:
            pytest.skip("no native kernels: the package was installed without a C++ compiler")
        chosen = EngineSettings(**(small | native | settings))
        num_pages = num_pages and num_pages * 4 // chosen.page_size
        return make_engine(model, tokenizer, chosen, num_pages=num_pages)

    return make


def claim(id_: str, token_ids: Iterable[int], logged: Iterable[int] = (), **params: object) -> Claim:
    defaults = {"max_tokens": 12, "seed": 7, "temperature": 0.0}
    request = Request(
        id=id_, model="m", revision="r", token_ids=tuple(token_ids), params=SamplingParams(**(defaults | params))
    )
    return Claim(request=request, epoch=1, token_ids=tuple(logged))


@pytest.fixture
def make_claim() -> Callable[..., Claim]:
    return claim


@pytest.fixture
def finish() -> Callable[..., dict[str, list[int]]]:
    """Step an engine until it has no work; return the tokens of each request."""

    def run(engine: Engine, into: dict[str, list[int]] | None = None) -> dict[str, list[int]]:
        tokens = {} if into is None else into
        while engine.has_work:
            for output in engine.step():
                tokens.setdefault(output.id, []).extend(output.token_ids)
        return tokens

    return run
