"""What a run records of the machine, the versions and the launch that it began with."""

from __future__ import annotations

import platform
import secrets
from typing import Any

import torch
from transformers import __version__ as transformers_version

from minilm_cli import __version__
from minilm_cli.base.checksums import sha256_of_text
from minilm_cli.base.errors import MinilmError
from minilm_cli.runs.folder import FORMAT_VERSION, RunFolder
from minilm_cli.runs.lookup import find_run
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.training.distributed import launch, same_launch


def describe(device: torch.device, processes: int, asked_for: DistillSettings) -> dict[str, Any]:
    """The content of `environment.json`; `asked_for` are the settings before they were resolved."""
    return {
        "format_version": FORMAT_VERSION,
        "id": secrets.token_hex(4),
        "minilm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers_version,
        "platform": platform.platform(),
        "processor": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "launch": launch(),
        "asked_for": _digest(asked_for),
    }


def begun_by_this_launch(settings: DistillSettings) -> RunFolder | None:
    """The run that earlier processes began with these settings, if torchrun has restarted them."""
    if (ours := launch()) is None:
        return None
    try:
        run = find_run(settings.output)
        environment = run.environment()
    except MinilmError:
        return None
    same = same_launch(ours, environment.get("launch"), finished=run.is_finished())
    return run if same and environment.get("asked_for") == _digest(settings) else None


def _digest(settings: DistillSettings) -> str:
    return sha256_of_text(settings.model_dump_json())
