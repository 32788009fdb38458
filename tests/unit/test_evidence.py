from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.training import nonfinite
from minilm_cli.training.nonfinite import Finding, NotFinite

ERROR = NotFinite(Finding(step=7, sequences=[40, 3]), math.nan, 1.0)
SEQUENCES = {40: np.array([2, 5, 9, 3], dtype=np.uint16), 3: np.array([2, 3], dtype=np.uint16)}
STUDENT = {"encoder.weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.5])}


def test_sequences_and_student_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "left.safetensors"
    nonfinite.keep(file, ERROR, SEQUENCES, STUDENT)
    step, student = nonfinite.read(file)
    assert step == 7
    assert student.keys() == STUDENT.keys()
    assert all(torch.equal(student[name], tensor) for name, tensor in STUDENT.items())
    tensors = load_file(file)
    assert tensors["indices"].tolist() == [40, 3]
    assert tensors["lengths"].tolist() == [4, 2]
    assert tensors["input_ids"].tolist() == [[2, 5, 9, 3], [2, 3, 0, 0]]
    assert [path.name for path in tmp_path.iterdir()] == ["left.safetensors"]


def test_where_no_sequence_is_to_blame_the_student_is_kept_alone(tmp_path: Path) -> None:
    nonfinite.keep(tmp_path / "left", ERROR, {}, STUDENT)
    assert all(name.startswith("student.") for name in load_file(tmp_path / "left"))


def test_what_was_left_before_is_replaced(tmp_path: Path) -> None:
    nonfinite.keep(tmp_path / "left", ERROR, SEQUENCES, STUDENT)
    nonfinite.keep(tmp_path / "left", ERROR, {}, {"only": torch.zeros(1)})
    assert list(nonfinite.read(tmp_path / "left")[1]) == ["only"]


def test_what_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nonfinite, "save_file", fail)
    with pytest.raises(RunError, match="No space left"):
        nonfinite.keep(tmp_path / "left", ERROR, SEQUENCES, STUDENT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 100, "no step"], ids=["missing", "empty", "noise", "no step"])
def test_another_file_is_refused_by_name(tmp_path: Path, content: bytes | str | None) -> None:
    file = tmp_path / "left"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        save_file(STUDENT, file)
    with pytest.raises(MinilmError, match="this file is not one of a step that was not finite") as caught:
        nonfinite.read(file)
    assert caught.value.where == str(file)
