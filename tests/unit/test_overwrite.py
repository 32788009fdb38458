from __future__ import annotations

import os
from pathlib import Path

import pytest

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.locks import Lock
from minilm_cli.base.overwrite import refuse_existing


def make(path: Path, kind: str) -> None:
    match kind:
        case "file":
            path.write_text("mine")
        case "empty folder":
            path.mkdir()
        case "folder":
            path.mkdir()
            (path / "letter.txt").write_text("mine")
        case "run":
            path.mkdir()
            for name in ("settings.json", "plan.json"):
                (path / name).touch()
        case "pipe":
            os.mkfifo(path)
        case "link to nothing":
            path.symlink_to(path.with_name("nowhere"))
        case "link to itself":
            path.symlink_to(path)
        case "link to a folder":
            make(path.with_name("target"), "folder")
            path.symlink_to(path.with_name("target"))


KINDS = ("file", "empty folder", "folder", "run", "pipe", "link to nothing", "link to itself", "link to a folder")


@pytest.mark.parametrize("kind", KINDS)
def test_existing_output_is_refused_without_force(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "output", kind)
    with pytest.raises(MinilmError, match="exists already") as caught:
        refuse_existing(tmp_path / "output", force=False)
    assert caught.value.where == str(tmp_path / "output")
    assert "--force" in (caught.value.hint or "")


REFUSED = {
    ("folder", None): "not made by minilm",
    ("folder", True): "not made by minilm",
    ("folder", False): "not made by minilm",
    ("pipe", None): "a device, a pipe or a socket",
    ("pipe", True): "a device, a pipe or a socket",
    ("pipe", False): "a device, a pipe or a socket",
    ("file", True): "this is a file, and the output is a folder",
    ("empty folder", False): "this is a folder, and the output is a file",
    ("run", False): "this is a folder, and the output is a file",
}


@pytest.mark.parametrize("folder", [None, True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_force_replaces_only_links_files_and_folders_of_minilm(tmp_path: Path, kind: str, folder: bool | None) -> None:
    make(tmp_path / "output", kind)
    if (kind, folder) in REFUSED:
        with pytest.raises(MinilmError, match=f"{REFUSED[kind, folder]}; --force does not replace it"):
            refuse_existing(tmp_path / "output", force=True, folder=folder)
    else:
        refuse_existing(tmp_path / "output", force=True, folder=folder)


@pytest.mark.parametrize("name", [".", "..", "a/..", ""])
def test_output_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(MinilmError, match="a name of its own"):
        refuse_existing(Path(name), force=True)


def test_inputs_are_not_replaced(tmp_path: Path) -> None:
    make(tmp_path / "run", "run")
    (tmp_path / "text").touch()
    (tmp_path / "link").symlink_to("text")
    with pytest.raises(MinilmError, match="link, which is an input"):
        refuse_existing(tmp_path / "text", tmp_path / "other", tmp_path / "link", force=True)
    with pytest.raises(MinilmError, match=r"would replace .*/run/plan\.json, which is an input"):
        refuse_existing(tmp_path / "run", tmp_path / "run" / "plan.json", force=True)
    refuse_existing(tmp_path / "link", tmp_path / "text", force=True)


def test_locked_folder_is_not_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    make(run, "run")
    with Lock(run / "lock"), pytest.raises(MinilmError, match=f"process {os.getpid()} on .* is using this folder"):
        refuse_existing(run, force=True)
    refuse_existing(run, force=True)


def test_parent_of_the_working_directory_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "run", "run")
    (tmp_path / "run" / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "run" / "inner")
    with pytest.raises(MinilmError, match="contains the current working directory"):
        refuse_existing(tmp_path / "run", force=True)
