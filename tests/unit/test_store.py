from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilm_cli import __version__
from minilm_cli.base.checksums import sha256
from minilm_cli.base.errors import MinilmError
from minilm_cli.tokens.store import TokenizerInfo, TokenStore, TokenStoreWriter, id_dtype

from .stores import contents

INFO = TokenizerInfo(name="words", vocabulary_size=300, special_ids=[0, 7])
SEQUENCES = [[1, 2, 3], [299], [4, 5, 6, 7], [8, 9], [0, 10, 11, 7]]


def write(
    path: Path,
    sequences: list[list[int]],
    *,
    cuts: list[int] | None = None,
    shard_tokens: int = 5,
    info: TokenizerInfo = INFO,
) -> TokenStore:
    """A store of `sequences`, given to the writer in calls that end at `cuts`."""
    writer = TokenStoreWriter(path, info, 512, shard_tokens=shard_tokens)
    ends = [*sorted(cuts or []), len(sequences)]
    for begin, end in zip([0, *ends], ends, strict=False):
        part = sequences[begin:end]
        flat = [token for sequence in part for token in sequence]
        writer.add(np.array(flat, dtype=np.int64), np.array([len(s) for s in part], dtype=np.int64))
    writer.close()
    return TokenStore(path)


sequences_of_ids = st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=12), min_size=1, max_size=15)


@given(sequences=sequences_of_ids, shard_tokens=st.integers(1, 40), data=st.data())
def test_sequences_are_read_back_and_files_do_not_depend_on_the_calls(
    sequences: list[list[int]], shard_tokens: int, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(sequences)), max_size=4))
    with tempfile.TemporaryDirectory() as folder:
        store = write(Path(folder, "one"), sequences, cuts=cuts, shard_tokens=shard_tokens)
        assert [ids.tolist() for ids in (store[n] for n in range(len(store)))] == sequences
        indices = np.arange(len(sequences))
        assert store.lengths(indices, 10**6).tolist() == [len(sequence) for sequence in sequences]
        assert store.lengths(indices[::-1], 4).tolist() == [min(4, len(sequence)) for sequence in sequences[::-1]]
        store.verify()
        manifest = store.manifest
        assert manifest.sequences == len(store) == len(sequences)
        assert manifest.tokens == sum(map(len, sequences))
        assert manifest.longest == max(map(len, sequences))
        assert [sum(len(s) == n for s in sequences) for n in range(manifest.longest + 1)] == manifest.length_histogram
        at_once = write(Path(folder, "other"), sequences, shard_tokens=shard_tokens)
        assert contents(store.path) == contents(at_once.path)


