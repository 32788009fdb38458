from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from minilm_cli.base import atomic, jsonio
from minilm_cli.base.atomic import discard, refuse_existing, staged, sweep
from minilm_cli.base.checksums import sha256
from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.jsonio import parse_json, read_json, write_json
from minilm_cli.base.locks import Lock
from minilm_cli.export.hf import copy_files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_built_gets_its_name_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "output"
    with staged(path) as built:
        built.write_text("whole")
        assert built.name == path.name
        assert not path.exists()
        assert built.resolve().is_relative_to(tmp_path.resolve())
    assert path.read_text() == "whole"
    assert names(tmp_path) == ["output"]


def test_a_folder_with_folders_in_it_is_moved_whole(tmp_path: Path) -> None:
    with staged(tmp_path / "output") as built:
        (built / "inner").mkdir(parents=True)
        (built / "inner" / "file").write_text("x")
        (built / "link").symlink_to("inner")
    assert (tmp_path / "output" / "inner" / "file").read_text() == "x"
    assert (tmp_path / "output" / "link" / "file").read_text() == "x"


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    with staged(tmp_path / "a" / "b" / "output") as built:
        built.write_text("x")
    assert (tmp_path / "a" / "b" / "output").read_text() == "x"


def test_an_output_is_as_open_as_any_new_file(tmp_path: Path) -> None:
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
def test_when_the_block_fails_nothing_is_left(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), staged(tmp_path / "a" / "b" / "output") as built:  # noqa: PT012
        built.mkdir()
        (built / "half").write_text("x")
        raise error
    assert names(tmp_path) == []


def test_when_the_block_fails_folders_that_were_there_stay(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="no"), staged(tmp_path / "a" / "b" / "output"):
        raise ValueError("no")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == []


@pytest.mark.parametrize("kind", ["file", "folder", "link to nothing"])
def test_an_existing_output_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "output"
    if kind == "file":
        path.write_text("old")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(MinilmError, match="exists already") as caught, staged(path):
        pass
    assert caught.value.where == str(path)
    assert "--force" in (caught.value.hint or "")
    assert names(tmp_path) == ["output"]


@pytest.mark.parametrize("old", ["file", "folder", "link to a folder"])
def test_with_force_the_new_replaces_the_old_whatever_it_is(tmp_path: Path, old: str) -> None:
    path = tmp_path / "output"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("kept")
    if old == "file":
        path.write_text("old")
    elif old == "folder":
        path.mkdir()
        (path / "checkpoint.json").write_text("old")
    else:
        path.symlink_to(elsewhere)
    with staged(path, force=True) as built:
        built.mkdir()
        (built / "new").write_text("new")
    assert names(path) == ["new"]
    assert not path.is_symlink()
    assert names(elsewhere) == ["precious"]
    assert names(tmp_path) == ["elsewhere", "output"]


def test_with_force_a_failing_block_leaves_the_old(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_text("old")
    with pytest.raises(ValueError, match="no"), staged(path, force=True) as built:  # noqa: PT012
        built.write_text("new")
        raise ValueError("no")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["output"]


def test_when_the_last_rename_fails_the_old_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "output"
    path.write_text("old")
    rename = Path.rename

    def fail_for_the_new(self: Path, target: Path) -> Path:
        if Path(target) == path and self.read_text() == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(RunError, match="Input/output"), staged(path, force=True) as built:
        built.write_text("new")
    assert path.read_text() == "old"


def test_refusing_looks_at_existing_outputs_only(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "nothing", tmp_path / "nothing", force=False, folder=True)
    refuse_existing(tmp_path, force=True)
    with pytest.raises(MinilmError):
        refuse_existing(tmp_path, force=False)


def test_a_checksum_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_json_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    value = {"ж": [1, 2.5, None, True, "\u2028"], "nested": {"a": {}}}
    write_json(tmp_path / "file", value)
    assert read_json(tmp_path / "file", kind="settings") == value
    assert "ж" in (tmp_path / "file").read_text(encoding="utf-8")


def test_a_json_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="there is no such manifest") as caught:
        read_json(tmp_path / "nothing", kind="manifest")
    assert caught.value.where == str(tmp_path / "nothing")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"{'a': 1}"],
    ids=["empty", "cut short", "not text", "nested too deeply", "python"],
)
def test_a_file_that_is_no_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(MinilmError, match="this manifest cannot be read as JSON") as caught:
        read_json(tmp_path / "file", kind="manifest")
    assert caught.value.where == str(tmp_path / "file")


def test_a_folder_is_no_json_file(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="this manifest cannot be read as JSON"):
        read_json(tmp_path, kind="manifest")


