from __future__ import annotations

import gzip
import json
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilm_cli.base.errors import MinilmError
from minilm_cli.corpus import decompress, json_records
from minilm_cli.corpus.lines import BOM
from minilm_cli.corpus.sources import find_sources

from .text_inputs import COMPRESSIONS, changed, numbered, put, read, refused, source


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages name files as they were given: here, without a folder."""
    monkeypatch.chdir(tmp_path)


text = st.text(max_size=8) | st.sampled_from(['"', "\\", '\\"', "}", "[{", "\n"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


@given(
    records=st.lists(st.dictionaries(text, values, max_size=4)),
    form=st.sampled_from(["list", "indented list", "lines", "indented objects"]),
    compression=st.sampled_from(sorted(COMPRESSIONS)),
    escaped=st.booleans(),
    bom=st.sampled_from([b"", BOM]),
    count=st.integers(1, 5),
    block=st.integers(3, 20),
)
def test_any_records_are_read_from_any_batch(
    records: list[object], form: str, compression: str, escaped: bool, bom: bytes, count: int, block: int
) -> None:
    indent = 2 if form.startswith("indented") else None
    whole = [json.dumps(record, indent=indent, ensure_ascii=escaped) for record in records]
    written = json.dumps(records, indent=indent, ensure_ascii=escaped) if "list" in form else "\n".join(whole)
    with (
        tempfile.TemporaryDirectory() as folder,
        changed(decompress, _BLOCK=block),
        changed(json_records, _BLOCK=block),
    ):
        file = Path(folder, f"records.json{compression}")
        file.write_bytes(COMPRESSIONS[compression](bom + f" {written}\n".encode(errors="surrogatepass")))
        batches = list(source(str(file)).batches(count))
        samples = numbered(iter(batches))
        assert [number for number, _ in samples] == list(range(1, len(records) + 1))
        assert [json.loads(sample.decode(errors="surrogatepass")) for _, sample in samples] == records
        for batch in batches:
            assert (batch.field, batch.where(0)) == ("text", f"{file}, record {batch.place.number}")
            assert numbered(source(str(file)).batches(count + 1, batch.place)) == samples[batch.place.at :]


@pytest.mark.parametrize(
    ("content", "message", "where"),
    [
        (b'[{"a": 1}, 2]', "an object is expected, but here is '2'", "x.json, record 2"),
        (b'["a"]', "an object is expected, but here is '\"'", "x.json, record 1"),
        (b"\xff", "an object is expected, but here is '\\xff'", "x.json, record 1"),
        (b"[{} {}]", "a comma or the end of the list is expected, but here is '{'", "x.json, record 2"),
        (b"[{},]", "an object is expected, but here is ']'", "x.json, record 2"),
        (b"[{}] []", "the list has ended, but here is '['", "x.json, record 2"),
        (b"{}, {}", "an object is expected, but here is ','", "x.json, record 2"),
        (b"[{}, {}", "this file is not complete JSON: it ends too early", "x.json, record 3"),
        (b"[{},", "this file is not complete JSON: it ends too early", "x.json, record 2"),
        (b"[", "this file is not complete JSON: it ends too early", "x.json, record 1"),
        (b'{}\n{"a": "}\n', "this file is not complete JSON: it ends too early", "x.json, record 2"),
    ],
)
def test_what_is_not_a_list_of_objects_is_reported(content: bytes, message: str, where: str) -> None:
    put("x.json", content)
    with refused(message, where):
        read("x.json")


@pytest.mark.parametrize("content", [b"", b" \n", BOM, b"[ ]", b"\n[\n]\n"])
def test_a_file_without_records_has_no_samples(content: bytes) -> None:
    assert read(put("x.json", content)) == []


def test_the_first_record_is_checked_before_anything_is_read() -> None:
    with refused("an object is expected, but here is '1'", "x.json, record 1", "objects"):
        find_sources([put("x.json", b"1")], None)


@pytest.mark.parametrize("ending", [b"", b'"}]', b'"}, {"text": "one"}]'])
def test_a_record_that_is_too_long_is_refused(ending: bytes) -> None:
    put("x.json", b'[{"text": "one"}, {"text": "' + b"x" * 500 + ending)
    with changed(json_records, _LONGEST=200, _BLOCK=9), refused("this record is longer than", "x.json, record 2"):
        read("x.json")


def test_damage_is_reported_with_the_record() -> None:
    records = b"".join(b'{"text": "%d"}\n' % number for number in range(2000))
    put("x.json.gz", gzip.compress(records)[:-9])
    with changed(json_records, _BLOCK=100), pytest.raises(MinilmError, match="damaged or cut short") as caught:
        read("x.json.gz")
    assert (caught.value.where or "").startswith("x.json.gz, record 1")


@pytest.mark.parametrize("piece", [b"x", b"\\n"])
def test_a_huge_list_is_read_in_bounded_memory(piece: bytes) -> None:
    record = b'{"text": "%s"}' % (piece * 500_000)
    put("x.json.gz", gzip.compress(b"[" + b",\n".join([record] * 20) + b"]", 1))
    tracemalloc.start()
    try:
        assert sum(len(batch.lines) for batch in source("x.json.gz").batches(1)) == 20
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
