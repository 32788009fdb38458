"""Metrics in TensorBoard and W&B, and runs whose sinks fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from .conftest import Commands, metrics

WANDB = """
import json, os, time

def log_call(what, **facts):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps({"what": what, **facts}) + "\\n")

class Run:
    def log(self, values, step):
        log_call("log", values=values, step=step)
        if os.environ.get("BROKEN") and step > 2:
            raise RuntimeError("no more space for charts")

    def finish(self):
        log_call("finish")

def login():
    log_call("login", run_folder=os.path.exists("run"))
    if os.environ.get("CTRL_C"):  # as click's prompt answers it
        import signal
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        except KeyboardInterrupt:
            raise RuntimeError("aborted")
    if os.environ.get("NO_KEY"):
        raise RuntimeError("No API key configured.")

def init(**options):
    log_call("init", options=sorted(options), id=options["id"], lr=options["config"]["optimizer"]["lr"])
    return Run()
"""


@pytest.fixture
def distill(tiny_teacher: Path, tiny_store: Path) -> tuple[str, ...]:
    """The command of a small run in the folder `run`."""
    return (
        *("distill", "--teacher", str(tiny_teacher), "--student-config", "l2-h24", "--data", str(tiny_store)),
        *("--steps", "4", "--batch-size", "4", "--log-every", "1", "--eval-fraction", "0.05", "--output", "run"),
    )


@pytest.fixture
def fake_wandb(minilm: Commands) -> dict[str, str]:
    """An environment in which `wandb` is a module that logs its calls."""
    (minilm.folder / "modules").mkdir()
    (minilm.folder / "modules" / "wandb.py").write_text(WANDB, encoding="utf-8")
    return {"PYTHONPATH": str(minilm.folder / "modules"), "CALLS": str(minilm.folder / "calls.jsonl")}


def calls(environment: dict[str, str]) -> list[dict[str, object]]:
    """The calls of the fake `wandb`."""
    return [json.loads(line) for line in Path(environment["CALLS"]).read_text(encoding="utf-8").splitlines()]


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


def test_wandb_gets_every_metric(minilm: Commands, distill: tuple[str, ...], fake_wandb: dict[str, str]) -> None:
    done = minilm(*distill, "--report-to", "wandb", **fake_wandb)
    assert done.returncode == 0, done.stderr
    login, first, *logged, last = calls(fake_wandb)
    assert login == {"what": "login", "run_folder": False}
    environment = json.loads((minilm.folder / "run" / "environment.json").read_text(encoding="utf-8"))
    assert (first["what"], first["id"], first["lr"]) == ("init", f"run-{environment['id']}", 6e-4)
    assert last == {"what": "finish"}
    assert [{"step": call["step"], **call["values"]} for call in logged] == metrics(minilm.folder / "run")


def test_a_failing_sink_is_dropped_and_the_run_continues(
    minilm: Commands, distill: tuple[str, ...], fake_wandb: dict[str, str]
) -> None:
    done = minilm(*distill, "--report-to", "wandb", BROKEN="1", **fake_wandb)
    assert (done.returncode, done.stdout) == (0, "run\n")
    assert done.stderr.count("is left out from now on") == 1
    assert "failed and is left out from now on: no more space for charts" in done.stderr
    assert [call.get("step") for call in calls(fake_wandb)] == [None, None, 0, 1, 2, 3]
    assert [record["step"] for record in metrics(minilm.folder / "run")] == [0, 1, 2, 3, 4, 4]


def test_without_a_login_to_wandb_no_run_begins(
    minilm: Commands, distill: tuple[str, ...], fake_wandb: dict[str, str]
) -> None:
    done = minilm(*distill, "--report-to", "wandb", NO_KEY="1", **fake_wandb)
    assert done.returncode == 2
    assert "no login to wandb: No API key configured.\nLog in with: wandb login." in done.stderr
    assert not (minilm.folder / "run").exists()
    offline = minilm(*distill, "--report-to", "wandb", NO_KEY="1", WANDB_MODE="offline", **fake_wandb)
    assert offline.returncode == 0, offline.stderr


def test_ctrl_c_at_the_login_to_wandb_ends_at_once(
    minilm: Commands, distill: tuple[str, ...], fake_wandb: dict[str, str]
) -> None:
    done = minilm(*distill, "--report-to", "wandb", CTRL_C="1", **fake_wandb)
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr
    assert not (minilm.folder / "run").exists()
    assert [call["what"] for call in calls(fake_wandb)] == ["login"]
