from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import os
import re
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pyarrow import parquet

from minilm_cli.base.errors import InputChanged, MinilmError, RunError
from minilm_cli.corpus import decompress, sources, tables
from minilm_cli.corpus.lines import BEGINNING, BOM, Place, parts
from minilm_cli.corpus.sources import Batch, Source, find_sources

try:
    from compression import zstd
except ImportError:
    from backports import zstd

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages name files as they were given: here, without their folder."""
    monkeypatch.chdir(tmp_path)


def put(name: str, content: bytes) -> str:
    """Write a file, and its folders; returns its name."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content)
    return name


def source(name: str, field: str | None = None) -> Source:
    (found,) = find_sources([name], field)
    return found


def read(name: str, field: str | None = None, count: int = 100) -> list[bytes]:
    """All samples of an input, put together where they came in parts."""
    return joined(source(name, field).batches(count))


def joined(batches: Iterator[Batch]) -> list[bytes]:
    return [text for _, text in numbered(batches)]


def numbered(batches: Iterator[Batch]) -> list[tuple[int, bytes]]:
    """Number and text of each sample; what comes in parts is put together."""
    found: list[tuple[int, bytes]] = []
    continues = False
    for batch in batches:
        first, *others = batch.lines
        number = batch.place.number
        if continues:
            assert (found[-1][0], others) == (number, [])
            found[-1] = (number, found[-1][1] + first)
        else:
            found += enumerate(batch.lines, number)
        continues = batch.continues
        assert not (continues and others)
    assert not continues
    return found


@contextmanager
def changed(module: ModuleType, **constants: int) -> Iterator[None]:
    with mock.patch.multiple(module, **constants):
        yield


@contextmanager
def refused(message: str, where: str | None = None, hint: str = "", kind: type = MinilmError) -> Iterator[None]:
    with pytest.raises(kind, match=re.escape(message)) as caught:
        yield
    assert (caught.value.where, type(caught.value)) == (where, kind)
    assert hint in (caught.value.hint or "")


# --- Lines -------------------------------------------------------------------------------------------------------

