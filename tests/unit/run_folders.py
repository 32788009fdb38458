"""Run folders with settings and small checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from minilm_cli.runs import checkpoint
from minilm_cli.runs.folder import RunFolder
from minilm_cli.settings.load import load_distill_settings

SETTINGS = load_distill_settings(None, ["training.seed=7"], {"teacher.name": "t", "student.config": "l3-h384"})


def create_run(path: Path) -> RunFolder:
    path.mkdir(parents=True)
    run = RunFolder(path)
    run.write_settings(SETTINGS)
    return run


def save(run: RunFolder, step: int, best: int | None = None) -> None:
    """Save a checkpoint of `step`, with the step of the best one in its notes."""
    notes = {"best": None if best is None else {"step": best, "eval_loss": 0.5}}
    checkpoint.save(run.checkpoints, step, {"student": {"weight": torch.tensor([float(step)])}}, notes)
