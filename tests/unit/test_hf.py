from __future__ import annotations

import os
from pathlib import Path

import pytest

from minilm_cli.export.hf import copy_files


def test_files_and_subfolders_are_copied(tmp_path: Path) -> None:
    (tmp_path / "from" / "inner").mkdir(parents=True)
    (tmp_path / "from" / "a").write_bytes(b"\x00\xff")
    (tmp_path / "from" / "inner" / "b").write_text("b")
    (tmp_path / "from" / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "from" / "pipe")
    copy_files(tmp_path / "from", tmp_path / "to")
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["a", "inner"]
    assert (tmp_path / "to" / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "to" / "inner" / "b").read_text() == "b"


@pytest.mark.usefixtures("ordinary_user")
def test_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "a").touch(mode=0)
    with pytest.raises(PermissionError) as caught:
        copy_files(tmp_path / "from", tmp_path / "to")
    assert caught.value.filename == str(tmp_path / "from" / "a")
