"""The fuzzing targets: valid files, their damage, and how the program opens them.

Any bytes are either opened or refused with a `MinilmError`, in bounded memory.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from hypothesis import strategies as st
from pyarrow import parquet
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.jsonio import write_json
from minilm_cli.corpus.encoder import Encoder, Recipe
from minilm_cli.corpus.packing import Counts, Sequencer, SpecialTokens, State
from minilm_cli.corpus.resume import Position, Unfinished, unfinished
from minilm_cli.corpus.sources import find_sources
from minilm_cli.export.card_training import Training, training_sections
from minilm_cli.export.loss_curve import loss_curve
from minilm_cli.models.hub import read_card
from minilm_cli.runs import checkpoint
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.lookup import final_losses, find_run
from minilm_cli.runs.run_state import RunState
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.settings.flags import setting_names
from minilm_cli.settings.load import load_distill_settings
from minilm_cli.tokens.id_lists import convert_token_lists
from minilm_cli.tokens.store import TokenizerInfo, TokenStore, TokenStoreWriter
from tests.fuzz.mutations import ANY_JSON, PIECES, changed_json, changed_lines, damaged
from tests.unit.test_plan import plan

Files = Mapping[str, bytes]

#: Memory in bytes for opening any of these small files.
MEMORY = 400 * 2**20


@dataclass(frozen=True)
class Target:
    """Files and the function that opens them."""

    name: str
    files: st.SearchStrategy[Files]
    """Files of a folder, by their paths in it."""
    open: Callable[[Path], None]
    """Opens the files of a folder, and reads all that the program would read."""

    def opens(self, files: Files) -> bool:
        """Whether the files are opened, not refused; raises any other error."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            try:
                self.open(Path(folder))
            except MinilmError as error:
                if not str(error):
                    raise ValueError("the message is empty") from error
                return False
        return True


@contextmanager
def bounded_memory(limit: int = MEMORY) -> Iterator[None]:
    """Allocations of more than `limit` bytes beyond the present memory raise `MemoryError`."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _files_of(make: Callable[[Path], object]) -> Files:
    """The files that `make` writes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@st.composite
def _some_damaged(
    draw: st.DrawFn,
    valid: Files,
    *,
    pieces: tuple[bytes, ...] = (),
    ways: Mapping[str, Callable[[bytes], st.SearchStrategy[bytes]]] | None = None,
    seal: Callable[[dict[str, bytes]], None] | None = None,
) -> Files:
    """Up to two of the files damaged, in ways for the ends of their names; `seal` corrects their checksums."""
    files = dict(valid)
    for name in draw(st.lists(st.sampled_from(sorted(files)), max_size=2, unique=True)):
        fitting = [way(files[name]) for end, way in {**_WAYS, **(ways or {})}.items() if name.endswith(end)]
        files[name] = draw(
            st.one_of(*fitting, *fitting, damaged(files[name], pieces + PIECES), st.binary(max_size=200))
        )
    if seal is not None and draw(st.booleans()):
        with suppress(LookupError, TypeError, ValueError, AttributeError, RecursionError):  # too damaged to seal
            seal(files)
    return files


_WAYS: Mapping[str, Callable[[bytes], st.SearchStrategy[bytes]]] = {".json": changed_json, ".jsonl": changed_lines}


# --- Token stores ------------------------------------------------------------------------------------------------

INFO = TokenizerInfo(name="words", vocabulary_size=300, special_ids=[0, 7])


def _write_store(folder: Path) -> None:
    writer = TokenStoreWriter(folder, INFO, 16, shard_tokens=9)
    writer.add(np.arange(20, dtype=np.uint16), np.array([3, 1, 5, 2, 2, 7]))
    writer.close()


def _seal_store(files: dict[str, bytes]) -> None:
    manifest = json.loads(files["manifest.json"])
    for shard in manifest["shards"]:
        shard["sha256"] = _sha256(files[shard["file"]])
        shard["offsets_sha256"] = _sha256(files[shard["file"].replace(".npy", ".offsets.npy")])
    files["manifest.json"] = json.dumps(manifest).encode()


