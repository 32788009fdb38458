from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minilm_cli.base.errors import InputChanged, MinilmError
from minilm_cli.corpus import decompress, sources
from minilm_cli.corpus.lines import BEGINNING, BOM, Place, parts
from minilm_cli.corpus.sources import find_sources

from .text_inputs import COMPRESSIONS, changed, numbered, put, read, refused, source, zstd


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages name files as they were given: here, without a folder."""
    monkeypatch.chdir(tmp_path)


#: Files that begin like this are refused.
NOT_PLAIN = (b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b")

line = st.binary(max_size=30).map(lambda content: content.replace(b"\n", b" ").rstrip(b"\r"))
some_bytes = st.lists(st.binary(max_size=4) | st.sampled_from([b"\n", b"\r\n", b"\r", b" ", "é€😀".encode()])).map(
    b"".join
)


@given(
    lines=st.lists(line),
    compression=st.sampled_from(sorted(COMPRESSIONS)),
    members=st.integers(1, 3),
    count=st.integers(1, 9),
    block=st.sampled_from([1, 2, 7, 2**16]),
    end=st.sampled_from([b"\n", b"\r\n"]),
    bom=st.sampled_from([b"", BOM]),
    piece=st.sampled_from([1, 4, 9, 2**20]),
)
def test_any_lines_are_read_back(
    lines: list[bytes], compression: str, members: int, count: int, block: int, end: bytes, bom: bytes, piece: int
) -> None:
    text = bom + b"".join(line + end for line in lines)
    if not bom and text.startswith(BOM):
        lines = [lines[0][len(BOM) :], *lines[1:]]
    assume(not text.startswith(NOT_PLAIN))
    cuts = [len(text) * member // members for member in range(members + 1)]
    packed = b"".join(COMPRESSIONS[compression](text[a:b]) for a, b in itertools.pairwise(cuts))
    with (
        tempfile.TemporaryDirectory() as folder,
        changed(sources, LONGEST_PART=piece),
        changed(decompress, _BLOCK=block, _COMPRESSED_BLOCK=block),
    ):
        file = Path(folder, f"lines.txt{compression}")
        file.write_bytes(packed)
        assert read(str(file), count=count) == lines


@given(text=some_bytes, count=st.integers(1, 4), again=st.integers(1, 4), piece=st.integers(1, 12), data=st.data())
def test_reading_can_continue_at_any_batch(
    text: bytes, count: int, again: int, piece: int, data: st.DataObject
) -> None:
    assume(not text.startswith(NOT_PLAIN))
    compression = data.draw(st.sampled_from(["", ".gz"]))
    few = data.draw(st.integers(1, 40))
    with tempfile.TemporaryDirectory() as folder, changed(sources, LONGEST_PART=piece, _BATCH_BYTES=few):
        file = Path(folder, f"text{compression}")
        file.write_bytes(COMPRESSIONS[compression](text))
        batches = list(source(str(file)).batches(count))
        for index, batch in enumerate(batches):
            rest = list(source(str(file)).batches(again, batch.place))
            assert numbered(iter(rest)) == numbered(iter(batches[index:]))
            cut = [(part.place, part.lines) for part in rest if part.continues]
            assert cut == [(part.place, part.lines) for part in batches[index:] if part.continues]
            assert rest[0].place == batch.place
            assert batch.place.is_beginning == (index == 0)


@given(text=some_bytes, longest=st.integers(1, 12))
def test_parts_are_short_and_make_up_the_text(text: bytes, longest: int) -> None:
    result = list(parts(text, longest))
    assert b"".join(result) == text
    assert all(0 < len(part) <= longest for part in result) or result == [b""]


@given(text=some_bytes.map(lambda text: text.replace(b"\n", b"").rstrip(b"\r")), piece=st.integers(1, 12))
def test_long_line_is_cut_into_parts(text: bytes, piece: int) -> None:
    text = text.removeprefix(BOM)
    with tempfile.TemporaryDirectory() as folder, changed(sources, LONGEST_PART=piece):
        file = Path(folder, "text")
        for end in (b"", b"\n", b"\r\n"):
            file.write_bytes(b"a\n" + text + end)
            batches = list(source(str(file)).batches(1))[1:]
            assert [batch.lines for batch in batches] == [[part] for part in parts(text, piece) if text or end]
            assert [batch.place.skipped for batch in batches[1:]] == [
                sum(len(earlier.lines[0]) for earlier in batches[:index]) for index in range(1, len(batches))
            ]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("the man and his", ["the man", " and his"]),
        ("the m and his", ["the m", " and his"]),
        ("a bcdefghijk", ["a bcdefg", "hijk"]),  # the space is in the first half
        ("abcdefgh ij", ["abcdefgh", " ij"]),
        ("abcdefgé ij", ["abcdefg", "é ij"]),
        ("abcdef€€", ["abcdef", "€€"]),
        ("abcde😀b", ["abcde", "😀b"]),
        ("abcdefgh", ["abcdefgh"]),
        ("", [""]),
    ],
)
def test_text_is_cut_before_a_space_or_between_characters(text: str, result: list[str]) -> None:
    assert [part.decode() for part in parts(text.encode(), 8)] == result


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"one", [b"one"]),
        (b"one\ntwo", [b"one", b"two"]),
        (b"one\r\n\r\ntwo\r\n", [b"one", b"", b"two"]),
        (b"one\r\r\ntwo\rthree\n", [b"one\r", b"two\rthree"]),
        (b"\0\n\0\0", [b"\0", b"\0\0"]),
        (BOM, []),
        (BOM * 2 + b"one\n" + BOM, [BOM + b"one", BOM]),
    ],
)
@pytest.mark.parametrize("compression", sorted(COMPRESSIONS))
def test_lines_have_no_line_ends_and_no_byte_order_mark(text: bytes, lines: list[bytes], compression: str) -> None:
    assert read(put(f"TEXT{compression.upper()}", COMPRESSIONS[compression](text))) == lines


@pytest.mark.parametrize("compression", sorted(COMPRESSIONS))
def test_empty_file_has_no_lines_or_is_damaged(compression: str) -> None:
    for kind in (".txt", ".jsonl", ".CSV"):
        name = put(f"empty{kind}{compression}", b"")
        if compression:
            with refused("damaged, or not compressed", name):
                read(name)
        else:
            assert read(name) == []
        assert read(put(f"packed{kind}{compression}", COMPRESSIONS[compression](b""))) == []


@pytest.mark.parametrize("compression", sorted(COMPRESSIONS))
def test_file_shortened_while_it_is_read_is_refused(compression: str) -> None:
    name = put(f"text{compression}", COMPRESSIONS[compression](b"one\ntwo\n"))
    batches = source(name).batches(1)
    assert next(batches).lines == [b"one"]
    os.truncate(name, 3)
    with refused("became shorter while it was read", name, "Start again", kind=InputChanged):
        list(batches)


@pytest.mark.parametrize("name", ["text.txt", "text.csv"])
def test_file_changed_while_it_is_read_gives_a_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    batches = source(put(name, b"text\none\n")).batches(1)
    next(batches)
    assert caplog.text == ""
    with Path(name).open("ab") as file:
        file.write(b"two\n")
    list(batches)
    assert f"{name} changed while it was read" in caplog.text


def test_batches_of_long_lines_have_fewer_lines() -> None:
    name = put("text", b"".join(b"%d\n" % number for number in range(10)) + (b"x" * 99 + b"\n") * 3)
    with changed(sources, _BATCH_BYTES=90), changed(decompress, _BLOCK=10):
        batches = list(source(name).batches(4))
    assert [len(batch.lines) for batch in batches] == [4, 4, 3, 1, 1]
    assert [batch.place.number for batch in batches] == [1, 5, 9, 12, 13]
    assert batches[0].where(3) == "text, line 4"
    assert sorted(batch.bytes_read for batch in batches) == [batch.bytes_read for batch in batches]
    assert batches[-1].bytes_read == Path(name).stat().st_size


def test_json_line_is_not_split() -> None:
    name = put("data.JSONL", b'{"text": "one"}\n{"text": "a longer one"}\n')
    batches = list(source(name).batches(1))
    assert [(batch.field, batch.lines) for batch in batches] == [
        ("text", [b'{"text": "one"}']),
        ("text", [b'{"text": "a longer one"}']),
    ]
    assert {batch.field for batch in source(name, "body").batches(1)} == {"body"}
    with changed(sources, LONGEST_JSON=24, LONGEST_PART=3):
        assert len(read(name)) == 2
    for ending in (b"", b"\n"):
        put(name, Path(name).read_bytes().rstrip() + ending)
        with changed(sources, LONGEST_JSON=23), refused("this line is longer than", f"{name}, line 2"):
            read(name)


def test_input_begins_after_its_byte_order_mark() -> None:
    first, second = source(put("text", BOM + b"one\ntwo\n")).batches(1)
    assert (first.place, second.place) == (Place(3, 1), Place(7, 2))
    places = (BEGINNING, first.place, second.place, Place(3, 1, skipped=3))
    assert [place.is_beginning for place in places] == [True, True, False, False]


@pytest.mark.parametrize("compression", sorted(COMPRESSIONS)[1:])
def test_huge_line_is_read_in_bounded_memory(compression: str) -> None:
    content = COMPRESSIONS[compression](bytes(2**25))
    text, json_lines = put(f"zeros{compression}", content), put(f"zeros.jsonl{compression}", content)
    tracemalloc.start()
    try:
        with changed(sources, LONGEST_JSON=2**20), refused("this line is longer than 1 MiB", f"{json_lines}, line 1"):
            read(json_lines)
        assert tracemalloc.get_traced_memory()[1] < 2**24
        assert sum(len(batch.lines[0]) for batch in source(text).batches(1000)) == 2**25
        assert tracemalloc.get_traced_memory()[1] < 2**25 - 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", sorted(COMPRESSIONS)[1:])
def test_damage_is_reported_with_the_line(compression: str) -> None:
    pack = COMPRESSIONS[compression]
    first = pack(b"one\ntwo\nthr")
    second = pack(b"ee\n" + bytes(range(100, 200)))
    name = f"text{compression}"
    for damaged in (
        first + second[:-1],
        first + second[:20],
        first + b"no such thing",
        first + second[:12] + b"\xaa" * 200,
    ):
        put(name, damaged)
        with pytest.raises(MinilmError, match="the file is damaged or cut short: ") as caught:
            read(name)
        assert caught.value.where in (f"{name}, line 3", f"{name}, line 4")
    put(name, first + bytes(1000) + pack(b"ee\n"))
    assert read(name) == [b"one", b"two", b"three"]


def test_file_that_needs_too_much_memory_to_decompress_is_refused() -> None:
    frame = b"\x28\xb5\x2f\xfd\x00%c\x19\x00\x00one"  # a header, the window, and three uncompressed bytes
    windows = {2**exponent: bytes([exponent - 10 << 3]) for exponent in (27, 28, 31)}
    assert read(put("text.zst", frame % windows[2**27])) == [b"one"]
    for window in (windows[2**28], windows[2**31]):
        put("text.zst", frame % window)
        with refused("decompressing this file takes too much memory", "text.zst", "zstd -d --long=31"):
            read("text.zst")
    wide = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**29}]
    put("text.xz", lzma.compress(b"one", filters=wide))
    with refused("decompressing this file takes too much memory", "text.xz", "xz -d"):
        read("text.xz")


def test_removed_file_is_reported() -> None:
    result = source(put("text", b"one\n"))
    Path("text").unlink()
    with refused("there is no such file", "text"):
        list(result.batches(1))


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("packed.txt", gzip.compress(b"one", mtime=0), "this file is compressed with gzip, not plain", "ends in .gz."),
        ("packed.csv", zstd.compress(b"one"), "this file is compressed with zstd, not plain UTF-8", "ends in .zst."),
        ("packed.jsonl", bz2.compress(b"one"), "this file is compressed with bzip2, not plain", "ends in .bz2."),
        ("packed", lzma.compress(b"one"), "this file is compressed with xz, not plain UTF-8", "ends in .xz."),
        ("wide.txt", "one".encode("utf-16"), "this file is UTF-16, not plain UTF-8", "iconv -f utf-16"),
        ("plain.gz", b"one", "damaged, or not compressed with gzip as its name says", ""),
        ("nothing.gz", b"", "damaged, or not compressed with gzip as its name says", ""),
        ("other.zst", gzip.compress(b"", mtime=0), "damaged, or not compressed with zstd as its name says", ""),
        ("files.ZIP", b"PK", ".zip files are not supported", "Give text, JSON (.jsonl, .json), CSV or TSV"),
        ("files.tar.gz", b"", ".tar.gz files are not supported", "Give text, JSON (.jsonl, .json), CSV or TSV"),
        ("packed.json", gzip.compress(b"[]", mtime=0), "this file is compressed with gzip, not plain", "ends in .gz."),
        ("files.tgz", b"", ".tgz files are not supported", ""),
        ("table.parquet.gz", b"", ".parquet.gz files are not supported", ""),
        ("table.parquet", b"", "the file is damaged or not Parquet: ", ""),
    ],
)
def test_unsupported_file_is_refused_before_it_is_read(name: str, content: bytes, message: str, hint: str) -> None:
    put(name, content)
    with refused(message, name, hint):
        find_sources([name], None)


def test_input_that_is_not_a_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("folder").mkdir()
    os.mkfifo("pipe")
    with refused("this is a folder, not a text file", "folder/", "'folder/*.txt'"):
        find_sources(["folder/"], None)
    with refused("this is a pipe or a device, not a file", "pipe", "minilm tokenize - < pipe"):
        find_sources(["pipe"], None)
    reading, writing = os.pipe()
    with refused("this is a pipe or a device, not a file", f"/dev/fd/{reading}", "COMMAND | minilm tokenize -"):
        find_sources([f"/dev/fd/{reading}"], None)
    os.close(reading)
    os.close(writing)
    with refused("there is no such file", "nothing"):
        find_sources(["nothing"], None)
    with refused("no file matches this pattern", "fol*"):
        find_sources(["fol*"], None)
    with refused("the file cannot be read: File name too long", "*" * 5000):
        find_sources(["*" * 5000], None)
    put("text", b"")
    monkeypatch.setattr(Path, "open", Mock(side_effect=PermissionError(13, "Permission denied")))
    with refused("the file cannot be read: Permission denied", "text"):
        find_sources(["text"], None)


def test_pattern_gives_its_files_in_order() -> None:
    for name in ("b.txt", "a.txt", "c/d/e.txt", "c/.hidden.txt", ".hidden.txt", "x[1].txt", "dir.txt/f.md"):
        put(name, b"")

    def names(*inputs: str) -> list[str]:
        return [found.name for found in find_sources(inputs, None)]

    assert names("*.txt") == ["a.txt", "b.txt", "x[1].txt"]
    assert names("**/*.txt") == ["a.txt", "b.txt", "c/d/e.txt", "x[1].txt"]
    assert names("b.txt", "[ab].txt", "?.txt", "x[1].txt") == ["b.txt", "a.txt", "b.txt", "a.txt", "b.txt", "x[1].txt"]


def test_changed_file_has_another_identity() -> None:
    first = source(put("text", b"one"))
    identity = first.identity
    assert identity is not None
    assert json.loads(json.dumps(identity)) == identity == source("text").identity
    assert (identity["name"], first.size) == (str(Path.cwd() / "text"), 3)
    put("text", b"three")
    assert source("text").identity != identity
    os.utime("text", ns=(0, 1))
    earlier = source("text").identity
    os.utime("text", ns=(0, 2))
    assert source("text").identity != earlier


def test_text_needs_no_large_packages() -> None:
    put("text.csv", b"text\none\n")
    program = """
