"""The runner of CUDA graphs, on a CPU: padded buckets ≡ the plain runner; test_engine.py runs every invariant on it."""

from collections.abc import Callable
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from service.engine.backends.cuda_graphs import GraphRunner, bucket_sizes
from service.engine.backends.flash import FlashState
from service.engine.backends.paged_kv import Attention, PagedKV, PagedState
from service.engine.backends.torch_paged import TorchRunner
from service.engine.backends.torch_sampler import sample
from service.engine.scheduler import ScheduledChunk
from service.engine.sequence import Sequence
from service.protocol import Claim
from tests.conftest import WITH_FIXTURES
from training.models.gpt import GPT
from training.tokenizers.char import CharTokenizer

NUM_PAGES, PAGE_SIZE, MAX_ROWS = 64, 4, 6

MakeGraphRunner = Callable[..., GraphRunner]
MakeSequence = Callable[[list[int], list[int]], Sequence]


@pytest.fixture
def make_sequence(tokenizer: CharTokenizer, make_claim: Callable[..., Claim]) -> MakeSequence:
    """Make a sequence of which only the last token is not computed."""

    def make(token_ids: list[int], pages: list[int]) -> Sequence:
        sequence = Sequence(make_claim("a", token_ids), tokenizer, 0.0)
        sequence.page_table[:] = pages
        sequence.num_computed_tokens = len(token_ids) - 1
        return sequence

    return make


def random_batch(random: Random, make_sequence: MakeSequence) -> list[Sequence]:
    pages = random.sample(range(NUM_PAGES), NUM_PAGES)
    prompts = [[random.randrange(30) for _ in range(random.randint(2, 36))] for _ in range(random.randint(1, MAX_ROWS))]
    return [make_sequence(prompt, [pages.pop() for _ in range(0, len(prompt), PAGE_SIZE)]) for prompt in prompts]


def fill_past(model: GPT, kv: PagedKV, sequences: list[Sequence]) -> None:
    """Compute all but the last token of each sequence; what is in no past is poison."""
    kv.keys.fill_(float("nan"))
    kv.values.fill_(float("nan"))
    for sequence in sequences:
        num_tokens, sequence.num_computed_tokens = sequence.num_computed_tokens, 0
        TorchRunner(model, kv).run([ScheduledChunk(sequence, num_tokens)])
        sequence.num_computed_tokens = num_tokens


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8]), (64, [1, 2, 4, 8, 16, 32, 64])],
)
def test_buckets_are_powers_of_two_up_to_the_most(most: int, sizes: list[int]) -> None:
    assert bucket_sizes(most) == sizes