@st.composite
def _npy(draw: st.DrawFn) -> bytes:
    """A `.npy` file with a well-formed but wrong header."""
    descr = draw(st.sampled_from(["'<u2'", "'<i8'", "'|O'", "'>u2'", "[('a', '<u2')]", "'<u2', 'x': 0", "-" * 3000]))
    size = draw(st.sampled_from(["9", "4", "0", "-1", str(2**62), "9" * 5000, "9,", "9,)" + "(" * 300]))
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': ({size},), }}\n".encode()
    version = draw(st.sampled_from([1, 2, 3, 9]))
    length = draw(st.sampled_from([len(header), 0, 2**16 - 1, 2**32 - 1]))
    start = b"\x93NUMPY" + bytes([version, 0]) + length.to_bytes(4, "little")[: 2 if version == 1 else 4]
    return start + header + draw(st.binary(max_size=80))


@cache
def _zip() -> bytes:
    """An archive of arrays, which NumPy recognises by its content."""
    return _files_of(lambda folder: np.savez(folder / "x.npz", np.zeros(9, dtype=np.uint16)))["x.npz"]


def _odd_arrays(_content: bytes) -> st.SearchStrategy[bytes]:
    return _npy() | st.just(_zip())


def _open_store(folder: Path) -> None:
    store = TokenStore(folder)
    store.verify()
    lengths = store.lengths(np.arange(len(store)), store.manifest.longest)
    json.dumps(store.manifest.model_dump(), ensure_ascii=False).encode()
    assert np.bincount(lengths).tolist() == store.manifest.length_histogram
    for index, length in enumerate(lengths):
        assert len(store[index]) == length
        assert int(store.sequence(index, 3).max()) < store.manifest.tokenizer.vocabulary_size


# --- Files of token-id lists -------------------------------------------------------------------------------------

_LISTS = b"[1, 2, 3]\n[299]\n[0, 17, 5, 7]\n"


