from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minilm_cli.base.errors import RunError
from minilm_cli.runs import checkpoint
from minilm_cli.runs.run_state import BackedOff, Best, RunState


@pytest.mark.parametrize(
    "notes",
    [
        {"best": 5},
        {"best": {"step": "2", "eval_loss": 1.0}},
        {"evaluated": "x"},
        {"since": {"sequences": 1, "colour": 2}},
        {"colour": 1},
    ],
)
def test_invalid_notes_are_refused(tmp_path: Path, notes: dict[str, Any]) -> None:
    saved = checkpoint.save(tmp_path, 1, {"student": {}}, notes)
    with pytest.raises(RunError, match="its notes are not those of a run") as caught:
        RunState.of(saved)
    assert caught.value.where == str(saved.path)


def test_notes_are_read_back(tmp_path: Path) -> None:
    best, backed_off = Best(step=2, eval_loss=0.25), BackedOff(wanted=9, became=4)
    notes = RunState(evaluated=3, best=best, elapsed=1.5, backed_off=backed_off)
    checkpoint.save(tmp_path, 4, {"student": {}}, notes.model_dump())
    assert RunState.of(checkpoint.load(checkpoint.path_of(tmp_path, 4))) == notes
