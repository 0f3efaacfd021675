"""The arithmetic against the real thing: parameters of real models, tensors that autograd really keeps."""

import pytest
import torch

from training.config import Algorithm, BudgetConfig, TrainConfig, list_presets
from training.costs import count_costs, estimate_memory
from training.model_config import ConvConfig, GPTConfig, MLPConfig, ModelConfig, RecurrentConfig
from training.models.families import make_model
from training.objectives import cross_entropy
from training.optim import Optimizer

SMALL = {"vocab_size": 61, "n_embd": 64, "context_length": 64}
CLASSIC = {"position": "learned", "norm": "layernorm", "activation": "gelu", "qk_norm": False, "bias": True}
CONFIGS: dict[str, ModelConfig] = {
    "gpt": GPTConfig(**SMALL),
    "gpt, grouped": GPTConfig(n_head=4, n_kv_head=2, head_dim=32, n_hidden=96, **SMALL),
    "gpt, classic": GPTConfig(tie_embeddings=True, **CLASSIC, **SMALL),
    "gpt, n-grams": GPTConfig(ngram_orders=(2, 3), ngram_rows=5000, **SMALL),
    "lstm": RecurrentConfig(**SMALL),
    "gru": RecurrentConfig(cell="gru", n_layer=1, n_hidden=96, **SMALL),
    "rnn": RecurrentConfig(cell="rnn", tie_embeddings=False, **SMALL),
    "mlp": MLPConfig(**SMALL),
    "mlp, deep": MLPConfig(n_layer=3, direct=False, tie_embeddings=False, **SMALL),
    "conv": ConvConfig(**SMALL),
    "conv, wide": ConvConfig(kernel_size=3, n_hidden=96, tie_embeddings=False, **SMALL),
}
PRESETS = {name: config.model.replace(vocab_size=65) for name, config in list_presets().items()}


@pytest.mark.parametrize("config", [*CONFIGS.values(), *PRESETS.values()], ids=[*CONFIGS, *PRESETS])
def test_parameters_are_the_models(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = make_model(config)
    costs = count_costs(config)
    assert costs.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert costs.head == model.lm_head.weight.numel()


def test_operations_of_a_model_that_is_counted_by_hand() -> None:
    config = GPTConfig(vocab_size=10, n_layer=1, n_head=1, n_embd=4, n_hidden=8, context_length=3, norm="rmsnorm")
    matrices = 4 * 4 * 4 + 3 * 4 * 8
    attention = 2 * 4 * (1 + 2 + 3) / 3  # queries with keys, weights with values
    assert count_costs(config).flops_per_token == 6 * (matrices + 10 * 4 + attention)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_activations_are_about_what_autograd_keeps(config: ModelConfig, dtype: torch.dtype) -> None:
    budget = BudgetConfig(steps=1)
    run = TrainConfig(budget=budget).run.replace(batch_size=16)
    estimated = estimate_memory(TrainConfig(budget=budget, model=config, run=run), bf16=dtype == torch.bfloat16)
    kept = bytes_kept(config, 16, dtype)
    assert kept / 2 < estimated.activations < kept * 2.5


@pytest.mark.parametrize("algorithm", Algorithm.__args__)
def test_the_optimizers_state_is_what_it_keeps(algorithm: Algorithm) -> None:
    config = TrainConfig(budget=BudgetConfig(steps=1), model=GPTConfig(n_layer=1, n_head=2, **SMALL))
    config = config.replace(optim=config.optim.replace(algorithm=algorithm))
    model = make_model(config.model)
    optimizer = Optimizer(model, config.optim)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.5)
    kept = sum(tensor.nbytes for tensor in optimizer.state_tensors().values() if tensor.dim())
    assert estimate_memory(config, bf16=False).optimizer == kept


def bytes_kept(config: ModelConfig, batch_size: int, dtype: torch.dtype) -> int:
    model = make_model(config).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    token_ids = torch.zeros(batch_size, config.context_length, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            logits = model(token_ids)
        cross_entropy(logits, token_ids)
    return sum(storage.nbytes() for place, storage in kept.items() if place not in weights)