#: What begins like this is refused.
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
def test_any_lines_are_read_as_they_were_written(
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
def test_parts_are_not_too_long_and_make_up_the_text(text: bytes, longest: int) -> None:
    found = list(parts(text, longest))
    assert b"".join(found) == text
    assert all(0 < len(part) <= longest for part in found) or found == [b""]


@given(text=some_bytes.map(lambda text: text.replace(b"\n", b"").rstrip(b"\r")), piece=st.integers(1, 12))
def test_a_long_line_is_cut_like_a_text(text: bytes, piece: int) -> None:
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
    ("text", "found"),
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
def test_a_text_is_cut_before_a_space_or_between_characters(text: str, found: list[str]) -> None:
    assert [part.decode() for part in parts(text.encode(), 8)] == found


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
    assert read(put(f"text{compression}", COMPRESSIONS[compression](text))) == lines


@pytest.mark.parametrize("compression", sorted(COMPRESSIONS))
def test_an_empty_file_has_no_lines_or_is_refused_as_damaged(compression: str) -> None:
    for kind in (".txt", ".jsonl", ".csv"):
        name = put(f"empty{kind}{compression}", b"")
        if compression:
            with refused("damaged, or not compressed", name):
                read(name)
        else:
            assert read(name) == []
        assert read(put(f"packed{kind}{compression}", COMPRESSIONS[compression](b""))) == []


@pytest.mark.parametrize("compression", sorted(COMPRESSIONS))
def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(compression: str) -> None:
    name = put(f"text{compression}", COMPRESSIONS[compression](b"one\ntwo\n"))
    batches = source(name).batches(1)
    assert next(batches).lines == [b"one"]
    os.truncate(name, 3)
    with refused("became shorter while it was read", name, "Start again", kind=InputChanged):
        list(batches)


@pytest.mark.parametrize("name", ["text.txt", "text.csv"])
def test_a_file_that_changes_while_it_is_read_gives_a_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    batches = source(put(name, b"text\none\n")).batches(1)
    next(batches)
    assert caplog.text == ""
    with Path(name).open("ab") as file:
        file.write(b"two\n")
    list(batches)
    assert f"{name} changed while it was read" in caplog.text


def test_batches_have_fewer_lines_if_the_lines_are_long() -> None:
    name = put("text", b"".join(b"%d\n" % number for number in range(10)) + (b"x" * 99 + b"\n") * 3)
    with changed(sources, _BATCH_BYTES=90), changed(decompress, _BLOCK=10):
        batches = list(source(name).batches(4))
    assert [len(batch.lines) for batch in batches] == [4, 4, 3, 1, 1]
    assert [batch.place.number for batch in batches] == [1, 5, 9, 12, 13]
    assert batches[0].where(3) == "text, line 4"
    assert sorted(batch.bytes_read for batch in batches) == [batch.bytes_read for batch in batches]
    assert batches[-1].bytes_read == Path(name).stat().st_size


def test_a_json_line_is_read_whole_or_refused() -> None:
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


def test_an_input_begins_after_its_byte_order_mark() -> None:
    first, second = source(put("text", BOM + b"one\ntwo\n")).batches(1)
    assert (first.place, second.place) == (Place(3, 1), Place(7, 2))
    places = (BEGINNING, first.place, second.place, Place(3, 1, skipped=3))
    assert [place.is_beginning for place in places] == [True, True, False, False]


@pytest.mark.parametrize("compression", sorted(COMPRESSIONS)[1:])
def test_a_line_that_cannot_be_cut_is_not_read_to_its_end(compression: str) -> None:
    name = put(f"zeros.jsonl{compression}", COMPRESSIONS[compression](bytes(2**25)))
    tracemalloc.start()
    try:
        with changed(sources, LONGEST_JSON=2**20), refused("this line is longer than 1 MiB", f"{name}, line 1"):
            read(name)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", sorted(COMPRESSIONS)[1:])
def test_a_small_file_of_a_huge_line_is_read_in_bounded_memory(compression: str) -> None:
    name = put(f"zeros{compression}", COMPRESSIONS[compression](bytes(2**25)))
    tracemalloc.start()
    try:
        assert sum(len(batch.lines[0]) for batch in source(name).batches(1000)) == 2**25
        assert tracemalloc.get_traced_memory()[1] < 2**25 - 2**23
    finally:
        tracemalloc.stop()


# --- Damage ------------------------------------------------------------------------------------------------------


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


def test_a_file_that_takes_too_much_memory_to_decompress_is_refused() -> None:
    frame = b"\x28\xb5\x2f\xfd\x00%c\x19\x00\x00one"  # a header, the window, and three bytes as they are
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


def test_a_file_that_was_removed_is_reported() -> None:
    found = source(put("text", b"one\n"))
    Path("text").unlink()
    with refused("there is no such file", "text"):
        list(found.batches(1))


# --- Finding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        (
            "packed.txt",
            gzip.compress(b"one", mtime=0),
            "this file is compressed with gzip, not plain UTF-8",
            "ends in .gz.",
        ),
        ("packed.csv", zstd.compress(b"one"), "this file is compressed with zstd, not plain UTF-8", "ends in .zst."),
        ("packed.jsonl", bz2.compress(b"one"), "this file is compressed with bzip2, not plain", "ends in .bz2."),
        ("packed", lzma.compress(b"one"), "this file is compressed with xz, not plain UTF-8", "ends in .xz."),
        ("wide.txt", "one".encode("utf-16"), "this file is UTF-16, not plain UTF-8", "iconv -f utf-16"),
        ("plain.gz", b"one", "damaged, or not compressed with gzip as its name says", ""),
        ("nothing.gz", b"", "damaged, or not compressed with gzip as its name says", ""),
        ("other.zst", gzip.compress(b"", mtime=0), "damaged, or not compressed with zstd as its name says", ""),
        ("files.ZIP", b"PK", ".zip files are not supported", "Give text, JSON lines (.jsonl) or CSV"),
        ("files.tar.gz", b"", ".tar.gz files are not supported", "Give text, JSON lines (.jsonl) or CSV"),
        ("lines.json", b"{}", ".json files are not supported", "Give text, JSON lines (.jsonl) or CSV"),
        ("files.tgz", b"", ".tgz files are not supported", ""),
        ("table.tsv", b"", ".tsv files are not supported", ""),
        ("table.arrow", b"", ".arrow files are not supported", ""),
        ("ids.npy", b"", ".npy files are not supported", ""),
        ("table.parquet.gz", b"", ".parquet.gz files are not supported", ""),
        ("table.parquet", b"", "the file is damaged or not Parquet: ", ""),
    ],
)
def test_a_file_that_is_not_text_is_refused_before_it_is_read(
    name: str, content: bytes, message: str, hint: str
) -> None:
    put(name, content)
    with refused(message, name, hint):
        find_sources([name], None)


