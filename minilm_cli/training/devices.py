"""Devices: which one a process computes on, whether it multiplies bf16, and how to make it repeat exactly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.training.distributed import World


def choose_device(wanted: str, world: World, *, setting: str = "training.device") -> torch.device:
    """The device of this process; with several processes on a machine with GPUs, each has its own.

    wanted: `auto` (cuda, else mps, else cpu) or a torch device. setting: that it is from. Raises `MinilmError` if it is
    not available.
    """
    device = _device(wanted, setting)
    if world.size == 1 or device.type == "cpu":
        return device
    if str(device) != "cuda":
        raise MinilmError(f"{setting}: {wanted!r} is one device, but there are {world.size} processes")
    if world.local_size > torch.cuda.device_count():
        raise MinilmError(
            f"there are {world.local_size} processes and {torch.cuda.device_count()} GPUs on this machine",
            hint="Start as many processes as there are GPUs (--nproc-per-node).",
        )
    device = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(device)
    return device


def _device(wanted: str, setting: str) -> torch.device:
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.ones(1, device=device).item()  # fails on the device `meta` too
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise MinilmError(f"{setting}: device {wanted!r} is not available: {reason}") from None
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("amx_bf16") or features.get("avx512_bf16"))
    return False


def repeat_exactly(device: torch.device, *, strictly: bool) -> None:
    """Have a GPU's kernels add in the same order each time, so that a repeated run gives the same bits.

    strictly: a kernel that cannot raises (see `explaining_inexactness`). Otherwise torch only warns of it, and leaves
    the backward passes of attention as they are, although some can.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=not strictly)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by a property


@contextmanager
def explaining_inexactness(setting: str) -> Iterator[None]:
    """Turn torch's error for a kernel that cannot repeat exactly into a `RunError` that names the setting."""
    try:
        yield
    except RuntimeError as error:
        kernel, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise RunError(
            f"{kernel}, which this model needs, cannot repeat exactly on this device.",
            hint=f"Use --set {setting}=false: a resumed run is then equal up to rounding.",
        ) from error
