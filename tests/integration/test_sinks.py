"""Metrics go where they are asked to go, and a report that fails ends no run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from .conftest import Commands, metrics

WANDB = """
import json, os

def note(what, **facts):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps({"what": what, **facts}) + "\\n")

class Run:
    def log(self, values, step):
        note("log", values=values, step=step)
        if os.environ.get("BROKEN") and step > 2:
            raise RuntimeError("no more space for charts")

    def finish(self):
        note("finish")

def init(**options):
    note("init", options=sorted(options), id=options["id"], lr=options["config"]["optimizer"]["lr"])
    return Run()
"""


@pytest.fixture
def distill(tiny_teacher: Path, tiny_store: Path) -> tuple[str, ...]:
    """The words of a small run, in the folder `run`."""
    return (
        *("distill", "--teacher", str(tiny_teacher), "--student-config", "l2-h24", "--data", str(tiny_store)),
        *("--steps", "4", "--batch-size", "4", "--log-every", "1", "--eval-fraction", "0.05", "--output", "run"),
    )


@pytest.fixture
def stand_in(minilm: Commands) -> dict[str, str]:
    """An environment in which `wandb` is a module that writes down what it is told."""
    (minilm.folder / "modules").mkdir()
    (minilm.folder / "modules" / "wandb.py").write_text(WANDB, encoding="utf-8")
    return {"PYTHONPATH": str(minilm.folder / "modules"), "NOTES": str(minilm.folder / "notes.jsonl")}


def notes(environment: dict[str, str]) -> list[dict[str, object]]:
    """What the stand-in was told."""
    return [json.loads(line) for line in Path(environment["NOTES"]).read_text(encoding="utf-8").splitlines()]


def test_tensorboard_gets_every_metric(minilm: Commands, distill: tuple[str, ...]) -> None:
    done = minilm(*distill, "--report-to", "tensorboard")
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(minilm.folder / "run" / "tensorboard"))
    events.Reload()
    records = metrics(minilm.folder / "run")
    assert set(events.Tags()["scalars"]) == {name for record in records for name in record} - {"step"}
    for name in ("loss", "loss_vv", "lr", "eval_loss"):
        expected = [(record["step"], pytest.approx(record[name], rel=1e-6)) for record in records if name in record]
        assert [(event.step, event.value) for event in events.Scalars(name)] == expected


def test_wandb_gets_every_metric(minilm: Commands, distill: tuple[str, ...], stand_in: dict[str, str]) -> None:
    done = minilm(*distill, "--report-to", "wandb", **stand_in)
    assert done.returncode == 0, done.stderr
    first, *logged, last = notes(stand_in)
    environment = json.loads((minilm.folder / "run" / "environment.json").read_text(encoding="utf-8"))
    assert (first["what"], first["id"], first["lr"]) == ("init", f"run-{environment['id']}", 6e-4)
    assert last == {"what": "finish"}
    assert [{"step": note["step"], **note["values"]} for note in logged] == metrics(minilm.folder / "run")


def test_a_report_that_fails_is_left_out_and_the_run_goes_on(
    minilm: Commands, distill: tuple[str, ...], stand_in: dict[str, str]
) -> None:
    done = minilm(*distill, "--report-to", "wandb", BROKEN="1", **stand_in)
    assert (done.returncode, done.stdout) == (0, "run\n")
    assert done.stderr.count("is left out from now on") == 1
    assert "failed and is left out from now on: no more space for charts" in done.stderr
    assert [note.get("step") for note in notes(stand_in)] == [None, 0, 1, 2, 3]
    assert [record["step"] for record in metrics(minilm.folder / "run")] == [0, 1, 2, 3, 4, 4]