def test_an_input_that_is_not_a_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
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

    def unreadable(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    put("text", b"")
    monkeypatch.setattr(Path, "open", unreadable)
    with refused("the file cannot be read: Permission denied", "text"):
        find_sources(["text"], None)


def test_a_pattern_gives_its_files_in_order() -> None:
    for name in ("b.txt", "a.txt", "c/d/e.txt", "c/.hidden.txt", ".hidden.txt", "x[1].txt", "dir.txt/f.md"):
        put(name, b"")

    def names(*inputs: str) -> list[str]:
        return [found.name for found in find_sources(inputs, None)]

    assert names("*.txt") == ["a.txt", "b.txt", "x[1].txt"]
    assert names("**/*.txt") == ["a.txt", "b.txt", "c/d/e.txt", "x[1].txt"]
    assert names("b.txt", "[ab].txt", "?.txt", "x[1].txt") == ["b.txt", "a.txt", "b.txt", "a.txt", "b.txt", "x[1].txt"]


def test_a_changed_file_has_another_identity() -> None:
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


def test_nothing_heavy_is_imported_for_text() -> None:
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
    ("name", "package", "extra"),
    [
        ("text.zst", "backports", "zstd"),
        ("table.parquet", "pyarrow", "datasets"),
        ("hf://datasets/some", "datasets", "datasets"),
    ],
)
def test_a_package_that_is_missing_is_named(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "compression", None)
    if "://" not in name:
        put(name, zstd.compress(b""))
    with refused("needs the package", name, f"pip install 'minilm-cli[{extra}]'"):
        find_sources([name], None)


# --- Standard input ----------------------------------------------------------------------------------------------


class Trickle(io.RawIOBase):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        some = self._content.read(min(len(buffer), 2))
        buffer[: len(some)] = some
        return len(some)


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
    found = source("-")
    assert (found.name, found.size, found.identity) == ("standard input", None, None)
    batches = list(found.batches(1))
    assert [(batch.lines, batch.field) for batch in batches] == [
        ([line], None) for line in (b"one", b"two", b"", b"three")
    ]
    assert batches[-1].bytes_read == len(text)
    assert batches[1].where(0) == "standard input, line 2"
    stdin(monkeypatch, Trickle(b'{"body": "one"}\n'))
    (batch,) = source("-", "body").batches(1)
    assert (batch.lines, batch.field) == ([b'{"body": "one"}'], "body")


def test_standard_input_that_cannot_be_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
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


# --- Tables ------------------------------------------------------------------------------------------------------

cell = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(['a, "b"', "one\ntwo\r\n", "\0"])


