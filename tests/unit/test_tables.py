from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.corpus import decompress, sources, tables
from minilm_cli.corpus.lines import BOM, Place
from minilm_cli.corpus.sources import find_sources

from .text_inputs import COMPRESSIONS, changed, numbered, put, read, refused, source


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages name files as they were given: here, without a folder."""
    monkeypatch.chdir(tmp_path)


cell = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(['a, "b"', "one\ntwo\r\n", "\0"])


@given(cells=st.lists(cell), compression=st.sampled_from(["", ".gz"]), count=st.integers(1, 5), block=st.integers(1, 9))
def test_any_texts_are_read_back_from_csv(cells: list[str], compression: str, count: int, block: int) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerows([["id", "text"], *enumerate(cells)])
    with tempfile.TemporaryDirectory() as folder, changed(decompress, _BLOCK=block):
        file = Path(folder, f"table.csv{compression}")
        file.write_bytes(COMPRESSIONS[compression](BOM + text.getvalue().encode()))
        assert_read_from_any_batch(str(file), [cell.encode() for cell in cells], count)


value = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"), max_size=8) | st.just('a "b')


@given(
    cells=st.lists(value), compression=st.sampled_from(["", ".gz"]), count=st.integers(1, 5), block=st.integers(1, 9)
)
def test_any_values_without_tabs_are_read_back_from_tsv(
    cells: list[str], compression: str, count: int, block: int
) -> None:
    text = "".join(f"{number}\t{cell}\r\n" for number, cell in [("id", "text"), *enumerate(cells)])
    with tempfile.TemporaryDirectory() as folder, changed(decompress, _BLOCK=block):
        file = Path(folder, f"table.TSV{compression}")
        file.write_bytes(COMPRESSIONS[compression](BOM + text.encode()))
        assert_read_from_any_batch(str(file), [cell.encode() for cell in cells], count)


def test_quotation_marks_have_no_meaning_in_tsv() -> None:
    put("table.tsv", b'"id"\ttext\n1\t"He said\n2\t"one"\n\n3\t""""\n')
    assert read("table.tsv") == [b'"He said', b'"one"', b"", b'""""']
    assert read("table.tsv", '"id"') == [b"1", b"2", b"", b"3"]


def assert_read_from_any_batch(name: str, texts: list[bytes], count: int) -> None:
    batches = list(source(name).batches(count))
    expected = list(enumerate(texts, 1))
    assert numbered(iter(batches)) == expected
    assert [len(batch.lines) for batch in batches[:-1]] == [count] * (len(batches) - 1)
    for batch in batches:
        assert batch.place.number == batch.place.at + 1
        assert numbered(source(name).batches(count + 1, batch.place)) == expected[batch.place.at :]
        assert batch.where(0) == f"{name}, row {batch.place.number}"


def test_invalid_utf_8_is_kept() -> None:
    put("table.csv", b'text\n"\xff\xfe"\n\xc3\n\0\n\n\xed\xa0\x80')
    assert read("table.csv") == [b"\xff\xfe", b"\xc3", b"\0", b"", b"\xed\xa0\x80"]


@pytest.mark.parametrize(
    ("content", "message", "where", "hint"),
    [
        (b"id,body\n1,one\n", "no column 'text'; its columns are 'id', 'body'", "table.csv", "--text-field"),
        (b"\none\n", "no column 'text'; it has no columns", "table.csv", "--text-field"),
        (b"id,text\n1,a\n2,b, c\n", "the header has 2 values, and this row has 3", "table.csv, line 3", "commas"),
        (b"id,text\n1,one\n2\n", "the header has 2 values, and this row has 1", "table.csv, line 3", ""),
        (b'text\n"one\n\n"\n"two\n', "this is not CSV: unexpected end of data", "table.csv, line 5", ""),
        (b'text\n"one" two\n', "this is not CSV: ',' expected after '\"'", "table.csv, line 2", ""),
        (b"text\rone\rtwo\r", "there is a carriage return outside quotation", "table.csv, line 1", r"tr '\r' '\n'"),
        (b"text\none\rtwo\n", "there is a carriage return outside quotation", "table.csv, line 2", r"tr '\r' '\n'"),
        (b"text\none\n" + b"x" * 101, "this line is longer than", "table.csv, line 3", "a line of its own"),
        (b'text\none\n"' + b"x\n" * 101, "this is not CSV: field larger than field limit", "table.csv, line 53", ""),
    ],
)
def test_invalid_csv_is_reported_with_the_line(content: bytes, message: str, where: str, hint: str) -> None:
    put("table.csv", content)
    with changed(tables, _LONGEST=100), refused(message, where, hint):
        read("table.csv")


