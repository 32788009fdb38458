from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from minilm_cli.base.errors import MinilmError
from minilm_cli.runs.folder import RunFolder

from .run_folders import SETTINGS, create_run, save


def test_settings_are_read_back(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    assert run.settings() == SETTINGS
    assert [path.name for path in run.path.iterdir()] == ["settings.json"]


@pytest.mark.parametrize("name", ["settings", "plan"])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"teacher": {"name": "t"}, "student": {"config": "s"}, "x": 1}']
)
def test_invalid_settings_or_plan_are_refused_by_file(tmp_path: Path, name: str, text: str) -> None:
    run = create_run(tmp_path / "run")
    file = run.path / f"{name}.json"
    file.write_text(text)
    with pytest.raises(MinilmError) as caught:
        getattr(run, name)()
    assert caught.value.where == str(file)


def test_only_complete_metric_records_are_read(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    assert run.metrics() == []
    run.metrics_file.write_bytes(b'{"step": 1}\n\xff\n\n[1]\n3\n"x"\n{"loss": 1.0}\n{"step": "1"}\n{"step": 2, "lo')
    assert run.metrics() == [{"step": 1}]


def test_run_is_locked_against_a_second_process(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    with run.locked() as lock:
        assert lock.in_place()
        with pytest.raises(MinilmError, match=r"process \d+ on .* is at work on this run") as caught, run.locked():
            pass
        assert (caught.value.exit_status, caught.value.where) == (2, str(run.path))
    with run.locked():
        pass


def test_locking_removes_temporary_files_of_killed_processes(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    save(run, 1)
    (run.path / ".tmp-settings.json").write_text("{")
    (run.checkpoints / ".tmp-gone-step-00000009").mkdir()
    (run.checkpoints / ".tmp-gone-step-00000009" / "student.safetensors").write_text("x")
    with run.locked():
        assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "lock", "settings.json"]
        assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000001"]


def test_file_system_without_locks_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(37, "No locks available")))
    with caplog.at_level("WARNING", logger="minilm_cli"), create_run(tmp_path / "run").locked():
        pass
    assert "on a file system without locks" in caplog.text


def test_resume_command_is_quoted_for_a_shell() -> None:
    assert RunFolder(Path("runs/my run")).resume_command == "minilm resume 'runs/my run'"
