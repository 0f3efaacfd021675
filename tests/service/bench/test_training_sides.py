"""Both sides of `bench train`: nanoGPT's recipe is what it says, and both reach the end."""

import pytest
import torch

from service.bench.nanogpt_peer import FusedAttention, learning_rate, make_nanogpt, nanogpt_config
from service.bench.train import TrainBench, train_table
from training.config import load_config
from training.data.corpus import Corpus
from training.data.prepare import PreparedData, encode_splits
from training.models.attention import CausalSelfAttention
from training.tokenizers.char import CharTokenizer

TEXT = "to be, or not to be, that is the question.\n" * 60


@pytest.fixture(scope="module")
def data() -> PreparedData:
    corpus = Corpus(name="lines", documents=(TEXT,))
    return encode_splits(load_config("nanogpt-cpu").data, corpus, CharTokenizer.train([TEXT]))


def test_the_recipe_has_the_size_that_nanogpt_prints():
    """'number of parameters: 0.80M', position embeddings left out."""
    model = make_nanogpt(nanogpt_config(vocab_size=65), torch.Generator().manual_seed(0))
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    counted = sum(counts.values()) - counts["model.embed_positions.weight"]
    assert f"{counted / 1e6:.2f}M" == "0.80M"


def test_fused_attention_is_attention():
    config = nanogpt_config(vocab_size=65)
    fused, plain = FusedAttention(config), CausalSelfAttention(config, 0)
    with torch.no_grad():
        joined = torch.cat([plain.q_proj.weight, plain.k_proj.weight, plain.v_proj.weight])
        fused.c_attn.weight.copy_(joined)
        fused.o_proj.weight.copy_(plain.o_proj.weight)
    x = torch.randn(2, 10, config.n_embd)
    torch.testing.assert_close(fused(x, None, None), plain(x, None, None))


def test_the_rate_rises_then_falls_to_a_tenth():
    assert learning_rate(0) == pytest.approx(1e-3 / 101)
    assert learning_rate(100) == pytest.approx(1e-3)
    assert learning_rate(1050) == pytest.approx((1e-3 + 1e-4) / 2)
    assert learning_rate(2000) == learning_rate(3000) == pytest.approx(1e-4)


def test_both_learn_and_are_evaluated_at_the_end(data, tmp_path):
    small = ["run.device=cpu", "run.dtype=fp32", "run.compile=false", "run.sample_tokens=0", "budget.steps=12"]
    config = load_config("nanogpt-cpu", small)
    result = TrainBench(config, data, tmp_path).measure(steps=6, rounds=2, to_the_end=True)
    uniform = torch.tensor(len(set(TEXT))).log().item()
    for loss in (result.minigpt_loss, result.nanogpt_loss):
        assert loss is not None
        assert loss < uniform
    assert sum(run.tokens for run in result.minigpt) == 12 * 12 * 64
    assert train_table(result, "title").row_count == 2
