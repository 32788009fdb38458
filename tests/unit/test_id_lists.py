from __future__ import annotations

import gzip
import json
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilm_cli.base.errors import MinilmError
from minilm_cli.tokens import id_lists
from minilm_cli.tokens.id_lists import IdListWriter, convert_token_lists
from minilm_cli.tokens.store import TokenizerInfo

from .stores import sequences


def test_file_does_not_depend_on_the_calls(tmp_path: Path) -> None:
    for name, cuts in (("one", [[1, 2]]), ("two", [[1], [], [2]])):
        writer = IdListWriter(tmp_path / name)
        begin = 0
        for lengths in cuts:
            end = begin + sum(lengths)
            writer.add(np.arange(begin, end, dtype=np.uint16), np.array(lengths, dtype=np.int64))
            begin = end
        writer.close()
        assert gzip.decompress((tmp_path / name).read_bytes()) == b"[0]\n[1, 2]\n"
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_token_lists_are_compressed_at_level_6(tmp_path: Path) -> None:
    writer = IdListWriter(tmp_path / "lists")
    ids = np.random.default_rng(0).zipf(1.3, 50_000).clip(max=30_000).astype(np.uint16)
    writer.add(ids, np.full(1000, 50))
    writer.close()
    content = (tmp_path / "lists").read_bytes()
    deflate = zlib.compressobj(6, wbits=-zlib.MAX_WBITS)
    packed = deflate.compress(gzip.decompress(content)) + deflate.flush()
    assert content[10:-8] == packed  # between header and checksum


INFO = TokenizerInfo(vocabulary_size=180, special_ids=[3])


def convert(folder: Path, content: bytes, info: TokenizerInfo = INFO) -> Path:
    file = folder / "ids.jsonl.gz"
    file.write_bytes(gzip.compress(content))
    convert_token_lists(file, folder / "store", info)
    return folder / "store"


@given(st.lists(st.lists(st.integers(0, 179), min_size=1, max_size=6), min_size=1, max_size=20))
def test_token_lists_become_a_store_of_the_same_sequences(lists: list[list[int]]) -> None:
    content = "".join(json.dumps(ids) + "\n" for ids in lists).encode()
    with tempfile.TemporaryDirectory() as folder:
        assert sequences(convert(Path(folder), content)) == lists


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1, 2", "cannot be read as JSON"),
        ("{}", "this line is not a list of token ids"),
        ("[]", "this list of token ids is empty"),
        ("[1.0]", "this line is not a list of token ids"),
        ("[true]", "this line is not a list of token ids"),
        ('["1"]', "this line is not a list of token ids"),
        ("[[1]]", "this line is not a list of token ids"),
        ("7", "this line is not a list of token ids"),
        ("[180]", "the token id 180 is outside the teacher's vocabulary of 180"),
        ("[3, -1]", "the token id -1 is outside"),
        ("[18446744073709551616]", "the token id 18446744073709551616 is outside"),
        pytest.param(f"[{'9' * 5000}]", "cannot be read as JSON", id="a number of thousands of digits"),
        ("[NaN]", "this line is not a list of token ids"),
        ("", "cannot be read as JSON"),
        pytest.param("\udcff", "cannot be read as JSON", id="invalid UTF-8"),
        pytest.param("[" * 100_000, "cannot be read as JSON", id="nested too deeply"),
    ],
)
def test_invalid_line_is_refused_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(MinilmError, match=message) as caught:
        convert(tmp_path, b"[1]\n" * 1500 + line.encode(errors="surrogateescape") + b"\n[2]\n")
    assert caught.value.where == f"{tmp_path / 'ids.jsonl.gz'}, line 1501"


def test_too_long_line_is_refused_with_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_lists, "LONGEST_LIST", 19)
    fits = b"[1, 2, 3, 4, 5, 66]\n"
    assert sequences(convert(tmp_path, fits)) == [[1, 2, 3, 4, 5, 66]]
    with pytest.raises(MinilmError, match="this line is longer than") as caught:
        convert(tmp_path, b"[1]\n" + b"[1, 2, 3, 4, 5, 666]\n")
    assert caught.value.where == f"{tmp_path / 'ids.jsonl.gz'}, line 2"


def test_huge_line_in_a_small_file_is_not_decompressed(tmp_path: Path) -> None:
    file = tmp_path / "ids.jsonl.gz"
    file.write_bytes(gzip.compress(b"[1]\n[") + gzip.compress(b"1," * 2**20) * 1000)
    tracemalloc.start()
    try:
        with pytest.raises(MinilmError, match="this line is longer than 4 MiB") as caught:
            convert_token_lists(file, tmp_path / "store", INFO)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    assert caught.value.where == f"{file}, line 2"


def test_file_name_is_not_a_pattern(tmp_path: Path) -> None:
    convert(tmp_path, b"[1]\n")
    with pytest.raises(MinilmError, match="there is no such file") as caught:
        convert_token_lists(tmp_path / "*.jsonl.gz", tmp_path / "another", INFO)
    assert caught.value.where == str(tmp_path / "*.jsonl.gz")


def test_lists_of_several_batches_are_read(tmp_path: Path) -> None:
    lists = [[n % 180] * 100 for n in range(5000)]
    content = "".join(json.dumps(ids) + "\n" for ids in lists).encode()
    assert len(content) > 2**20
    assert sequences(convert(tmp_path, content)) == lists


def test_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="the file has no sequence"):
        convert(tmp_path, b"")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        pytest.param(b"no gzip at all", "", id="no gzip"),
        pytest.param(gzip.compress(b"[1]\n" * 9999)[:-5], ", line 10000", id="cut short"),
        pytest.param(
            gzip.compress(b"[1]\n[2") + gzip.compress(b"]\n[3]\n")[:-9], ", line 4", id="second member cut short"
        ),
        pytest.param(b"", "", id="empty"),
    ],
)
def test_damaged_file_is_refused_with_its_line(tmp_path: Path, content: bytes, line: str) -> None:
    file = tmp_path / "ids.jsonl.gz"
    file.write_bytes(content)
    with pytest.raises(MinilmError) as caught:
        convert_token_lists(file, tmp_path / "store", INFO)
    assert caught.value.where == f"{file}{line}"
