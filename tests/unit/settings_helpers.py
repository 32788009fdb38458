"""Settings of `distill`, loaded with the required ones given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from minilm_cli.settings.distill import DistillSettings
from minilm_cli.settings.load import flatten, load_distill_settings

REQUIRED = {"teacher.name": "bert-base-uncased", "student.config": "l6-h384"}


def load(*assignments: str, file: Path | None = None, **flags: Any) -> DistillSettings:
    return load_distill_settings(file, assignments, REQUIRED | flags)


def write(folder: Path, text: str, name: str = "settings.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def values_of(model: BaseModel) -> dict[str, Any]:
    return flatten(model.model_dump())
