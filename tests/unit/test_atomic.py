from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from safetensors import SafetensorError

from minilm_cli.base import atomic
from minilm_cli.base.atomic import discard, renewed, staged, sweep
from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.locks import Lock


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_output_gets_its_name_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "output"
    with staged(path) as built:
        built.write_text("complete")
        assert built.name == path.name
        assert not path.exists()
        assert built.resolve().is_relative_to(path.parent.resolve())
    assert path.read_text() == "complete"
    assert names(path.parent) == ["output"]


def test_folder_is_moved_with_subfolders_and_links(tmp_path: Path) -> None:
    with staged(tmp_path / "output") as built:
        (built / "inner").mkdir(parents=True)
        (built / "inner" / "file").write_text("x")
        (built / "link").symlink_to("inner")
    assert (tmp_path / "output" / "inner" / "file").read_text() == "x"
    assert (tmp_path / "output" / "link" / "file").read_text() == "x"


def test_files_get_the_mode_of_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with staged(tmp_path / "output") as built:
            built.mkdir()
            (built / "private").touch(mode=0o600)
            (built / "link").symlink_to("nowhere")
        with staged(tmp_path / "file") as built:
            built.touch(mode=0o600)
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("output", "output/private", "file")]
    assert modes == [0o750, 0o640, 0o640]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_failed_block_leaves_no_output(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(error), staged(tmp_path / "a" / "b" / "output") as built:  # noqa: PT012
        built.mkdir()
        (built / "half").write_text("x")
        raise error
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == []


@pytest.mark.parametrize("old", ["file", "folder", "link to a folder", "link to a file"])
def test_force_replaces_any_output(tmp_path: Path, old: str) -> None:
    path, elsewhere = tmp_path / "output", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("kept")
    match old:
        case "file":
            path.write_text("old")
        case "folder":
            path.mkdir()
            (path / "checkpoint.json").write_text("old")
        case "link to a folder":
            path.symlink_to(elsewhere)
        case "link to a file":
            path.symlink_to(elsewhere / "precious")
    with staged(path, force=True) as built:
        built.mkdir()
        (built / "new").write_text("new")
    assert names(path) == ["new"]
    assert not path.is_symlink()
    assert (elsewhere / "precious").read_text() == "kept"
    assert names(tmp_path) == ["elsewhere", "output"]


@pytest.mark.parametrize("force", [False, True])
def test_protected_output_is_refused_before_and_after_the_block(tmp_path: Path, force: bool) -> None:
    path, refused = tmp_path / "output", "this is a file" if force else "exists already"
    with pytest.raises(MinilmError, match=refused), staged(path, force=force, folder=True) as built:  # noqa: PT012
        built.mkdir()
        path.write_text("from another process")
    with pytest.raises(MinilmError, match=refused), staged(path, force=force, folder=True):
        pytest.fail("the block was entered")
    assert path.read_text() == "from another process"
    assert names(tmp_path) == ["output"]


def test_renewed_replaces_an_existing_folder(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "step"
    for content in ("old", "new"):
        with renewed(path) as built:
            built.mkdir()
            (built / "file").write_text(content)
    assert (path / "file").read_text() == "new"
    assert names(path.parent) == ["step"]


def make_old_folder(path: Path) -> None:
    path.mkdir()
    (path / "checkpoint.json").write_text("old")


def test_old_folder_is_restored_if_the_last_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old_folder(path := tmp_path / "output")
    rename = Path.rename

    def fail_for_new_folder(self: Path, target: Path) -> Path:
        if Path(target) == path and (self / "new").exists():
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_new_folder)
    with pytest.raises(RunError, match="Input/output"), staged(path, force=True) as built:  # noqa: PT012
        built.mkdir()
        (built / "new").touch()
    assert names(path) == ["checkpoint.json"]
    assert names(tmp_path) == ["output"]


def test_old_folder_is_restored_by_the_next_process_if_it_cannot_be_moved_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old_folder(path := tmp_path / "output")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if Path(target) == path:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(RunError), staged(path, force=True) as built:  # noqa: PT012
        patch.setattr(Path, "rename", fail)
        built.mkdir()
    assert not path.exists()
    atomic.restore(path)
    assert (path / "checkpoint.json").read_text() == "old"
    assert names(tmp_path) == ["output"]


#: Replaces an output in processes; the n-th is killed just before its n-th file operation.
KILLS = """
import itertools, os, signal, sys
from pathlib import Path
from minilm_cli.base.atomic import restore, staged, sweep

output, kind = Path("output"), sys.argv[1]


def write(path, content):
    if kind == "folder":
        path.mkdir(exist_ok=True)
        path = path / "checkpoint.json"
    path.write_text(content)


def replace(calls):
    def count(event, arguments):
        nonlocal calls
        if event.startswith(("os.", "open", "fcntl.")):
            calls -= 1
            if calls == -1:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    with staged(output, force=True) as built:
        write(built, "new")


for calls in itertools.count():
    write(output, "old")
    if not (process := os.fork()):
        replace(calls)
        os._exit(0)
    status = os.waitpid(process, 0)[1]
    restore(output)
    content = (output / "checkpoint.json" if kind == "folder" else output).read_text()
    sweep(Path())
    print(content, status, *[path.name for path in Path().iterdir()])
    if not status:
        break
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_process_leaves_the_old_or_the_new_output(tmp_path: Path, kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLS, kind], cwd=tmp_path, check=True, capture_output=True, text=True)
    *killed, last = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert last == ["new", "0", "output"]
    assert {(status, remaining) for _, status, remaining in killed} == {("9", "output")}
    contents = [content for content, *_ in killed]
    assert contents == sorted(contents, reverse=True)  # first the old one, later the new one
    assert contents.count("old") > 3
    assert contents.count("new") > 3


@pytest.mark.parametrize(("existing", "kept"), [(None, "old"), ("new", "new")])
def test_replaced_output_is_restored_unless_its_name_is_taken(tmp_path: Path, existing: str | None, kept: str) -> None:
    if existing:
        (tmp_path / "output").write_text(existing)
    remaining = tmp_path / ".tmp-minilm-output-abc"
    (remaining / ".replaced").mkdir(parents=True)
    (remaining / ".replaced" / "output").write_text("old")
    (remaining / ".minilm-lock").touch()
    sweep(tmp_path)
    assert names(tmp_path) == ["output"]
    assert (tmp_path / "output").read_text() == kept


def test_partly_deleted_output_is_not_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old_folder(path := tmp_path / "output")
    with monkeypatch.context() as patch, staged(path, force=True) as built:
        built.mkdir()
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # as if the process were killed there
    assert len(names(tmp_path)) == 2
    shutil.rmtree(path)
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_sweep_keeps_outputs_in_progress(tmp_path: Path) -> None:
    with staged(tmp_path / "output") as built:
        built.write_text("half")
        sweep(tmp_path, own=True)
        with staged(tmp_path / "other") as also:
            also.write_text("x")
        assert built.read_text() == "half"
    assert names(tmp_path) == ["other", "output"]


def test_sweep_removes_other_temporary_files_only_in_own_folders(tmp_path: Path) -> None:
    for name in (".tmp-minilm-output-abc", ".tmp-mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    for name in (".tmp-minilm-file", ".tmp-settings.json"):
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert names(tmp_path) == [".tmp-mine", ".tmp-minilm-file", ".tmp-settings.json"]
    sweep(tmp_path, own=True)
    assert names(tmp_path) == []
    sweep(tmp_path / "nowhere")


def test_sweep_removes_nothing_without_file_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    with staged(tmp_path / "output") as built:
        built.write_text("x")
        sweep(tmp_path)
        assert built.read_text() == "x"
    assert names(tmp_path) == ["output"]


@pytest.mark.parametrize("moment", ["locked", "removed"])
def test_temporary_folder_swept_by_another_process_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    claim, folders, locks = atomic._claim, [], []

    def swept(folder: Path) -> Lock | None:
        folders.append(folder)
        if len(folders) == 1:
            if moment == "removed":
                folder.rmdir()
            else:
                locks.append(Lock(folder / ".minilm-lock"))
        return claim(folder)

    monkeypatch.setattr(atomic, "_claim", swept)
    with staged(tmp_path / "output") as built:
        built.write_text("x")
    for lock in locks:
        lock.close()
    assert len(folders) == 2
    assert names(tmp_path) == ["output"]


def test_file_system_with_unreliable_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lock, "in_place", lambda _: False)
    with pytest.raises(RunError, match="file locks do not work on this file system") as caught:  # noqa: SIM117
        with staged(tmp_path / "output"):
            pytest.fail("the block was entered")
    assert (caught.value.where, bool(caught.value.hint)) == (str(tmp_path), True)
    assert names(tmp_path) == []


def test_discarded_folder_is_renamed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # as if the process were killed there
        discard(tmp_path / "old")
    assert names(tmp_path) == [".tmp-gone-old"]
    sweep(tmp_path, own=True)
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
def test_write_error_is_reported_and_keeps_the_old_output(tmp_path: Path, number: int) -> None:
    (tmp_path / "output").write_text("old")
    with pytest.raises(RunError, match=os.strerror(number)) as caught, staged(tmp_path / "output", force=True) as built:
        raise OSError(number, os.strerror(number), str(built / "part"))
    assert (caught.value.exit_status, caught.value.where) == (1, str(tmp_path / "output"))
    assert names(tmp_path) == ["output"]
    assert (tmp_path / "output").read_text() == "old"


def test_safetensors_error_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="No space left"), staged(tmp_path / "output"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")


def test_errors_about_other_files_are_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged(tmp_path / "output"):
        (tmp_path / "nowhere").read_text()


def test_little_free_space_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3e6))
    with pytest.raises(RunError) as caught, staged(tmp_path / "output"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.hint == f"Only 3 MB free in {tmp_path}."


@pytest.mark.parametrize("function", ["tempfile.mkdtemp", "pathlib.Path.mkdir"])
@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EROFS, MinilmError), (errno.EACCES, MinilmError), (errno.ENOSPC, RunError)]
)
def test_unwritable_folder_is_a_usage_error_and_a_full_disk_a_run_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[MinilmError], function: str
) -> None:
    monkeypatch.setattr(function, Mock(side_effect=OSError(number, os.strerror(number))))
    path = tmp_path / "output"
    with pytest.raises(kind, match=os.strerror(number)) as caught, staged(path):
        pytest.fail("the block was entered")
    assert type(caught.value) is kind
    assert caught.value.where == str(tmp_path)
    with pytest.raises(RunError, match=os.strerror(number)), renewed(path):
        pytest.fail("the block was entered")
