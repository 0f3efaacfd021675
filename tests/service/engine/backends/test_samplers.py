import math
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.backends.native_sampler import NativeSampler
from service.engine.backends.torch_sampler import sample, uniform
from service.engine.kernels.library import best_level
from service.engine.sequence import Sequence
from service.protocol import Claim
from tests.conftest import WITH_FIXTURES
from training.tokenizers.char import CharTokenizer

MakeSequence = Callable[..., Sequence]
Draw = Callable[..., list[int | None]]
GOLDEN = [0.13870941014555427, 0.6935121390102292, 0.2691303195904541, 0.18436667429957676]


@pytest.fixture(params=["native", "torch"])
def draw(request: pytest.FixtureRequest) -> Draw:
    """Draw with either sampler: `draw(logits, sequences, banned=())`."""
    if request.param == "torch":
        return lambda logits, sequences, banned=(): sample(logits, sequences, torch.tensor(banned, dtype=torch.int64))
    if best_level() is None:
        pytest.skip("no native kernels: the package was installed without a C++ compiler")
    return lambda logits, sequences, banned=(): NativeSampler(banned)(logits, sequences)


@pytest.fixture(scope="module")
def make_sequence(tokenizer: CharTokenizer) -> MakeSequence:
    from service.protocol import Request, SamplingParams

    def make(token_ids: list[int] | None = None, logged: list[int] | None = None, **params: object) -> Sequence:
        request = Request(
            id="a",
            model="m",
            revision="r",
            token_ids=tuple(token_ids or [1]),
            params=SamplingParams(**({"max_tokens": 9, "seed": 7} | params)),
        )
        return Sequence(Claim(request=request, epoch=1, token_ids=tuple(logged or [])), tokenizer, 0.0)

    return make


def support(logits: list[float], temperature: float, top_k: int | None, top_p: float, min_p: float) -> set[int]:
    """Return the ids that may be drawn, the way the papers tell it: sort, cut by k, cut by p, cut by min-p."""
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    if top_k is not None:
        border = weights[order[min(top_k, len(order)) - 1]]
        order = [i for i in order if weights[i] >= border]
    kept, mass, total = [], 0.0, sum(weights[i] for i in order)
    for i in order:
        if mass >= top_p * total and weights[i] < weights[kept[-1]]:
            break
        kept.append(i)
        mass += weights[i]
    return {i for i in kept if weights[i] >= min_p * max(weights)}


@settings(WITH_FIXTURES, max_examples=150)
@given(
    # Integers keep the borders apart: no verdict hangs on the last bit.
    logits=st.lists(st.integers(-6, 6), min_size=2, max_size=12),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.sampled_from([0.137, 0.6113, 0.9371, 1.0]),
    min_p=st.sampled_from([0.0, 0.0513, 0.313]),
)
def test_exactly_the_ids_that_the_filters_leave_are_drawn(
    draw: Draw,
    make_sequence: MakeSequence,
    logits: list[int],
    temperature: float,
    top_k: int | None,
    top_p: float,
    min_p: float,
) -> None:
    params = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    expected = support([float(x) for x in logits], temperature, top_k, top_p, min_p)
    rows = torch.tensor([logits] * 400, dtype=torch.float32)
    drawn = set(draw(rows, [make_sequence(choice=i, **params) for i in range(400)]))
    assert drawn <= expected
    weights = {i: math.exp((logits[i] - max(logits)) / temperature) for i in expected}
    likely = {i for i in expected if weights[i] / sum(weights.values()) > 0.05}  # missed once in e^20
    assert likely <= drawn


def test_shares_are_those_of_the_softmax(draw: Draw, make_sequence: MakeSequence) -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    count = 4000
    drawn = draw(logits.repeat(count, 1), [make_sequence(seed=i) for i in range(count)])
    shares = Counter(drawn)
    for token_id, probability in enumerate(logits.softmax(-1).tolist()):
        error = 5 * math.sqrt(probability * (1 - probability) / count)
        assert shares[token_id] / count == pytest.approx(probability, abs=error)


