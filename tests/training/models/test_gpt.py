from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.checkpoint import save_checkpoint
from training.config import BudgetConfig, TrainConfig
from training.models.attention import causal_attention
from training.models.gpt import GPT
from training.models.layouts import from_hf_config, gpt2_config, gpt2_weights, to_hf_config
from training.tokenizers.char import CharTokenizer

GROUPED = {"n_head": 4, "n_kv_head": 2, "head_dim": 16}


def tokens(model: GPT, shape: tuple[int, int] = (2, 40)) -> Tensor:
    return torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [{}, GROUPED, {"tie_embeddings": True, "rope_theta": 5e5}], ids=str)
@torch.inference_mode()
def test_transformers_reads_the_folder_as_qwen3_and_gives_the_same_logits(
    make_gpt: Callable[..., GPT], tokenizer: CharTokenizer, tmp_path: Path, shape: dict[str, object]
) -> None:
    from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

    model = make_gpt(**shape)
    save_checkpoint(tmp_path / "c", model, tokenizer, TrainConfig(budget=BudgetConfig(steps=1)))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "c", dtype=torch.float32)
    assert isinstance(theirs, Qwen3ForCausalLM)
    ids = tokens(model)
    torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_gpt2_weights_give_the_logits_of_gpt2() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=48, n_layer=2, n_head=2, n_embd=24)).eval()
    for parameter in theirs.parameters():
        parameter.normal_(0.0, 0.2)
    config = gpt2_config(theirs.config.to_dict())
    ours = GPT(config).eval()
    ours.load_state_dict(gpt2_weights(theirs.state_dict()))
    ids = tokens(ours)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_no_position_sees_a_later_token(gpt: GPT) -> None:
    ids = tokens(gpt)
    changed = ids.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % gpt.config.vocab_size
    torch.testing.assert_close(gpt(ids)[:, :20], gpt(changed)[:, :20], rtol=0, atol=1e-6)
    assert not torch.equal(gpt(ids)[:, 20:], gpt(changed)[:, 20:])


def test_attention_is_the_same_with_and_without_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 17, 4, 8, generator=generator, requires_grad=True)
    k, v = (torch.randn(2, 17, 2, 8, generator=generator) for _ in range(2))
    trained = causal_attention(q, k, v)
    torch.testing.assert_close(trained.detach(), causal_attention(q.detach(), k, v), rtol=0, atol=1e-5)


def test_config_survives_hugging_faces_json(gpt: GPT) -> None:
    config = from_hf_config(to_hf_config(gpt.config, "float32", 0))
    for name in ("context_length", "n_layer", "kv_heads", "head_width", "hidden_width", "tie_embeddings", "position"):
        assert getattr(config, name) == getattr(gpt.config, name)