import sys
from minilm_cli.corpus.sources import find_sources
list(find_sources(["text.csv"], None)[0].batches(1))
print([name for name in ("torch", "transformers", "datasets", "pyarrow", "backports.zstd") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "package", "installs"),
    [
        ("text.zst", "backports", "backports.zstd"),
        ("table.parquet", "pyarrow", "datasets"),
        ("hf://datasets/some", "datasets", "datasets"),
    ],
)
def test_missing_package_is_named(name: str, package: str, installs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "compression", None)
    if "://" not in name:
        put(name, zstd.compress(b""))
    with refused("needs the package", name, f"pip install {installs}"):
        find_sources([name], None)


class Trickle(io.RawIOBase):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._content.read(min(len(buffer), 2))
        buffer[: len(content)] = content
        return len(content)


class Broken(Trickle):
    """A device that fails."""

    def __init__(self) -> None:
        super().__init__(b"")

    def readinto(self, _: Any) -> int:
        raise OSError(5, "Input/output error")


def stdin(monkeypatch: pytest.MonkeyPatch, raw: io.RawIOBase | io.BytesIO) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(raw)))  # type: ignore[type-var]


def test_standard_input_is_text_or_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = BOM + b"one\ntwo\r\n\nthree"
    stdin(monkeypatch, Trickle(text))
    result = source("-")
    assert (result.name, result.size, result.identity) == ("standard input", None, None)
    batches = list(result.batches(1))
    assert [(batch.lines, batch.field) for batch in batches] == [
        ([line], None) for line in (b"one", b"two", b"", b"three")
    ]
    assert batches[-1].bytes_read == len(text)
    assert batches[1].where(0) == "standard input, line 2"
    stdin(monkeypatch, Trickle(b'{"body": "one"}\n'))
    (batch,) = source("-", "body").batches(1)
    assert (batch.lines, batch.field) == ([b'{"body": "one"}'], "body")


def test_unreadable_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("standard input can be read only once", "-"):
        find_sources(["-", "-"], None)
    stdin(monkeypatch, io.BytesIO(gzip.compress(b"one")))
    with refused("it is compressed with gzip", "standard input", "zcat FILE | minilm tokenize -"):
        find_sources(["-"], None)
    stdin(monkeypatch, io.BytesIO("one".encode("utf-16")))
    with refused("it is UTF-16", "standard input", "iconv -f utf-16 -t utf-8 FILE | minilm tokenize -"):
        find_sources(["-"], None)
    stdin(monkeypatch, Broken())
    with refused("the file cannot be read: Input/output error", "standard input"):
        find_sources(["-"], None)
    monkeypatch.setattr(sys, "stdin", None)
    with refused("there is no standard input", "-"):
        find_sources(["-"], None)