@cache
def _bombs() -> list[bytes]:
    """Small compressed files, each with a line of a gigabyte."""
    return [gzip.compress(piece * 2**20, 1) * (2**10 // len(piece)) for piece in (b"1,", b" ", b"[", b"9")]


def _packed(_content: bytes) -> st.SearchStrategy[bytes]:
    return (damaged(_LISTS) | changed_lines(_LISTS)).map(gzip.compress) | st.sampled_from(_bombs())


def _open_lists(folder: Path) -> None:
    convert_token_lists(folder / "ids.jsonl.gz", folder / "store", INFO)
    _open_store(folder / "store")


# --- Text --------------------------------------------------------------------------------------------------------

_TEXT = b"the of and\r\n\n" + b"to in is was it " * 9 + b"\n\xef\xbb\xbf\xc3\xa9\xf0\x9f\x98\x80\0\nthe"
_OBJECTS = b'{"text": "the of"}\n{"id": 3, "text": "\\ud83d\\ude00 and", "more": [1, {"text": null}]}\n'
_LIST = b'\n[ {"text": "the of"}, {"id": [3, {"a": "]}"}], "text": "\\"and\\\\"}\n]\n'
_TABBED = b'id\ttext\n1\tthe "of\n\n3\twas\r\n'
_ROWS = b'id,text\n1,the of\n2,"and, to ""in""\nis"\n\n3,was\n'


#: Files, and how their text is damaged besides as bytes.
_CONTENTS = (
    ("x.txt", _TEXT, damaged),
    ("x.jsonl", _OBJECTS, changed_lines),
    ("x.json", _OBJECTS, changed_lines),
    ("x.json", _LIST, changed_json),
    ("x.csv", _ROWS, damaged),
    ("x.tsv", _TABBED, damaged),
)


@cache
def _parquet() -> bytes:
    table = pa.table({"id": [1, 2, 3], "text": ["the of", None, "and"]})
    return _files_of(lambda folder: parquet.write_table(table, folder / "x.parquet", row_group_size=2))["x.parquet"]


@cache
def _zstd() -> Callable[[bytes], bytes]:
    try:
        return import_module("compression.zstd").compress
    except ImportError:
        return import_module("backports.zstd").compress


def _inputs() -> Iterator[st.SearchStrategy[Files]]:
    """Text, JSON lines and tables that are damaged before or after compression."""
    compressions = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": _zstd()}
    for name, content, way in _CONTENTS:
        texts = damaged(content) | way(content)
        for end, compress in compressions.items():
            packed = texts.map(compress) | damaged(compress(content) * 2)
            yield st.fixed_dictionaries({name + end: packed})
    # A line of 64 MB, and a record of as much.
    yield st.sampled_from([b" ", b"9"]).map(lambda byte: {"x.txt.gz": gzip.compress(byte * 2**20, 1) * 64})
    begin = gzip.compress(b'[{"text": "')
    yield st.sampled_from(b' "\\').map(lambda byte: {"x.json.gz": begin + gzip.compress(bytes([byte]) * 2**20, 1) * 64})
    yield st.fixed_dictionaries({"x.parquet": damaged(_parquet())})


@cache
def _encoder() -> Encoder:
    words = {word: number for number, word in enumerate(["?", "the", "of", "and", "to", "in"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    return Encoder(Recipe(tokenizer.to_str(), "uint16", errors="replace"))


def _open_inputs(folder: Path) -> None:
    for source in find_sources([str(path) for path in folder.iterdir()], None):
        sequencer = Sequencer(SpecialTokens((), ()), 16, "split", pack=True)
        tokens = count = 0
        for lines in source.batches(2):
            units = _encoder()(lines)
            count += len(units.ids)
            tokens += len(sequencer.add(units)[0])
        assert tokens + len(sequencer.end()[0]) == count


# --- Unfinished token stores -------------------------------------------------------------------------------------


def _write_unfinished(folder: Path) -> None:
    work = Unfinished(folder / ".unfinished-store", _MADE_WITH, [_INPUT])
    with TokenStoreWriter(work.store, INFO, 16, shard_tokens=9) as work.writer:
        work.writer.add(np.arange(20, dtype=np.uint16), np.array([3, 1, 5, 2, 2, 7]))
        work.save(Position(lines=3, sequences=2, sequencer=State([1], False, [2, 3], Counts(3))))


_MADE_WITH, _INPUT = {"--max-length": 16}, {"name": "x.txt", "size": 9}


def _open_unfinished(folder: Path) -> None:
    with unfinished(
        folder / "store", INFO, 16, made_with=_MADE_WITH, inputs=[_INPUT], continued=True, force=False
    ) as work:
        if work.position.sequencer is not None:
            Sequencer(SpecialTokens((), ()), 16, "split").restore(work.position.sequencer)
        work.writer.add(np.arange(3, dtype=np.uint16), np.array([3]))
    _open_store(folder / "store")


# --- Settings ----------------------------------------------------------------------------------------------------

REQUIRED = {"teacher.name": "t", "student.config": "s"}
_SETTINGS = load_distill_settings(None, ["training.steps=9", "data.max_length=64"], REQUIRED).model_dump(mode="json")

_YAML = (
    *(b"!!bool x", b"!!int ''", b"!!float x", b"!!timestamp x", b"!!binary x", b"!!set {a}", b"!!omap [a]", b"!!x y"),
    *(b"&a [*a]", b"&a {a: *a}", b"*a", b"<<: {lr: 1}", b"? [a]\n: b\n", b"2001-99-99", b"0b", b"0o9", b".nan", b"|\n"),
    *(b"\t", b"---\n", b"...\n", b"%YAML 9.9\n---\n", b"!!python/object/apply:os.getcwd []", b"!<", b"\\x", b"1:99"),
)
_TOML = (
    b"[data.b]\n",
    b"[[a]]\n",
    b"a.b.c = 1\n",
    b"1979-05-27",
    b"nan",
    b"inf",
    b"'''",
    b'"""',
    b"\\U0011FFFF",
    b"{a=1}",
)


@cache
def _yaml_bombs() -> list[bytes]:
    """A few lines that expand to billions of values."""
    chains = {"&a0 [x]": "[{}]", "&a0 {lr: 1}": "{{a: {}}}", "&a0 {eps: 1}": "{{<<: [{}]}}"}
    bombs = []
    for first, link in chains.items():
        lines = [f"a0: {first}"] + [f"a{n}: &a{n} " + link.format(", ".join([f"*a{n - 1}"] * 9)) for n in range(1, 12)]
        bombs.append("\n".join([*lines, "optimizer: *a11", "reporting: {sinks: *a11}"]).encode())
    return bombs


@st.composite
def _assignments(draw: st.DrawFn) -> bytes:
    name = st.sampled_from([*setting_names(DistillSettings), "teacher", "relations.weights.qq", ".", "a" + ".a" * 500])
    value = damaged(b"{qk: 2, vv: 1e-1}", _YAML) | st.sampled_from(_YAML + PIECES)
    value |= ANY_JSON.map(json.dumps).map(str.encode)
    lines = draw(st.lists(st.tuples(name.map(str.encode), value).map(b"=".join) | st.binary(max_size=20), max_size=2))
    return b"\0".join(lines)


def _settings_target(suffix: str, valid: str, **damage: Any) -> Target:
    name = f"settings{suffix}"

    def open_settings(folder: Path) -> None:
        _use_settings(load_distill_settings(folder / name))

    return Target(f"settings {suffix}", _some_damaged({name: valid.encode()}, **damage), open_settings)


def _open_assignments(folder: Path) -> None:
    # Like the words of a command line: without null bytes, and not always UTF-8.
    words = [os.fsdecode(word) for word in (folder / "words").read_bytes().split(b"\0")]
    flags = {name: value for name, value in REQUIRED.items() if not any(word.startswith(name) for word in words)}
    _use_settings(load_distill_settings(None, [word for word in words if word], flags))


def _use_settings(settings: DistillSettings) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        run.settings_file.write_text(json.dumps(settings.model_dump(mode="json"), ensure_ascii=False), encoding="utf-8")
        assert run.settings() == settings
    for path in (*settings.data.paths, settings.output or Path()):
        os.fsencode(path)


_TOML_SETTINGS = """
output = "out"
[teacher]
name = "t"
layer = -1
[student]
config = "s"
[relations]
heads = 12
weights = { qq = 1, kv = 0.5 }
[optimizer]
lr = 1e-3
betas = [0.9, 0.99]
[reporting]
sinks = ["wandb"]
log_ranks = true
"""

# --- Runs --------------------------------------------------------------------------------------------------------

_STEPS = (3, 5)


def _write_checkpoints(folder: Path) -> None:
    tensors = {
        "student": {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2, dtype=torch.bfloat16)},
        "optimizer": {"weight.step": torch.tensor(3.0)},
    }
    for step in _STEPS:
        checkpoint.save(folder, step, tensors, RunState(evaluated=step, elapsed=1.5).model_dump())


def _seal_checkpoint(files: dict[str, bytes]) -> None:
    name = f"step-{_STEPS[-1]:08}/checkpoint.json"
    manifest = json.loads(files[name])
    manifest.pop("seal", None)
    for tensors in manifest.get("sha256", ()):
        manifest["sha256"][tensors] = _sha256(files[f"step-{_STEPS[-1]:08}/{tensors}"])
    files[name] = json.dumps(manifest | {"seal": _sha256(json.dumps(manifest, sort_keys=True).encode())}).encode()


@st.composite
def _tensors(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file with a changed header."""
    begin = 8 + int.from_bytes(content[:8], "little")
    header = draw(changed_json(content[8:begin]))
    length = draw(st.just(len(header)) | st.sampled_from([0, 2**26, 2**31, 2**63, 2**64 - 1]))
    return length.to_bytes(8, "little") + header + content[begin:]


def _open_checkpoints(folder: Path) -> None:
    newest = checkpoint.latest(folder)
    assert newest is not None
    for chosen in (newest, checkpoint.load(checkpoint.path_of(folder, _STEPS[-1]))):
        RunState.of(chosen)
        for group in ("student", "optimizer"):
            for tensor in chosen.tensors(group).values():
                tensor.clone()


def _write_run(folder: Path) -> None:
    run = RunFolder(folder)
    run.write_settings(DistillSettings.model_validate(_SETTINGS))
    write_json(run.plan_file, plan().model_dump(mode="json"))
    changed = {"step": 4, "setting": "optimizer.lr", "was": 0.1, "became": 0.2}
    write_json(run.changes_file, {"changes": [changed]})
    write_json(run.environment_file, {"format_version": 1, "minilm": "0.1.0", "packages": {}})
    run.metrics_file.write_text(
        '{"step": 3, "loss": 1.5, "lr": 0.1}\n{"step": 5, "eval_loss": 1e-3}\n', encoding="utf-8"
    )


def _open_run(folder: Path) -> None:
    run = find_run(folder)
    final_losses(run.metrics())
    training = Training.of(run, _STEPS[-1])
    loss_curve(training.records, training.title).encode()
    "".join(training_sections(training, "loss.svg")).encode()


# --- Model cards -------------------------------------------------------------------------------------------------

_CARD = b"---\nlicense: mit\nlanguage:\n- en\ntags: [a]\n---\n# Title\n"


def _open_card(folder: Path) -> None:
    card = read_card(str(folder))
    card.text.encode()
    if not card.entries:  # a card is never refused
        raise MinilmError("the card has no front matter")
    json.dumps([*card.words("license"), *card.words("language"), *card.words("tags")], ensure_ascii=False).encode()


def targets() -> list[Target]:
    """All targets."""
    checkpoints = _files_of(_write_checkpoints)
    # The older checkpoint stays valid.
    older = {name: content for name, content in checkpoints.items() if f"{_STEPS[0]:08}" in name}
    newer = {name: content for name, content in checkpoints.items() if name not in older}
    damaged_newer = _some_damaged(newer, ways={".safetensors": _tensors}, seal=_seal_checkpoint)
    yaml_ways = {
        ".yaml": lambda _content: st.sampled_from(_yaml_bombs()) | changed_json(json.dumps(_SETTINGS).encode())
    }
    return [
        Target(
            "token store",
            _some_damaged(_files_of(_write_store), ways={".npy": _odd_arrays}, seal=_seal_store),
            _open_store,
        ),
        Target(
            "token-id lists", _some_damaged({"ids.jsonl.gz": gzip.compress(_LISTS)}, ways={".gz": _packed}), _open_lists
        ),
        Target("text and tables", st.one_of(*_inputs()), _open_inputs),
        Target("unfinished store", _some_damaged(_files_of(_write_unfinished)), _open_unfinished),
        _settings_target(".yaml", yaml.safe_dump(_SETTINGS), pieces=_YAML, ways=yaml_ways),
        _settings_target(".toml", _TOML_SETTINGS, pieces=_TOML),
        _settings_target(".json", json.dumps(_SETTINGS)),
        Target("--set", st.fixed_dictionaries({"words": _assignments()}), _open_assignments),
        Target("checkpoint", damaged_newer.map(lambda files: older | dict(files)), _open_checkpoints),
        Target("model card", _some_damaged({"README.md": _CARD}, pieces=_YAML), _open_card),
        Target("run folder", _some_damaged(_files_of(_write_run)), _open_run),
    ]