@pytest.mark.parametrize(
    ("content", "message", "where", "hint"),
    [
        (
            b"id,text\n1,one\n",
            "no column 'text'; its columns are 'id,text'",
            "table.tsv",
            ".csv means commas, .tsv tabs",
        ),
        (b'id\ttext\n1\t"a\tb"\n', "the header has 2 values, and this row has 3", "table.tsv, line 2", "by tabs"),
        (b'id\ttext\n1\t"a\nb"\n', "the header has 2 values, and this row has 1", "table.tsv, line 3", "line ends"),
        (b"text\none\rtwo\n", "this is not TSV: there is a carriage return inside a line", "table.tsv, line 2", "tr"),
    ],
)
def test_invalid_tsv_is_reported_with_the_line(content: bytes, message: str, where: str, hint: str) -> None:
    put("table.tsv", content)
    with refused(message, where, hint):
        read("table.tsv")


def test_damage_is_reported_with_the_line() -> None:
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
            assert_read_from_any_batch("table.PARQUET", [(text or "").encode() for text in texts], count)
    result = source("table.PARQUET")
    behind = [batch.bytes_read for batch in result.batches(5)]
    assert (behind, result.size) == (sorted(set(behind)), behind[-1])


@pytest.mark.parametrize("columns", [["a.b", "a"], ["a", "a.b"]])
def test_column_is_found_by_its_full_name(columns: list[str]) -> None:
    values = {"a.b": ["one", "two"], "a": [{"b": "three", "c": 1}, {"b": "four", "c": 2}]}
    parquet.write_table(pa.table({name: values[name] for name in columns}), "table.parquet")
    assert read("table.parquet", "a.b") == [b"one", b"two"]
    with refused("there is no column 'a.c'; its columns are ", "table.parquet"):
        find_sources(["table.parquet"], "a.c")
    with refused("the column 'a' has values of type struct<", "table.parquet"):
        find_sources(["table.parquet"], "a")


def test_batches_of_long_rows_have_fewer_rows() -> None:
    parquet.write_table(pa.table({"text": ["x" * 50] * 10}), "table.parquet")
    with changed(sources, _BATCH_BYTES=100):
        assert [len(batch.lines) for batch in source("table.parquet").batches(9)] == [2] * 5


def test_unreadable_parquet_is_refused() -> None:
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


def test_data_set_is_read_from_any_batch(hub_texts: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("hf://datasets/corpus", "hf://datasets/corpus:train", "hf://datasets/corpus:default/train"):
        assert_read_from_any_batch(name, [text.encode() for text in hub_texts], 4)
    assert read("hf://datasets/corpus:test") == [b"of the test"]
    result = source("hf://datasets/corpus")
    assert result.size is None
    assert json.loads(json.dumps(result.identity)) == source("hf://datasets/corpus").identity
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
def test_data_set_that_cannot_be_loaded_is_refused(name: str, field: str | None, message: str) -> None:
    with refused(message, f"hf://datasets/{name}"):
        find_sources([f"hf://datasets/{name}"], field)


@pytest.mark.usefixtures("hub_texts")
def test_row_without_text_is_reported() -> None:
    (batch,) = source("hf://datasets/corpus:test").batches(5)
    assert batch.lines == [b"of the test"]
    with refused("the value of column 'id' is int, not text", "hf://datasets/corpus, row 3"):
        list(source("hf://datasets/corpus", "id").batches(1, Place(2, 3)))


@pytest.mark.usefixtures("hub_texts")
def test_data_set_that_fails_while_it_is_read_is_reported() -> None:
    result = source("hf://datasets/corpus")
    Path("corpus/train.jsonl").unlink()
    with refused("the data set cannot be read: ", "hf://datasets/corpus", kind=RunError):
        list(result.batches(1))