def test_store_may_have_more_shards_than_open_files_allowed(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    write(tmp_path, SEQUENCES * 20, shard_tokens=1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, before[1]))
    try:
        store = TokenStore(tmp_path)
        assert len(store.manifest.shards) == len(store) == 20 * len(SEQUENCES) > 75
        assert [store[n].tolist() for n in range(len(store))] == SEQUENCES * 20
        store.verify()
        (tmp_path / "one more file").open("w").close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_limit_on_open_files_is_reported_with_a_hint(tmp_path: Path) -> None:
    write(tmp_path, SEQUENCES * 20, shard_tokens=1)
    # In a process of its own: a lowered hard limit cannot be raised again.
    code = f"""
import pathlib, resource
from minilm_cli.tokens.store import TokenStore
resource.setrlimit(resource.RLIMIT_NOFILE, (90, 90))
TokenStore(pathlib.Path({str(tmp_path)!r}))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "cannot be read: Too many open files" in done.stderr
    assert "ulimit -n" in done.stderr


def test_shard_ends_with_the_sequence_that_fills_it(tmp_path: Path) -> None:
    shards = write(tmp_path, SEQUENCES, shard_tokens=5).manifest.shards
    assert [(shard.file, shard.sequences, shard.tokens) for shard in shards] == [
        ("shard-00000.npy", 3, 8),
        ("shard-00001.npy", 2, 6),
    ]


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1, "u1"), (256, "u1"), (257, "u2"), (30522, "u2"), (65536, "u2"), (65537, "u4"), (250002, "u4"), (2**32, "u4")],
)
def test_ids_have_the_smallest_fitting_dtype(tmp_path: Path, size: int, dtype: str) -> None:
    assert id_dtype(size) == np.dtype(dtype)
    store = write(tmp_path, [[0, size - 1]], info=TokenizerInfo(vocabulary_size=size))
    assert store[0].dtype == np.dtype(dtype)
    assert store[0].tolist() == [0, size - 1]


def test_cut_sequence_keeps_its_last_special_token(tmp_path: Path) -> None:
    store = write(tmp_path, SEQUENCES)
    assert store.sequence(4, 4).tolist() == [0, 10, 11, 7]
    assert store.sequence(4, 3).tolist() == [0, 10, 7]
    assert store.sequence(4, 2).tolist() == [0, 7]
    assert store.sequence(0, 2).tolist() == [1, 2]
    for index, sequence in enumerate(SEQUENCES):
        for longest in (2, 3, 4, 100):
            cut = store.sequence(index, longest)
            assert len(cut) == store.lengths(np.array([index]), longest)[0] == min(longest, len(sequence))


@pytest.mark.parametrize("index", [-1, 5, 10**9])
def test_index_beyond_the_store_is_an_error(tmp_path: Path, index: int) -> None:
    store = write(tmp_path, SEQUENCES)
    with pytest.raises(IndexError):
        store[index]


def test_unfinished_store_cannot_be_opened(tmp_path: Path) -> None:
    writer = TokenStoreWriter(tmp_path, INFO, 512, shard_tokens=2)
    writer.add(np.array([1, 2, 3]), np.array([3]))
    assert any(tmp_path.iterdir())
    with pytest.raises(MinilmError, match=r"no manifest\.json"):
        TokenStore(tmp_path)


def test_missing_store_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="there is no such token store") as caught:
        TokenStore(tmp_path / "tokens")
    assert "minilm tokenize" in (caught.value.hint or "")


def change_manifest(folder: Path, change: Callable[[Any], None]) -> None:
    file = folder / "manifest.json"
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def set_at(*path: str | int, value: Any) -> Callable[[Path], None]:
    """Puts `value` at `path` in the manifest."""

    def change(manifest: Any) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return lambda folder: change_manifest(folder, change)


def replace(name: str, array: Any) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / name, array, allow_pickle=array.dtype == object)


def archive(name: str) -> Callable[[Path], None]:
    """Replaces a file by an archive of several arrays, which NumPy accepts under any name."""

    def write_archive(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            np.savez(file, np.zeros(8, dtype=np.uint16))

    return write_archive


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def text(content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "manifest.json").write_text(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "empty manifest": text(""),
    "manifest cut short": cut("manifest.json", 100),
    "manifest is a list": text("[]"),
    "manifest is not text": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "manifest nested too deeply": text("[" * 100_000),
    "newer format": set_at("format_version", value=2),
    "format of no version": set_at("format_version", value=0),
    "entry missing": lambda folder: change_manifest(folder, lambda manifest: manifest.pop("sequences")),
    "entry unknown": set_at("more", value=1),
    "negative count": set_at("shards", 0, "tokens", value=-1),
    "count is text": set_at("sequences", value="5"),
    "count of sequences": set_at("sequences", value=4),
    "count of tokens": set_at("tokens", value=13),
    "histogram too short": set_at("length_histogram", value=[]),
    "histogram of other lengths": set_at("length_histogram", value=[0, 5]),
    # The numbers of sequences and tokens and the longest length are right, but not the counts of 3 and 4 tokens.
    "histogram of the same counts": set_at("length_histogram", value=[0, 1, 0, 3, 1]),
    "histogram of shorter sequences": set_at("length_histogram", value=[0, 0, 1, 4]),
    "count beyond all machine words": set_at("length_histogram", 2, value=10**4299),
    "count that is not finite": set_at("tokens", value=float("inf")),
    "no vocabulary": set_at("tokenizer", "vocabulary_size", value=0),
    "vocabulary beyond all types": set_at("tokenizer", "vocabulary_size", value=2**65),
    "vocabulary of another type": set_at("tokenizer", "vocabulary_size", value=70_000),
    "shard left out": lambda folder: change_manifest(folder, lambda manifest: manifest["shards"].pop()),
    "shard twice": lambda folder: change_manifest(folder, lambda m: m["shards"].append(m["shards"][0])),
    "shards in another order": lambda folder: change_manifest(folder, lambda m: m["shards"].reverse()),
    "shard of no sequence": lambda folder: change_manifest(
        folder, lambda m: m["shards"].append({**m["shards"][0], "file": "shard-00002.npy", "sequences": 0, "tokens": 0})
    ),
    "path upwards": set_at("shards", 0, "file", value="../shard-00000.npy"),
    "path with a line break": set_at("shards", 0, "file", value="shard-00000.npy\n"),
    "digits of another script": set_at("shards", 0, "file", value="shard-٠٠٠٠٠.npy"),
    "a surrogate": set_at("shards", 0, "sha256", value="\ud800"),
    "ids missing": lambda folder: (folder / "shard-00001.npy").unlink(),
    "offsets missing": lambda folder: (folder / "shard-00001.offsets.npy").unlink(),
    "ids are a folder": lambda folder: ((folder / "shard-00000.npy").unlink(), (folder / "shard-00000.npy").mkdir()),
    "ids empty": cut("shard-00000.npy", 0),
    "ids without data": cut("shard-00000.npy", 128),
    "ids cut short": cut("shard-00000.npy", 130),
    "offsets cut short": cut("shard-00000.offsets.npy", 140),
    "ids no array": lambda folder: (folder / "shard-00000.npy").write_bytes(b"no array at all" * 10),
    "ids a pickle": replace("shard-00000.npy", np.array([{}] * 8)),
    "ids of another type": replace("shard-00000.npy", np.zeros(8, dtype=np.int64)),
    "ids of another shape": replace("shard-00000.npy", np.zeros((2, 4), dtype=np.uint16)),
    "ids an archive": archive("shard-00000.npy"),
    "ids of the other byte order": replace("shard-00000.npy", np.zeros(8, dtype=np.dtype(np.uint16).newbyteorder())),
    "ids with a byte more": lambda folder: (folder / "shard-00000.npy").write_bytes(
        (folder / "shard-00000.npy").read_bytes() + b"x"
    ),
    "ids too few": replace("shard-00000.npy", np.zeros(7, dtype=np.uint16)),
    "offsets of another type": replace("shard-00000.offsets.npy", np.array([0.0, 3, 4, 8])),
    "offsets from 1": replace("shard-00000.offsets.npy", np.array([1, 3, 4, 8])),
    "offsets falling": replace("shard-00000.offsets.npy", np.array([0, 4, 3, 8])),
    "offsets beyond": replace("shard-00000.offsets.npy", np.array([0, 3, 400, 8])),
    "offsets with an empty sequence": replace("shard-00000.offsets.npy", np.array([0, 4, 4, 8])),
    "offsets not to the end": replace("shard-00000.offsets.npy", np.array([0, 3, 4, 7])),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_store_is_refused(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    folder = tmp_path / "tokens"
    write(folder, SEQUENCES)
    damage(folder)
    with pytest.raises(MinilmError) as caught:
        TokenStore(folder)
    assert caught.value.where is not None
    assert caught.value.where.startswith(str(folder))
    assert caught.value.exit_status == 2


def test_newer_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path, SEQUENCES)
    set_at("format_version", value=2)(tmp_path)
    set_at("entry_of_the_future", value={})(tmp_path)
    set_at("written_by", value="1.4")(tmp_path)
    message = f"has format 2, written by minilm 1.4; this minilm, {__version__}, reads up to 1"
    with pytest.raises(MinilmError, match=re.escape(message)):
        TokenStore(tmp_path)


def test_manifest_may_name_the_version_that_wrote_it(tmp_path: Path) -> None:
    assert write(tmp_path, SEQUENCES).manifest.written_by == __version__
    change_manifest(tmp_path, lambda manifest: manifest.pop("written_by"))
    assert TokenStore(tmp_path).manifest.written_by is None


def npy(header: str, *, version: int = 1, length: int | None = None) -> bytes:
    """A `.npy` file of this header and of eight values of two bytes."""
    announced = len(header) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + announced.to_bytes(2 * version, "little") + header.encode() + bytes(16)


HEADER = "{'descr': '<u2', 'fortran_order': False, 'shape': (8,), }"

HEADERS = {
    "longer than the file": npy(HEADER, length=2**16 - 1),
    "longer than memory": npy(HEADER, version=2, length=2**32 - 1),
    "shorter than it is": npy(HEADER, length=30),
    "empty": npy(""),
    "of more values than the file has": npy(HEADER.replace("8", str(2**60))),
    "of less than no value": npy(HEADER.replace("8", "-1")),
    "of a number of thousands of digits": npy(HEADER.replace("8", "9" * 5000)),
    "of no literal": npy(HEADER.replace("8", "2**3")),
    "nested too deeply": npy("(" * 60_000),
    "of keys that cannot be compared": npy("{1: 2, 'a': 3}"),
    "of objects": npy(HEADER.replace("<u2", "|O")),
    "of columns": npy(HEADER.replace("'<u2'", "[('a', '<u2')]")),
    "as Python 2 wrote it": npy(HEADER.replace("8", "8L")),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_unexpected_npy_header_is_refused(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, SEQUENCES)
    for version in (1, 2):
        (tmp_path / "shard-00000.npy").write_bytes(npy(HEADER + " " * 70 + "\n", version=version))
        assert TokenStore(tmp_path)[0].tolist() == [0, 0, 0]
    (tmp_path / "shard-00000.npy").write_bytes(content)
    with pytest.raises(MinilmError) as caught:
        TokenStore(tmp_path)
    assert caught.value.where == str(tmp_path / "shard-00000.npy")
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("name", ["shard-00000.npy", "shard-00001.npy", "shard-00001.offsets.npy"])
def test_verify_detects_a_flipped_bit(tmp_path: Path, name: str) -> None:
    store = write(tmp_path, SEQUENCES)
    content = (tmp_path / name).read_bytes()
    # Opening the store does not read this byte, except in the offsets.
    (tmp_path / name).write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
    with pytest.raises(MinilmError, match="checksum") as caught:
        store.verify()
    assert caught.value.where == str(tmp_path / name)


def test_verify_reports_a_missing_file(tmp_path: Path) -> None:
    store = write(tmp_path, SEQUENCES)
    (tmp_path / "shard-00001.npy").unlink()
    with pytest.raises(MinilmError) as caught:
        store.verify()
    assert caught.value.where == str(tmp_path / "shard-00001.npy")


def test_verify_reports_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    write(tmp_path, SEQUENCES)
    ids = np.load(tmp_path / "shard-00000.npy")
    ids[0] = 300
    np.save(tmp_path / "shard-00000.npy", ids)
    # With a valid checksum, as another program may write it.
    set_at("shards", 0, "sha256", value=sha256(tmp_path / "shard-00000.npy"))(tmp_path)
    with pytest.raises(MinilmError, match="vocabulary"):
        TokenStore(tmp_path).verify()