@settings(WITH_FIXTURES, max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_padded_buckets_equal_the_plain_runner_and_write_where_it_does(
    gpt: GPT, make_graph_runner: MakeGraphRunner, make_sequence: MakeSequence, seed: int
) -> None:
    runner = make_graph_runner(gpt, NUM_PAGES, PAGE_SIZE, max_num_seqs=MAX_ROWS)
    kv = runner._kv
    sequences = random_batch(Random(seed), make_sequence)
    chunks = [ScheduledChunk(sequence, 1) for sequence in sequences]
    fill_past(gpt, kv, sequences)
    past = kv.keys.clone(), kv.values.clone()
    expected = TorchRunner(gpt, kv).run(chunks)
    after = kv.keys.clone(), kv.values.clone()
    kv.keys.copy_(past[0])
    kv.values.copy_(past[1])
    torch.testing.assert_close(runner.run(chunks), expected, rtol=0, atol=1e-5)
    for stored, wanted in zip((kv.keys, kv.values), after, strict=True):
        real = slice(NUM_PAGES * PAGE_SIZE)
        torch.testing.assert_close(stored[:, :, real], wanted[:, :, real], rtol=0, atol=1e-5, equal_nan=True)


def test_no_row_reads_pages_of_another(
    gpt: GPT, make_graph_runner: MakeGraphRunner, make_sequence: MakeSequence
) -> None:
    """Not of another sequence, not of the one that was in the bucket before, and not the page of the unused rows."""
    runner = make_graph_runner(gpt, NUM_PAGES, PAGE_SIZE, max_num_seqs=MAX_ROWS)
    first, second = make_sequence([1, 2, 3, 4, 5, 6], [7, 3]), make_sequence([8] * 20, [0, 63, 9, 30, 2])
    fill_past(gpt, runner._kv, [first, second])
    clean = runner.run([ScheduledChunk(first, 1), ScheduledChunk(second, 1)]).clone()
    for page in (*second.page_table, NUM_PAGES):
        here = slice(page * PAGE_SIZE, (page + 1) * PAGE_SIZE)
        runner._kv.keys[:, :, here] = runner._kv.values[:, :, here] = float("nan")
    poisoned = runner.run([ScheduledChunk(first, 1), ScheduledChunk(second, 1)]).clone()
    torch.testing.assert_close(poisoned[0], clean[0], rtol=0, atol=1e-5)
    assert poisoned[1].isnan().all()
    torch.testing.assert_close(runner.run([ScheduledChunk(first, 1)])[0], clean[0], rtol=0, atol=1e-5)


def test_steps_that_do_more_than_decode_are_not_replayed(
    make_gpt: Callable[..., GPT], make_graph_runner: MakeGraphRunner, make_sequence: MakeSequence
) -> None:
    gpt = make_gpt()
    runner = make_graph_runner(gpt, NUM_PAGES, PAGE_SIZE, max_num_seqs=MAX_ROWS)
    decode, prefill = make_sequence([1, 2, 3], [0]), make_sequence([4, 5, 6, 7], [1])
    fill_past(gpt, runner._kv, [decode])
    prefill.num_computed_tokens = 0
    for num_tokens, num_rows in ((1, 1), (4, 2)):  # a chunk of one token of four wants no logits; all four want one
        logits = runner.run([ScheduledChunk(decode, 1), ScheduledChunk(prefill, num_tokens)])
        with torch.inference_mode():
            expected = torch.stack([gpt(torch.tensor([s.token_ids]))[0, -1] for s in (decode, prefill)[:num_rows]])
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


class OneDevice(TorchDispatchMode):
    """Refuses operations that mix devices or need values on the host, and copies between devices that wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | (kwargs or {})
        tensors = [leaf for leaf in tree_leaves((named, result)) if isinstance(leaf, Tensor)]
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select"), func
        assert name != "index" or not any(tensor.dtype == torch.bool for tensor in tensors), func
        if len({tensor.device for tensor in tensors}) > 1:
            assert name in ("to", "_to_copy", "copy_"), func
            assert named.get("non_blocking"), func
            assert result.device.type == "meta", func
        return result


class NoLists(TorchFunctionMode):
    """Refuses tensors made of Python's lists on a device: their copy waits."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made_there = func in (torch.tensor, torch.as_tensor) and (kwargs or {}).get("device") is not None
        assert not made_there, func
        listed = func is Tensor.__getitem__ and isinstance(args[1], list)
        assert not listed, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("attention", [PagedState, FlashState])
def test_a_step_stays_on_its_device_and_waits_for_nothing(
    make_gpt: Callable[..., GPT], make_graph_runner: MakeGraphRunner, make_sequence: MakeSequence, attention: Attention
) -> None:
    """torch's `meta` stands for the GPU: it takes the same operations, and has no values to wait for."""
    gpt = make_gpt().bfloat16().to("meta")
    runner = make_graph_runner(gpt, NUM_PAGES, PAGE_SIZE, attention=attention, max_num_seqs=MAX_ROWS)
    decodes = [make_sequence([1, 2, 3], [0]), make_sequence([4, 5], [1])]
    prefill = make_sequence([4, 5, 6, 7], [2])
    prefill.num_computed_tokens = 0
    chunks = [ScheduledChunk(sequence, 1) for sequence in decodes]
    with OneDevice(), NoLists():
        for step in (chunks, [*chunks, ScheduledChunk(prefill, 4)]):
            logits = runner.run(step)
            assert (logits.device.type, logits.dtype, logits.shape) == (
                "meta",
                torch.float32,
                (len(step), gpt.config.vocab_size),
            )


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "min_p": 0.1},
        {"logit_bias": {3: 1.0}, "repetition_penalty": 1.2, "presence_penalty": 0.1, "frequency_penalty": 0.1},
    ],
    ids=str,
)
def test_sampling_waits_only_to_read_the_tokens(
    tokenizer: CharTokenizer, make_claim: Callable[..., Claim], params: dict[str, object]
) -> None:
    sequence = Sequence(make_claim("a", [1, 2], logged=[4, 4], **params), tokenizer, 0.0)
    logits, banned = (
        torch.zeros(2, tokenizer.vocab_size, device="meta"),
        torch.zeros(1, dtype=torch.int64, device="meta"),
    )
    with OneDevice(), NoLists(), pytest.raises(NotImplementedError, match="no data"):  # what `tolist` says there
        sample(logits, [sequence, sequence], banned)