def test_a_folder_that_is_not_ours_is_not_replaced_even_by_force(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(MinilmError, match="not made by minilm"), staged(tmp_path / "home", force=True) as built:
        built.mkdir()
    assert (tmp_path / "home" / "letter.txt").read_text(encoding="utf-8") == "dear"


@pytest.mark.parametrize("folder", [True, False])
def test_a_folder_replaces_no_file_and_a_file_no_folder_even_by_force(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "output"
    if folder:
        path.touch()
    else:
        path.mkdir()
    refuse_existing(path, force=True, folder=not folder)
    with pytest.raises(MinilmError, match="--force does not replace it"), staged(path, force=True, folder=folder):
        pytest.fail("it was begun")
    assert path.is_file() == folder
    assert names(tmp_path) == ["output"]


def test_a_file_that_came_meanwhile_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "output"
    with pytest.raises(MinilmError, match="this is a file"), staged(path, force=True, folder=True) as built:  # noqa: PT012
        built.mkdir()
        path.write_text("theirs")
    assert path.read_text() == "theirs"


def test_a_link_is_replaced_by_force_whatever_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    (tmp_path / "output").symlink_to("letter")
    with staged(tmp_path / "output", force=True, folder=True) as built:
        built.mkdir()
    assert (tmp_path / "output").is_dir()
    assert (tmp_path / "letter").read_text() == "dear"


def test_what_an_output_is_made_from_is_not_replaced_even_by_force(tmp_path: Path) -> None:
    (tmp_path / "text").touch()
    (tmp_path / "link").symlink_to("text")
    with pytest.raises(MinilmError, match="link, which is read"):
        refuse_existing(tmp_path / "text", tmp_path / "other", tmp_path / "link", force=True)
    refuse_existing(tmp_path / "link", tmp_path / "text", force=True)


# --- Copies ------------------------------------------------------------------------------------------------------


def test_the_files_of_a_folder_are_copied_with_those_in_its_folders(tmp_path: Path) -> None:
    (tmp_path / "from" / "inner").mkdir(parents=True)
    (tmp_path / "from" / "a").write_bytes(b"\x00\xff")
    (tmp_path / "from" / "inner" / "b").write_text("b")
    (tmp_path / "from" / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "from" / "pipe")
    copy_files(tmp_path / "from", tmp_path / "to")
    assert names(tmp_path / "to") == ["a", "inner"]
    assert (tmp_path / "to" / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "to" / "inner" / "b").read_text() == "b"


@pytest.mark.usefixtures("ordinary_user")
def test_a_file_that_may_not_be_copied_is_named(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "a").touch(mode=0)
    with pytest.raises(PermissionError) as caught:
        copy_files(tmp_path / "from", tmp_path / "to")
    assert caught.value.filename == str(tmp_path / "from" / "a")


# --- What a killed process leaves --------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from minilm_cli.base import atomic

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(atomic, sys.argv[1], die)
with atomic.staged(Path("output"), force=True) as built:
    built.write_text("new")
"""


def killed_in(function: str, folder: Path) -> None:
    """Have a process replace `output`, and kill itself where it would call this function of `files`."""
    ended = subprocess.run([sys.executable, "-c", KILLED, function], cwd=folder, check=False)
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("function", ["_claim", "_sync_tree", "_put", "sync"])
def test_what_a_killed_process_left_is_cleared_away_by_the_next(tmp_path: Path, function: str) -> None:
    (tmp_path / "output").write_text("old")
    killed_in(function, tmp_path)
    left = [path for path in tmp_path.iterdir() if path.name.startswith(".tmp-minilm-output-")]
    assert len(left) == 1
    with staged(tmp_path / "other") as built:
        built.write_text("other")
    assert names(tmp_path) == ["other", "output"]
    assert (tmp_path / "output").read_text() in ("old", "new")


@pytest.mark.parametrize(("stands", "wins"), [(None, "old"), ("new", "new")])
def test_what_a_killed_process_had_moved_aside_gets_its_name_back_unless_something_new_has_it(
    tmp_path: Path, stands: str | None, wins: str
) -> None:
    if stands:
        (tmp_path / "output").write_text(stands)
    left = tmp_path / ".tmp-minilm-output-abc"
    (left / ".replaced").mkdir(parents=True)
    (left / ".replaced" / "output").write_text("old")
    (left / ".minilm-lock").touch()
    sweep(tmp_path)
    assert names(tmp_path) == ["output"]
    assert (tmp_path / "output").read_text() == wins


def test_what_another_process_works_on_stays(tmp_path: Path) -> None:
    with staged(tmp_path / "output") as built:
        built.write_text("half")
        sweep(tmp_path, own=True)
        with staged(tmp_path / "other") as also:
            also.write_text("x")
        assert built.read_text() == "half"
    assert names(tmp_path) == ["other", "output"]


def test_folders_that_were_not_made_here_stay_unless_the_folder_is_our_own(tmp_path: Path) -> None:
    (tmp_path / ".tmp-empty").mkdir()
    (tmp_path / ".tmp-minilm-mine").mkdir()
    (tmp_path / ".tmp-minilm-mine" / "letter").write_text("dear")
    (tmp_path / ".tmp-settings.json").write_text("{")
    sweep(tmp_path)
    assert names(tmp_path) == [".tmp-empty", ".tmp-minilm-mine", ".tmp-settings.json"]
    sweep(tmp_path, own=True)
    assert names(tmp_path) == []
    sweep(tmp_path / "nowhere")


def test_an_output_that_another_process_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="exists already"), staged(tmp_path / "output") as built:  # noqa: PT012
        built.write_text("mine")
        (tmp_path / "output").write_text("theirs")
    assert names(tmp_path) == ["output"]
    assert (tmp_path / "output").read_text() == "theirs"


def test_a_folder_that_a_process_works_on_is_not_replaced_even_by_force(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("settings.json", "plan.json"):
        (run / name).write_text("{}")
    with Lock(run / "lock"), pytest.raises(MinilmError, match=f"process {os.getpid()} on .* is at work in this folder"):
        refuse_existing(run, force=True)
    refuse_existing(run, force=True)


def test_a_new_folder_that_another_process_clears_away_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, tries = atomic._claim, []

    def swept(folder: Path) -> Lock | None:
        tries.append(folder)
        if len(tries) == 1:
            folder.rmdir()
        return claim(folder)

    monkeypatch.setattr(atomic, "_claim", swept)
    with staged(tmp_path / "output") as built:
        built.write_text("x")
    assert len(tries) == 2
    assert names(tmp_path) == ["output"]


def test_where_locks_are_lost_at_once_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lock, "in_place", lambda _: False)
    with pytest.raises(RunError, match="does not know its files again") as caught, staged(tmp_path / "output"):
        pass
    assert (caught.value.where, bool(caught.value.hint)) == (str(tmp_path), True)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"text": "x', "Unterminated string starting at character 10"),
        (b'{"text": "\xe2\x82\xac" 3}', "Expecting ',' delimiter at character 14"),
        ("{\n3}", "Expecting property name enclosed in double quotes: line 2 column 1 (char 2)"),
        ("[" * 100_000, "it is nested too deeply"),
    ],
    ids=["text", "bytes", "lines", "nested"],
)
def test_where_json_is_wrong_is_told_by_line_only_where_there_are_lines(text: str | bytes, reason: str) -> None:
    with pytest.raises(MinilmError) as caught:
        parse_json(text, kind="line", where="x.jsonl, line 7")
    assert str(caught.value) == f"x.jsonl, line 7: this line cannot be read as JSON: {reason}"


def test_a_discarded_folder_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("x")
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # as if it were killed there
    discard(tmp_path / "old")
    assert names(tmp_path) == [".tmp-gone-old"]
    monkeypatch.undo()
    sweep(tmp_path, own=True)
    assert names(tmp_path) == []


# --- What cannot be written --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
def test_what_cannot_be_written_is_told_with_the_reason_and_leaves_the_old(tmp_path: Path, number: int) -> None:
    (tmp_path / "output").write_text("old")
    with pytest.raises(RunError, match=os.strerror(number)) as caught, staged(tmp_path / "output", force=True) as built:
        raise OSError(number, os.strerror(number), str(built / "part"))
    assert (caught.value.exit_status, caught.value.where) == (1, str(tmp_path / "output"))
    assert names(tmp_path) == ["output"]
    assert (tmp_path / "output").read_text() == "old"


def test_what_safetensors_cannot_write_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="No space left"), staged(tmp_path / "output"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")


def test_an_error_about_a_file_elsewhere_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged(tmp_path / "output"):
        (tmp_path / "nowhere").read_text()


def test_how_little_room_there_is_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3e6))
    with pytest.raises(RunError) as caught, staged(tmp_path / "output"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.hint == f"There are 3 MB free in {tmp_path}."


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EROFS, MinilmError), (errno.EACCES, MinilmError), (errno.ENOSPC, RunError)]
)
def test_where_nobody_may_write_is_a_mistake_and_a_full_disk_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[MinilmError]
) -> None:
    def refuse(**_: object) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(kind, match=os.strerror(number)) as caught, staged(tmp_path / "output"):
        pass
    assert type(caught.value) is kind
    assert caught.value.where == str(tmp_path)


def test_a_json_file_that_cannot_be_written_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "file", 1)

    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(jsonio, "sync", fail)
    with pytest.raises(RunError, match="Input/output error"):
        write_json(tmp_path / "file", 2)
    assert read_json(tmp_path / "file", kind="number") == 1
    assert names(tmp_path) == ["file"]


@pytest.mark.usefixtures("ordinary_user")
def test_the_folder_that_keeps_a_json_file_from_being_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a folder" / "inner").mkdir(parents=True)
    (tmp_path / "a folder").chmod(0)
    with pytest.raises(MinilmError, match="this manifest cannot be read: Permission denied") as caught:
        read_json(tmp_path / "a folder" / "inner" / "file", kind="manifest")
    assert caught.value.hint == f"Do you have the right to it? See: ls -ld '{tmp_path}/a folder'"


def test_a_json_file_larger_than_any_of_ours_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(2**40)  # takes no space
    with pytest.raises(MinilmError, match="larger than any"):
        read_json(tmp_path / "file", kind="manifest")