@given(cells=st.lists(cell), compression=st.sampled_from(["", ".gz"]), count=st.integers(1, 5), block=st.integers(1, 9))
def test_any_texts_are_read_from_csv_as_they_were_written(
    cells: list[str], compression: str, count: int, block: int
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerows([["id", "text"], *enumerate(cells)])
    with tempfile.TemporaryDirectory() as folder, changed(decompress, _BLOCK=block):
        file = Path(folder, f"table.csv{compression}")
        file.write_bytes(COMPRESSIONS[compression](BOM + text.getvalue().encode()))
        _assert_read_from_any_batch(str(file), [cell.encode() for cell in cells], count)


def _assert_read_from_any_batch(name: str, texts: list[bytes], count: int) -> None:
    batches = list(source(name).batches(count))
    wanted = list(enumerate(texts, 1))
    assert numbered(iter(batches)) == wanted
    assert [len(batch.lines) for batch in batches[:-1]] == [count] * (len(batches) - 1)
    for batch in batches:
        assert batch.place.number == batch.place.at + 1
        assert numbered(source(name).batches(count + 1, batch.place)) == wanted[batch.place.at :]
        assert batch.where(0) == f"{name}, row {batch.place.number}"


def test_bytes_of_a_table_that_are_not_utf_8_are_kept() -> None:
    put("table.csv", b'text\n"\xff\xfe"\n\xc3\n\0\n\n\xed\xa0\x80')
    assert read("table.csv") == [b"\xff\xfe", b"\xc3", b"\0", b"", b"\xed\xa0\x80"]


@pytest.mark.parametrize(
    ("content", "message", "where", "hint"),
    [
        (b"id,body\n1,one\n", "no column 'text'; its columns are 'id', 'body'", "table.csv", "--text-field"),
        (b"\none\n", "no column 'text'; it has no columns", "table.csv", "--text-field"),
        (
            b"id,text\n1,one\n2,two, three\n",
            "the header has 2 values, and this row has 3",
            "table.csv, line 3",
            "commas",
        ),
        (b"id,text\n1,one\n2\n", "the header has 2 values, and this row has 1", "table.csv, line 3", ""),
        (b'text\n"one\n\n"\n"two\n', "this is not CSV: unexpected end of data", "table.csv, line 5", ""),
        (b'text\n"one" two\n', "this is not CSV: ',' expected after '\"'", "table.csv, line 2", ""),
        (
            b"text\rone\rtwo\r",
            "there is a carriage return outside quotation marks",
            "table.csv, line 1",
            r"tr '\r' '\n'",
        ),
        (
            b"text\none\rtwo\n",
            "there is a carriage return outside quotation marks",
            "table.csv, line 2",
            r"tr '\r' '\n'",
        ),
        (b"text\none\n" + b"x" * 101, "this line is longer than", "table.csv, line 3", "a line of its own"),
        (b'text\none\n"' + b"x\n" * 101, "this is not CSV: field larger than field limit", "table.csv, line 53", ""),
    ],
)
def test_wrong_csv_is_reported_with_the_line(content: bytes, message: str, where: str, hint: str) -> None:
    put("table.csv", content)
    with changed(tables, _LONGEST=100), refused(message, where, hint):
        read("table.csv")


def test_damage_of_a_compressed_table_is_reported_with_the_line() -> None:
    put("table.csv.gz", gzip.compress(b'text\none\n"two\n' + os.urandom(100).hex().encode())[:-20])
    with pytest.raises(MinilmError, match="damaged or cut short") as caught:
        read("table.csv.gz")
    assert caught.value.where == "table.csv.gz, line 4"


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_parquet_is_read_from_any_batch(kind: pa.DataType) -> None:
    texts = ["one", None, "", "é\ntwo", "x" * 50, *map(str, range(20))]
    table = pa.table({"id": list(range(25)), "text": pa.array(texts, pa.string()).cast(kind)})
    parquet.write_table(table, "table.PARQUET", row_group_size=7)
    assert parquet.read_schema("table.PARQUET").field("text").type == kind
    with changed(tables, _ROWS=3):
        for count in (1, 4, 100):
            _assert_read_from_any_batch("table.PARQUET", [(text or "").encode() for text in texts], count)
    found = source("table.PARQUET")
    behind = [batch.bytes_read for batch in found.batches(5)]
    assert (behind, found.size) == (sorted(set(behind)), behind[-1])


@pytest.mark.parametrize("columns", [["a.b", "a"], ["a", "a.b"]])
def test_a_column_is_found_by_its_name_and_not_by_its_path(columns: list[str]) -> None:
    values = {"a.b": ["one", "two"], "a": [{"b": "three", "c": 1}, {"b": "four", "c": 2}]}
    parquet.write_table(pa.table({name: values[name] for name in columns}), "table.parquet")
    assert read("table.parquet", "a.b") == [b"one", b"two"]
    with refused("there is no column 'a.c'; its columns are ", "table.parquet"):
        find_sources(["table.parquet"], "a.c")
    with refused("the column 'a' has values of type struct<", "table.parquet"):
        find_sources(["table.parquet"], "a")


def test_long_rows_are_handed_over_early() -> None:
    parquet.write_table(pa.table({"text": ["x" * 50] * 10}), "table.parquet")
    with changed(sources, _BATCH_BYTES=100):
        assert [len(batch.lines) for batch in source("table.parquet").batches(9)] == [2] * 5


def test_parquet_that_cannot_be_read_is_refused() -> None:
    parquet.write_table(pa.table({"id": [1], "text": [["one"]]}), "table.parquet")
    with refused("there is no column 'body'; its columns are 'id', 'text'", "table.parquet", "--text-field"):
        find_sources(["table.parquet"], "body")
    with refused("the column 'text' has values of type list<", "table.parquet"):
        find_sources(["table.parquet"], None)
    parquet.write_table(pa.table({"text": [os.urandom(50).hex() for _ in range(999)]}), "table.parquet")
    content = bytearray(Path("table.parquet").read_bytes())
    content[4:40000] = os.urandom(40000 - 4)
    put("table.parquet", bytes(content))
    with pytest.raises(MinilmError, match="the file is damaged or not Parquet: "):
        read("table.parquet")
    parquet.write_table(pa.table({"text": ["one"], "other": ["two"]}), "table.parquet")
    put("table.parquet", Path("table.parquet").read_bytes().replace(b"other", b"o\xffher"))
    with refused("the file is damaged or not Parquet: ", "table.parquet"):
        read("table.parquet")


# --- Data sets of the Hub ----------------------------------------------------------------------------------------


@pytest.fixture
def hub_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Writes `corpus`, a folder that is read like a data set of the Hub; returns its texts."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("cache"))
    texts = ["one", "two\nthree", "", "é", *map(str, range(9))]
    rows = [{"id": number, "text": text or None} for number, text in enumerate(texts)]
    put("corpus/train.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    put("corpus/test.jsonl", b'{"id": 1, "text": "of the test"}\n')
    return texts


def test_a_data_set_is_read_from_any_batch(hub_texts: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("hf://datasets/corpus", "hf://datasets/corpus:train", "hf://datasets/corpus:default/train"):
        _assert_read_from_any_batch(name, [text.encode() for text in hub_texts], 4)
    assert read("hf://datasets/corpus:test") == [b"of the test"]
    found = source("hf://datasets/corpus")
    assert found.size is None
    assert json.loads(json.dumps(found.identity)) == source("hf://datasets/corpus").identity
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("hub_texts")
@pytest.mark.parametrize(
    ("name", "field", "message"),
    [
        ("corpus", "body", "there is no column 'body'; its columns are 'id', 'text'"),
        ("corpus:dev", None, "the data set cannot be loaded: Bad split: dev. Available splits: "),
        ("corpus:french/train", None, "the data set cannot be loaded: BuilderConfig 'french' not found"),
        ("nobody/nothing", None, "the data set cannot be loaded: Couldn't reach 'nobody/nothing' on the Hub"),
        ("", None, "this is not the name of a data set"),
        (":train", None, "this is not the name of a data set"),
        ("corpus:a/b/c", None, "this is not the name of a data set"),
    ],
)
def test_a_data_set_that_cannot_be_loaded_is_refused(name: str, field: str | None, message: str) -> None:
    with refused(message, f"hf://datasets/{name}"):
        find_sources([f"hf://datasets/{name}"], field)


@pytest.mark.usefixtures("hub_texts")
def test_a_row_of_a_data_set_without_text_is_reported() -> None:
    (batch,) = source("hf://datasets/corpus:test").batches(5)
    assert batch.lines == [b"of the test"]
    with refused("the value of column 'id' is int, not text", "hf://datasets/corpus, row 3"):
        list(source("hf://datasets/corpus", "id").batches(1, Place(2, 3)))


@pytest.mark.usefixtures("hub_texts")
def test_a_data_set_that_fails_while_it_is_read_is_reported() -> None:
    found = source("hf://datasets/corpus")
    Path("corpus/train.jsonl").unlink()
    with refused("the data set cannot be read: ", "hf://datasets/corpus", kind=RunError):
        list(found.batches(1))
