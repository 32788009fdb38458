from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from minilm_cli.base import jsonio
from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.jsonio import parse_json, read_json, write_json


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"ж": [1, 2.5, None, True, "\u2028"], "nested": {"a": {}}}
    write_json(tmp_path / "file", value)
    assert read_json(tmp_path / "file", kind="settings") == value
    assert "ж" in (tmp_path / "file").read_text(encoding="utf-8")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="there is no such manifest") as caught:
        read_json(tmp_path / "nothing", kind="manifest")
    assert caught.value.where == str(tmp_path / "nothing")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"{'a': 1}", b'{"a": "\\ud800"}'],
    ids=["empty", "cut short", "not text", "nested too deeply", "python", "lone surrogate"],
)
def test_invalid_json_is_refused_by_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(MinilmError, match="this manifest cannot be read as JSON") as caught:
        read_json(tmp_path / "file", kind="manifest")
    assert caught.value.where == str(tmp_path / "file")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_folders_and_pipes_are_refused(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "file")
    with pytest.raises(MinilmError, match="this manifest cannot be read as JSON: it is not a file"):
        read_json(tmp_path / "file", kind="manifest")


def test_too_large_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(2**40)  # takes no space
    with pytest.raises(MinilmError, match="larger than any"):
        read_json(tmp_path / "file", kind="manifest")


@pytest.mark.usefixtures("ordinary_user")
def test_unreadable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a folder" / "inner").mkdir(parents=True)
    (tmp_path / "a folder").chmod(0)
    with pytest.raises(MinilmError, match="this manifest cannot be read: Permission denied") as caught:
        read_json(tmp_path / "a folder" / "inner" / "file", kind="manifest")
    assert caught.value.hint == f"Check the permissions: ls -ld '{tmp_path}/a folder'"


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
def test_parse_error_has_a_line_number_only_for_several_lines(text: str | bytes, reason: str) -> None:
    with pytest.raises(MinilmError) as caught:
        parse_json(text, kind="line", where="x.jsonl, line 7")
    assert str(caught.value) == f"x.jsonl, line 7: this line cannot be read as JSON: {reason}"


def test_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "file", 1)
    monkeypatch.setattr(jsonio, "sync", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    with pytest.raises(RunError, match="Input/output error"):
        write_json(tmp_path / "file", 2)
    assert read_json(tmp_path / "file", kind="number") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
