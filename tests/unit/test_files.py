from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from minilm_cli.errors import MinilmError
from minilm_cli.files import read_json, refuse_existing, sha256, staged, write_json


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
    with pytest.raises(OSError, match="Input/output"), staged(path, force=True) as built:
        built.write_text("new")
    assert path.read_text() == "old"


def test_refusing_looks_at_existing_outputs_only(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "nothing", force=False)
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
