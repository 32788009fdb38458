from __future__ import annotations

import json
import logging
import sys
from io import FileIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from minilm_cli.base.errors import Interrupted, MinilmError, RunError
from minilm_cli.base.progress import Record
from minilm_cli.runs.sinks import Fanout, JsonlSink, TensorBoardSink, WandbSink, check_sinks, open_sinks


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Collecting:
    def __init__(self) -> None:
        self.records: list[Record] = []
        self.closed = False

    def write(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        self.closed = True


class Failing(Collecting):
    """Fails at the given step, and when it is closed."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def write(self, record: Record) -> None:
        if record["step"] == self.step:
            raise ConnectionError("the line is down")
        super().write(record)

    def close(self) -> None:
        raise ConnectionError("still down")


def test_each_record_is_written_immediately(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write({"step": 1, "loss": 0.5})
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
    sink.write({"step": 2, "loss": 0.25})
    sink.close()
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


@pytest.mark.parametrize(
    ("keep", "remaining"), [(-1, []), (0, [0]), (2, [0, 1, 2]), (3, [0, 1, 2, 3]), (9, [0, 1, 2, 3])]
)
def test_resumed_run_drops_later_lines(tmp_path: Path, keep: int, remaining: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "loss": 1.5}}\n' for step in range(4)))
    sink = JsonlSink(path, lambda record: record["step"] <= keep)
    sink.write({"step": 7})
    sink.close()
    assert [record["step"] for record in lines(path)] == [*remaining, 7]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    "damaged",
    [b'{"step": 2, "lo', b'{"step": 2}', b"null\n", b'{"loss": 1}\n', b'{"step": "2"}\n', b"\x00\x00", b"\xff\n"],
)
def test_damaged_lines_are_dropped(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'\xff\xfe\n{"step": 1, "loss": 1.5}\n' + damaged)
    sink = JsonlSink(path, lambda record: record["step"] <= 5)
    sink.write({"step": 6})
    sink.close()
    assert lines(path) == [{"step": 1, "loss": 1.5}, {"step": 6}]


def test_failing_sink_is_dropped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    failing, first, last = Failing(step=2), Collecting(), Collecting()
    fanout = Fanout([first, failing, last])
    with caplog.at_level(logging.WARNING, logger="minilm_cli"):
        for step in (1, 2, 3):
            fanout.write({"step": step})
        fanout.close()
    assert [record["step"] for record in failing.records] == [1]
    assert [record["step"] for record in first.records] == [record["step"] for record in last.records] == [1, 2, 3]
    assert [record.message for record in caplog.records] == [
        "Failing failed and is left out from now on: the line is down"
    ]


def test_all_sinks_are_closed_if_one_fails(caplog: pytest.LogCaptureFixture) -> None:
    last = Collecting()
    with caplog.at_level(logging.WARNING, logger="minilm_cli"):
        Fanout([Failing(step=2), last]).close()
    assert last.closed
    assert [record.message for record in caplog.records] == ["Failing could not be closed: still down"]


def test_sink_that_does_not_start_is_dropped_unless_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Mock(**{"init.side_effect": OSError("no network")}))
    options = {"run_id": "x", "first_step": 0, "settings": {}}
    with pytest.raises(MinilmError, match=r"reporting\.sinks: wandb cannot be started: no network"):
        open_sinks(["wandb", "tensorboard"], tmp_path, **options, needed=True)
    [sink] = open_sinks(["wandb", "tensorboard"], tmp_path, **options, needed=False)
    assert isinstance(sink, TensorBoardSink)
    sink.close()
    assert caplog.messages == ["wandb cannot be started and is left out: no network"]


def test_missing_package_is_reported_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    check_sinks(["tensorboard"])
    monkeypatch.setattr("minilm_cli.base.packages.find_spec", lambda _: None)
    with pytest.raises(MinilmError, match="--report-to wandb needs the package wandb") as caught:
        check_sinks(["wandb"])
    assert caught.value.hint == "pip install wandb"


def test_sink_whose_package_cannot_be_imported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MinilmError, match="needs the package tensorboard"):
        TensorBoardSink(tmp_path, 0)
    with pytest.raises(MinilmError, match="needs the package wandb"):
        WandbSink(tmp_path, "x", {})


def test_wandb_gets_name_settings_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class Run:
        def log(self, values: Record, step: int) -> None:
            calls.append(("log", (dict(values), step)))

        def finish(self) -> None:
            calls.append(("finish", None))

    class Wandb:
        @staticmethod
        def init(**options: Any) -> Run:
            calls.append(("init", {name: options[name] for name in ("id", "name", "config", "resume", "dir")}))
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    folder = tmp_path / "my-run"
    [sink] = open_sinks(["wandb"], folder, run_id="my-run-1a2b", first_step=0, settings={"seed": 42}, needed=True)
    sink.write({"step": 3, "loss": 0.5})
    sink.close()
    assert calls == [
        (
            "init",
            {"id": "my-run-1a2b", "name": "my-run", "config": {"seed": 42}, "resume": "allow", "dir": str(folder)},
        ),
        ("log", ({"loss": 0.5}, 3)),
        ("finish", None),
    ]


class FullDisk:
    """A file that accepts a few bytes and then no more."""

    def __init__(self, file: FileIO, room: int, error: Exception) -> None:
        self.file, self.room, self.error = file, room, error

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, content: bytes) -> int:
        if not self.room:
            raise self.error
        taken, self.room = content[: self.room], 0
        return self.file.write(taken)


def test_unwritten_lines_are_reported_once_and_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write({"step": 1})
    for first in (2, 5):
        before = path.read_text()
        with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, logger="minilm_cli"):
            error = OSError(28, "No space left on device")
            patched.setattr(Path, "open", lambda self, *_, error=error, **__: FullDisk(FileIO(self, "r+"), 5, error))
            sink.write({"step": first})
            sink.write({"step": first + 1})
            with pytest.raises(RunError, match="could not be written: No space left on device") as caught:
                sink.flush()
        assert caught.value.where == str(path)
        assert path.read_text() == before  # not even a part of a line
        sink.write({"step": first + 2})
    sink.close()
    assert lines(path) == [{"step": step} for step in range(1, 8)]
    assert caplog.messages == 2 * [f"{path} cannot be written for now: No space left on device"]


def test_flush_writes_pending_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    path.rename(tmp_path / "elsewhere")
    sink.write({"step": 1})
    (tmp_path / "elsewhere").rename(path)
    sink.flush()
    sink.flush()
    assert lines(path) == [{"step": 1}]


def test_interrupted_write_leaves_only_complete_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    fanout = Fanout([JsonlSink(path), Collecting()])
    fanout.write({"step": 1})
    error = Interrupted("at once", 15)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda self, *_, **__: FullDisk(FileIO(self, "r+"), 5, error))
        with pytest.raises(Interrupted):
            fanout.write({"step": 2})
    fanout.close()
    assert lines(path) == [{"step": 1}]


def test_removed_file_is_not_created_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "folder" / "metrics.jsonl"
    path.parent.mkdir()
    sink = JsonlSink(path)
    path.unlink()
    with caplog.at_level(logging.WARNING, logger="minilm_cli"):
        sink.write({"step": 1})
        sink.write({"step": 2})
    with pytest.raises(RunError, match="No such file or directory"):
        sink.flush()
    sink.close()
    assert caplog.messages == [f"{path} cannot be written for now: No such file or directory"]
    assert list(path.parent.iterdir()) == []


def test_tensorboard_gets_all_numbers_and_drops_repeated_steps(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, steps in ((0, (1, 2, 3)), (2, (2, 3, 4))):
        sink = TensorBoardSink(tmp_path, first)
        for step in steps:
            sink.write({"step": step, "loss": float(step), "lr": 0.25})
        sink.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss", "lr"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 3), (4, 4)]