@settings(WITH_FIXTURES, max_examples=60)
@given(seed=st.integers(0, 2**63 - 1), data=st.data())
def test_a_rows_token_depends_on_nothing_but_itself(
    draw: Draw, make_sequence: MakeSequence, seed: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed % 2**32)
    logits = torch.randn(4, 20, generator=generator) * 3
    one = st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 0.7, 1.5]),
            "top_k": st.none() | st.integers(1, 30),
            "top_p": st.sampled_from([0.3, 0.9, 1.0]),
            "min_p": st.sampled_from([0.0, 0.1]),
            "repetition_penalty": st.sampled_from([1.0, 1.3]),
            "presence_penalty": st.sampled_from([0.0, 0.5]),
            "logit_bias": st.sampled_from([{}, {3: 5.0}]),
        }
    )
    sequences = [make_sequence([1, 2], [3, 3], seed=seed, choice=i, **data.draw(one)) for i in range(4)]
    together = draw(logits.clone(), sequences)
    alone = [draw(logits[i : i + 1].clone(), [sequence])[0] for i, sequence in enumerate(sequences)]
    assert together == alone


def test_random_numbers_are_fixed_for_ever() -> None:
    """A continuation after an upgrade must draw what the release before would have drawn."""
    assert [uniform(*arguments) for arguments in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))] == GOLDEN
    numbers = [uniform(7, 0, position) for position in range(2000)]
    assert all(0 <= number < 1 for number in numbers)
    assert sum(numbers) / len(numbers) == pytest.approx(0.5, abs=0.03)
    assert len({uniform(s, c, p) for s in range(12) for c in range(12) for p in range(12)}) == 12**3


def test_penalties_and_bias_are_those_of_their_definitions(draw: Draw, make_sequence: MakeSequence) -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.0]])
    sequence = make_sequence(
        [0, 1], [2, 2], temperature=0.0, repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25,
        logit_bias={3: 0.5},
    )  # fmt: skip
    changed = logits.clone()
    assert draw(changed, [sequence]) == [0]
    assert changed.tolist() == [[1.0, -4.0, 0.5 - 0.5 - 2 * 0.25, 0.5]]


def test_banned_ids_are_never_drawn_and_broken_rows_give_none(draw: Draw, make_sequence: MakeSequence) -> None:
    logits = torch.tensor([[9.0, 1.0, 0.0], [float("nan"), 1.0, 0.0], [float("inf"), 1.0, 0.0]])
    for temperature in (0.0, 1.0):
        sequences = [make_sequence(temperature=temperature, logit_bias={2: -100.0}) for _ in range(3)]
        assert draw(logits.clone(), sequences, banned=[0]) == [1, None, None]


@settings(WITH_FIXTURES, max_examples=60)
@given(seed=st.integers(0, 2**63 - 1))
def test_both_samplers_draw_the_same(make_sequence: MakeSequence, seed: int) -> None:
    if best_level() is None:
        pytest.skip("no native kernels: the package was installed without a C++ compiler")
    random = Random(seed)
    sequences = [
        make_sequence(
            random.choices(range(34), k=20),
            random.choices(range(34), k=random.randint(0, 20)),
            seed=random.getrandbits(63),
            temperature=random.choice([0.0, 0.5, 1.0, 2.0]),
            top_k=random.choice([None, 1, 5, 5000]),
            top_p=random.choice([0.3, 0.9, 1.0]),
            min_p=random.choice([0.0, 0.05]),
            repetition_penalty=random.choice([1.0, 1.3]),
            frequency_penalty=random.choice([0.0, 0.2]),
        )
        for _ in range(8)
    ]
    logits = torch.randn(8, 500, generator=torch.Generator().manual_seed(seed % 2**32)) * 3
    native = NativeSampler([3])(logits.clone(), sequences)
    assert native == sample(logits, sequences, torch.tensor([3]))
