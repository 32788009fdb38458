"""Devices: which one to use, whether it multiplies bf16, when its memory is exhausted."""

from __future__ import annotations

import torch


def pick_device(wanted: str) -> torch.device:
    """The device to compute on: `auto` is cuda, else mps, else cpu. Raises `ValueError` for one that is not there."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.ones(1, device=device).item()  # which on the device `meta` is nothing
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise ValueError(str(error).splitlines()[0]) from None
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("amx_bf16") or features.get("avx512_bf16"))
    return False


def out_of_memory(error: RuntimeError) -> bool:
    """Whether this is a device's or the machine's want of memory."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
