"""Which device and what dtype a run computes in."""

import torch

from training.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:N` means here.

    Raises:
        ConfigError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device '{name}': choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device '{name}': torch sees no CUDA GPU here; choose cpu, or install a CUDA build of torch")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that `auto`, `fp32` or `bf16` means on `device`; `auto` is bf16 where the hardware has it."""
    if name == "auto":
        name = "bf16" if has_bf16(device) else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def has_bf16(device: torch.device) -> bool:
    """Tell whether `device` multiplies bf16 in hardware, several times faster than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capability = torch.cpu.get_capabilities()
    return bool(capability.get("avx512_bf16") or capability.get("amx_bf16"))
