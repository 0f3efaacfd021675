"""What a run is going to take, told before it begins."""

from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from rich.console import Console

from training.config import TrainConfig
from training.costs import Memory, count_costs, estimate_memory
from training.planning import COMPILED_SPEEDUP, TextSize, estimate

if TYPE_CHECKING:  # torch is loaded when a run begins
    import torch

    from training.data.prepare import PreparedData

MEASURE_S = 10.0


def dry_run(config: TrainConfig, prepared: "PreparedData", console: Console) -> None:
    """Print parameters, operations, memory and time of a run; a few steps are made to time them, nothing is kept."""
    import torch

    from training.models.devices import choose_device, choose_dtype

    text = size_of(prepared)
    config = config.replace(model=config.model.replace(vocab_size=text.vocab_size))
    device = choose_device(config.run.device)
    memory = estimate_memory(config, bf16=choose_dtype(config.run.dtype, device) == torch.bfloat16)
    available = _available_bytes(device)
    lines = {
        "model": _tell_model(config),
        "text": f"{text.num_train:,} tokens to train on, {text.num_validation:,} held out",
        "memory": f"{_tell_memory(memory)}; {available / 1e9:.1f} GB are free",
    }
    if memory.total > available:
        lines["time"] = "does not fit: not measured; a smaller --set run.batch_size takes less"
    else:
        lines |= _measure(config, prepared, text)
    for name, line in lines.items():
        console.print(f"{name:<8}{line}", highlight=False)


def size_of(prepared: "PreparedData") -> TextSize:
    """Return what of a prepared text decides about a run."""
    return TextSize(
        num_train=len(prepared.train),
        num_validation=len(prepared.validation),
        vocab_size=prepared.tokenizer.vocab_size,
    )


def _tell_model(config: TrainConfig) -> str:
    model, costs = config.model, count_costs(config.model)
    return (
        f"{model.n_layer} × {model.n_embd}, context {model.context_length}: {costs.num_parameters / 1e6:.2f}M "
        f"parameters, {costs.flops_per_token / 1e6:.1f}M operations a token"
    )


def _tell_memory(memory: Memory) -> str:
    parts = {"weights": memory.weights, "gradients": memory.gradients, "optimizer": memory.optimizer}
    parts["activations"] = memory.activations
    listed = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in parts.items())
    return f"about {memory.total / 1e6:.0f} MB ({listed})"


def _measure(config: TrainConfig, prepared: "PreparedData", text: TextSize) -> dict[str, str]:
    from training.speed import flops_per_step, measure_step_s
    from training.trainer import Trainer

    trainer = Trainer(config.replace(run=config.run.replace(compile=False)), prepared, Path())
    step_s = measure_step_s(trainer, MEASURE_S)
    expected = estimate(config, text, step_s)
    flops = flops_per_step(trainer) * expected.steps
    compiled = f", compiled about {COMPILED_SPEEDUP} times as fast" if config.run.compile else ""
    return {
        "budget": f"{expected.tokens:,} tokens in {expected.steps:,} steps, {flops:.2g} operations",
        "speed": f"{step_s:.2f} s a step, {flops_per_step(trainer) / step_s / 1e9:.3g} GFLOP/s{compiled}",
        "time": f"about {expected.seconds / 60:.1f} minutes on this machine",
    }


def _available_bytes(device: "torch.device") -> int:
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
