"""A disk that fills up, turns read-only or is unmounted while a command runs: a clear error and no damage."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.progress import NoProgress
from minilm_cli.corpus.tokenize import tokenize
from minilm_cli.export.exporting import export
from minilm_cli.runs import checkpoint
from minilm_cli.runs.folder import RunFolder
from minilm_cli.settings.export import ExportSettings
from minilm_cli.settings.tokenize import TokenizeSettings
from minilm_cli.training import run

from .conftest import CallAt, Settings, assert_same_result

pytestmark = pytest.mark.slow


class Disk:
    """A file system of a few megabytes, mounted at `path`."""

    def __init__(self, place: Path) -> None:
        self.path, self._real = place / "disk", place / "real"
        for folder in (self.path, self._real):
            folder.mkdir()
        self._mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", self._real)
        self.mount()

    def _mount(self, *words: str | Path) -> None:
        done = subprocess.run(["mount", *words], check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")

    def fill(self, *, leave: int = 0) -> None:
        """Fill it, except for `leave` bytes."""
        with (self._real / "filler").open("ab", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * 4096)
            file.truncate(file.tell() - leave)

    def empty(self) -> None:
        """Free the space again."""
        (self._real / "filler").unlink()

    def turn_read_only(self) -> None:
        """Remount it read-only."""
        self._mount("-o", "remount,bind,ro", self.path)

    def unmount(self) -> None:
        """Unmount it, which leaves an empty folder."""
        subprocess.run(["umount", "--lazy", self.path], check=True)

    def mount(self) -> None:
        """Mount it again."""
        self._mount("--bind", self._real, self.path)

    def close(self) -> None:
        for folder in (self.path, self._real):
            subprocess.run(["umount", "--lazy", folder], check=False, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    yield disk
    disk.close()


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """The logged warnings of the package."""
    monkeypatch.setattr(logging.getLogger("minilm_cli"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="minilm_cli")
    return caplog


LONG = {"training__steps": 12, "evaluation__every": 6, "reporting__log_every": 1}

#: Its metrics take more than a page of memory, so that they do not all fit on a full disk.
LONGER = LONG | {"training__steps": 60, "evaluation__every": 60, "checkpoint__every": 60}


@pytest.fixture
def uninterrupted(tmp_path: Path, small_settings: Settings) -> Path:
    """The same run on a working disk."""
    return run.distill(small_settings(tmp_path / "uninterrupted", **LONG), NoProgress()).path


@pytest.fixture
def longer(tmp_path: Path, small_settings: Settings) -> Path:
    """The longer run on a working disk."""
    return run.distill(small_settings(tmp_path / "longer", **LONGER), NoProgress()).path


def steps(folder: Path) -> list[int]:
    """The steps with a checkpoint; all checkpoints are valid, and no temporary files are left."""
    saved = checkpoint.steps(folder / "checkpoints")
    assert [checkpoint.load(checkpoint.path_of(folder / "checkpoints", step)).step for step in saved] == saved
    assert not list(folder.rglob(".tmp-*"))
    return saved


@pytest.mark.parametrize("name", ["tokens", "ids.jsonl.gz"])
@pytest.mark.parametrize("leave", [0, 8192])
def test_tokenizing_onto_a_full_disk_leaves_no_files(
    disk: Disk, tiny_corpus: Path, tiny_teacher: Path, name: str, leave: int
) -> None:
    text = disk.path.parent / "text.txt"
    text.write_text(tiny_corpus.read_text(encoding="utf-8") * 20, encoding="utf-8")
    settings = TokenizeSettings(inputs=(str(text),), tokenizer=str(tiny_teacher), output=disk.path / name, workers=1)
    disk.fill(leave=leave)
    with pytest.raises(RunError, match="No space left on device") as caught:
        tokenize(settings, NoProgress())
    assert str(disk.path) in str(caught.value)
    assert "MB free in" in str(caught.value)
    assert [path.name for path in disk.path.iterdir()] == ["filler"]
    disk.empty()
    assert tokenize(settings, NoProgress()).tokens


def test_a_checkpoint_that_does_not_fit_is_saved_after_older_ones_are_removed(
    disk: Disk, small_settings: Settings, uninterrupted: Path, warnings: pytest.LogCaptureFixture
) -> None:
    at = CallAt(step_7=lambda: disk.fill(leave=16384), step_9=disk.empty)
    done = run.distill(small_settings(disk.path / "run", checkpoint__keep=4, **LONG), at)
    assert "Step 8: no checkpoint: could not be written: " in warnings.text
    assert "Trying again with fewer kept" in warnings.text
    assert "metrics.jsonl cannot be written" not in warnings.text
    assert set(steps(done.path)) >= {12}
    assert_same_result(done.path, uninterrupted)


def test_a_run_on_a_full_disk_stops_and_resumes_when_there_is_space(
    disk: Disk, small_settings: Settings, uninterrupted: Path
) -> None:
    folder = disk.path / "run"
    with pytest.raises(RunError, match=r"step 8: the checkpoint cannot be saved: .*No space left") as caught:
        run.distill(small_settings(folder, checkpoint__keep=1, **LONG), CallAt(step_7=disk.fill))
    assert caught.value.exit_status == 1
    assert "The checkpoint of step 6 is intact." in str(caught.value)
    assert f"minilm resume {folder}" in str(caught.value)
    assert steps(folder) == [6]
    disk.empty()
    assert_same_result(run.resume(RunFolder(folder), NoProgress()).path, uninterrupted)


def test_metrics_are_kept_while_the_disk_is_full_and_written_later(
    disk: Disk, small_settings: Settings, longer: Path, warnings: pytest.LogCaptureFixture
) -> None:
    done = run.distill(small_settings(disk.path / "run", **LONGER), CallAt(step_7=disk.fill, step_50=disk.empty))
    assert warnings.text.count("metrics.jsonl cannot be written for now: No space left on device") == 1
    assert_same_result(done.path, longer)


# TensorBoard's own thread ends with the error that its sink reports.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_sink_that_cannot_write_is_left_out_and_the_run_continues(
    disk: Disk, small_settings: Settings, longer: Path, warnings: pytest.LogCaptureFixture
) -> None:
    settings = small_settings(disk.path / "run", reporting__sinks=("tensorboard",), **LONGER)
    done = run.distill(settings, CallAt(step_7=disk.fill, step_50=disk.empty))
    assert warnings.text.count("TensorBoardSink failed and is left out from now on: [Errno 28] No space left") == 1
    assert_same_result(done.path, longer)


def test_a_student_that_does_not_fit_is_written_when_the_run_is_resumed(
    disk: Disk, small_settings: Settings, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_verified = run.write_verified

    def fill_the_disk_and_write(*words: Any, **options: Any) -> float:
        disk.fill(leave=32768)
        return write_verified(*words, **options)

    monkeypatch.setattr(run, "write_verified", fill_the_disk_and_write)
    with pytest.raises(RunError, match=r"could not be written: .*No space left") as caught:
        run.distill(small_settings(disk.path / "run", **LONG), NoProgress())
    assert "Training is done and saved." in str(caught.value)
    assert not (disk.path / "run" / "student").exists()
    assert steps(disk.path / "run")[-1] == 12
    monkeypatch.undo()
    disk.empty()
    assert_same_result(run.resume(RunFolder(disk.path / "run"), NoProgress()).path, uninterrupted)


def test_a_run_that_cannot_start_on_a_full_disk_leaves_no_files(disk: Disk, small_settings: Settings) -> None:
    disk.fill(leave=8192)
    with pytest.raises(RunError, match=r"could not be written: .*No space left"):
        run.distill(small_settings(disk.path / "runs" / "run", **LONG), NoProgress())
    assert [path.name for path in disk.path.iterdir()] == ["filler"]


def test_an_export_onto_a_full_disk_leaves_no_files_and_does_not_change_the_run(disk: Disk, finished_run: Path) -> None:
    folder = disk.path / "run"
    shutil.copytree(finished_run, folder)
    before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
    disk.fill(leave=32768)
    with pytest.raises(RunError, match=r"could not be written: .*No space left") as caught:
        export(ExportSettings(model=folder), NoProgress())
    assert caught.value.where == str(folder / "export" / "hf")
    assert {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")} == before
    disk.empty()
    assert export(ExportSettings(model=folder), NoProgress()).path.is_dir()


def test_a_read_only_disk_is_reported_at_once(
    disk: Disk, tiny_corpus: Path, tiny_teacher: Path, small_settings: Settings, finished_run: Path
) -> None:
    folder = disk.path / "run"
    shutil.copytree(finished_run, folder)
    before = {path: path.is_file() and path.read_bytes() for path in disk.path.rglob("*")}
    disk.turn_read_only()
    text = TokenizeSettings(
        inputs=(str(tiny_corpus),), tokenizer=str(tiny_teacher), output=disk.path / "tokens", workers=1
    )
    commands: dict[str, Callable[[], object]] = {
        "tokenize": lambda: tokenize(text, NoProgress()),
        "distill": lambda: run.distill(small_settings(disk.path / "new"), NoProgress()),
        "resume": lambda: run.resume(RunFolder(folder), NoProgress(), {"training.steps": 9}),
        "export": lambda: export(ExportSettings(model=folder), NoProgress()),
    }
    for name, command in commands.items():
        with pytest.raises(MinilmError, match="Read-only file system") as caught:
            command()
        assert caught.value.exit_status == 2, name
        assert str(disk.path) in str(caught.value)
    assert {path: path.is_file() and path.read_bytes() for path in disk.path.rglob("*")} == before


def test_a_disk_that_turns_read_only_stops_the_run_at_its_next_checkpoint(
    tmp_path: Path, small_settings: Settings, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def turn_read_only() -> None:  # the kernel does so, but refuses `mount` while files are open
        monkeypatch.setattr("tempfile.mkdtemp", fail)

    def fail(**_: object) -> str:
        raise OSError(errno.EROFS, "Read-only file system")

    with pytest.raises(RunError, match=r"step 8: the checkpoint cannot be saved: .*Read-only file system") as caught:
        run.distill(small_settings(folder, **LONG), CallAt(step_7=turn_read_only))
    assert caught.value.exit_status == 1
    assert "The checkpoint of step 6 is intact." in str(caught.value)
    monkeypatch.undo()
    assert steps(folder)[-1] == 6
    assert_same_result(run.resume(RunFolder(folder), NoProgress()).path, uninterrupted)


def test_an_unmounted_disk_stops_the_run_and_nothing_is_written_in_its_place(
    disk: Disk, small_settings: Settings, uninterrupted: Path, warnings: pytest.LogCaptureFixture
) -> None:
    folder = disk.path / "run"
    with pytest.raises(RunError, match="step 8: the checkpoint cannot be saved") as caught:
        run.distill(small_settings(folder, **LONG), CallAt(step_7=disk.unmount))
    assert "has been moved or removed" in str(caught.value)
    assert "metrics.jsonl cannot be written for now: No such file or directory" in warnings.text
    assert list(disk.path.iterdir()) == []
    disk.mount()
    assert steps(folder)[-1] == 6
    assert_same_result(run.resume(RunFolder(folder), NoProgress()).path, uninterrupted)


def test_a_disk_that_is_mounted_again_before_the_next_checkpoint_does_no_harm(
    disk: Disk, small_settings: Settings, uninterrupted: Path, warnings: pytest.LogCaptureFixture
) -> None:
    at = CallAt(step_7=disk.unmount, step_9=disk.mount)
    done = run.distill(small_settings(disk.path / "run", checkpoint__every=6, **LONG), at)
    assert "metrics.jsonl cannot be written for now" in warnings.text
    assert_same_result(done.path, uninterrupted)
