from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlbertTokenizer,
    AutoTokenizer,
    BertTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Tokenizer,
)

from minilm_cli.base.errors import MinilmError
from minilm_cli.corpus import encoder, sources, tokenizer_pool
from minilm_cli.corpus import tokenize as tokenizing
from minilm_cli.corpus.packing import SpecialTokens
from minilm_cli.corpus.tokenize import TokenizeReport, tokenize
from minilm_cli.settings.tokenize import TokenizeSettings
from minilm_cli.tokens.id_lists import convert_token_lists
from minilm_cli.tokens.store import TokenizerInfo, TokenStore

from .stores import contents, sequences


class Recorded:
    """Progress that records its calls."""

    def __init__(self) -> None:
        self.total: float | None = 0
        self.done: list[float] = []
        self.stopped = False

    def start(self, title: str, total: float | None, *, done: float = 0, unit: str = "steps") -> None:
        assert (title, unit) == ("Tokenising", "bytes")
        assert not self.done, "started twice"
        self.total = total
        self.began_at = done

    def update(self, done: float, shown: object = None) -> None:
        self.done.append(done)
        self.shown = shown

    def stop(self) -> None:
        self.stopped = True


Run = Callable[..., TokenizeReport]


@pytest.fixture
def run(tiny_teacher: Path, tmp_path: Path) -> Run:
    """Tokenises files or the given text into `tokens`."""

    def tokenise(*inputs: Path | str | bytes, **options: Any) -> TokenizeReport:
        files = []
        for number, source in enumerate(inputs):
            file = source if isinstance(source, Path) else tmp_path / f"input-{number}.txt"
            if not isinstance(source, Path):
                file.write_bytes(source if isinstance(source, bytes) else source.encode())
            files.append(str(file))
        defaults = {"tokenizer": str(tiny_teacher), "output": tmp_path / "tokens", "workers": 1}
        return tokenize(TokenizeSettings(inputs=tuple(files), **defaults | options), Recorded())

    return tokenise


@pytest.fixture(scope="session")
def tokenizer(tiny_teacher: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_teacher)


def counts(report: TokenizeReport) -> dict[str, int]:
    return {name: count for name, count in vars(report.counts).items() if count and name != "units"}


line_of_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\ufeff"), max_size=30)


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of the RoBERTa family with a token for each byte."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    RobertaTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=[]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def piece_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of sentence pieces, of the ALBERT family."""
    folder = tmp_path_factory.mktemp("tokenizer")
    AlbertTokenizer(vocab=PIECES).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["tiny_teacher", "byte_tokenizer", "piece_tokenizer"])
@given(lines=st.lists(line_of_text | st.sampled_from(["the man", "[SEP]", "", "  ", "\t", "a\r"]), max_size=30))
@settings(max_examples=15)
def test_each_line_gives_the_ids_of_the_tokenizer(request: pytest.FixtureRequest, kind: str, lines: list[str]) -> None:
    folder_of_tokenizer = request.getfixturevalue(kind)
    tokenizer = AutoTokenizer.from_pretrained(folder_of_tokenizer)
    lines = [*lines, "the last line"]
    expected = [tokenizer(line.removesuffix("\r"))["input_ids"] for line in lines if line.strip()]
    expected = [ids for ids in expected if len(ids) > 2]
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder, "lines.txt"), Path(folder, "tokens")
        file.write_bytes("\n".join(lines).encode())
        given_settings = TokenizeSettings(
            inputs=(str(file),), tokenizer=str(folder_of_tokenizer), output=output, workers=1, batch_size=4
        )
        report = tokenize(given_settings, Recorded())
        assert sequences(output) == expected
    assert (report.lines, report.sequences) == (len(lines), len(expected))
    assert report.counts.blank == len(lines) - len(expected)
    assert report.tokens == sum(map(len, expected))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_text_field_of_json_lines_is_read(
    run: Run, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, suffix: str
) -> None:
    lines = [
        '{"text": "no", "body": "one \\u00e9\\ntwo"}',
        "",
        '{"body": "people"}',
        '{"body": " "}',
        '{"body": null}',
        '{"body": "\\ud800"}',
    ]
    content = "\n".join(lines).encode()
    file = tmp_path / f"data{suffix}"
    file.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    report = run(file, text_field="body")
    expected = [tokenizer(text)["input_ids"] for text in ("one é\ntwo", "people", "?")]
    assert sequences(report.path) == expected
    assert (report.lines, counts(report)) == (6, {"blank": 3})


def test_padding_and_truncation_of_the_tokenizer_are_turned_off(
    run: Run, tiny_teacher: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "tokenizer")
    values = json.loads((folder / "tokenizer.json").read_text())
    backend = AutoTokenizer.from_pretrained(tiny_teacher).backend_tokenizer
    backend.enable_padding(length=50)
    backend.enable_truncation(3)
    changed = json.loads(backend.to_str())
    assert changed["padding"] is not None
    (folder / "tokenizer.json").write_text(json.dumps(values | {k: changed[k] for k in ("padding", "truncation")}))
    report = run("the man and his people\none\n", tokenizer=str(folder))
    assert sequences(report.path) == [tokenizer(text)["input_ids"] for text in ("the man and his people", "one")]


WORDS = ["the", "of", "and", "to", "in", "is", "was", "it", "that", "he", "for", "on"]


@pytest.mark.parametrize(
    ("overflow", "parts", "count"),
    [
        ("split", [WORDS[0:5], WORDS[5:10], WORDS[10:12], ["one"]], {"blank": 1, "split": 1}),
        ("truncate", [WORDS[0:5], ["one"]], {"blank": 1, "truncated": 1}),
        ("drop", [["one"]], {"blank": 1, "dropped": 1}),
    ],
)
def test_long_line_is_split_truncated_or_dropped(
    run: Run, tokenizer: PreTrainedTokenizerBase, overflow: str, parts: list[list[str]], count: dict[str, int]
) -> None:
    report = run(f"{' '.join(WORDS)}\n\none\n", max_length=7, overflow=overflow)
    assert sequences(report.path) == [tokenizer(" ".join(part))["input_ids"] for part in parts]
    assert counts(report) == count
    assert (report.sequences, report.tokens) == (len(parts), sum(len(part) + 2 for part in parts))


def test_report_has_percentiles_of_the_lengths(run: Run) -> None:
    report = run("\n".join(" ".join(WORDS[:n]) for n in range(1, 11)))
    assert report.length_histogram.tolist() == [0] * 3 + [1] * 10
    assert [report.percentile(share) for share in (0.1, 0.5, 0.9, 1.0)] == [3, 7, 11, 12]


PIECES = [("<pad>", 0.0), ("<unk>", 0.0), ("</s>", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("▁a", -1.0), ("▁b", -2.0)]
MERGED = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "a": 5, "b": 6, "Ġ": 7, "Ġa": 8, "Ġb": 9}
WORDS_OF_BERT = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5, "b": 6}


def modernbert() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(vocab={"[CLS]": 0, "[SEP]": 1, "a": 2, "b": 3, "Ġ": 4}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $0 [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]")


@pytest.mark.parametrize(
    ("family", "before", "after"),
    [
        (lambda: BertTokenizer(vocab=WORDS_OF_BERT), [2], [3]),
        (lambda: RobertaTokenizer(vocab=MERGED, merges=[("Ġ", "a"), ("Ġ", "b")]), [0], [2]),
        (lambda: AlbertTokenizer(vocab=PIECES), [3], [4]),
        (lambda: T5Tokenizer(vocab=PIECES, extra_ids=0), [], [2]),
        (modernbert, [0], [1]),
    ],
    ids=["BERT", "RoBERTa", "ALBERT", "T5", "ModernBERT"],
)
def test_packed_lines_have_the_special_tokens_of_the_family(
    run: Run, tmp_path: Path, family: Callable[[], PreTrainedTokenizerBase], before: list[int], after: list[int]
) -> None:
    tokenizer = family()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    lines = ["a b", "b", "a a b", " \t", "b a"]
    ids = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
    assert tokenizer("a b")["input_ids"] == before + ids[0] + after
    room = len(ids[0]) + len(ids[1])
    options = {"tokenizer": str(tmp_path / "tokenizer"), "max_length": room + len(before) + len(after)}
    report = run("\n".join(lines), pack=True, **options)
    expected = [ids[0] + ids[1], *([ids[2]] if len(ids[2]) <= room else [ids[2][:room], ids[2][room:]]), ids[4]]
    assert sequences(report.path) == [before + body + after for body in expected]
    assert (report.lines, report.counts.blank) == (5, 1)


def test_packed_sequences_end_with_their_input(run: Run, tokenizer: PreTrainedTokenizerBase) -> None:
    report = run("one\ntwo", "people", pack=True)
    assert sequences(report.path) == [tokenizer(text)["input_ids"] for text in ("one two", "people")]


ROWS = ["the man\n\nis one\r\nto people", "", "one\n", "of the man"]


def write_rows(folder: Path, kind: str) -> Path:
    """A file with these rows."""
    file = folder / f"rows.{kind}"
    match kind:
        case "json":
            file.write_text(json.dumps([{"text": text} for text in ROWS]))
        case "jsonl":
            file.write_text("".join(json.dumps({"text": text or None}) + "\n" for text in ROWS))
        case "csv":
            with file.open("w", newline="") as table:
                csv.writer(table, quoting=csv.QUOTE_ALL).writerows([["text"], *([text] for text in ROWS)])
        case "parquet":
            parquet.write_table(pa.table({"text": ROWS}), file)
    return file


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_packed_rows_are_documents_of_lines(
    run: Run, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, kind: str
) -> None:
    rows = write_rows(tmp_path, kind)
    report = run(rows, pack=True)
    documents = ["the man is one to people", "one", "of the man"]
    assert sequences(report.path) == [tokenizer(text)["input_ids"] for text in documents]
    assert (report.lines, report.counts.units, report.counts.blank) == (4, 6, 1)
    report = run(rows, pack=True, max_length=6, force=True)
    parts = ["the man is one", "to people", "one", "of the man"]
    assert sequences(report.path) == [tokenizer(text)["input_ids"] for text in parts]
    report = run(rows, pack=True, join_rows=True, force=True)
    joined = ["the man is one to people", "one of the man"]
    assert sequences(report.path) == [tokenizer(text)["input_ids"] for text in joined]
    assert (report.lines, report.counts.units, report.counts.blank) == (4, 4, 1)


def test_sentences_of_a_packed_row_are_a_document(run: Run, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "The man is one. He was!\\n\\nTo people."}\n{"text": "One."}\n')
    report = run(file, pack=True, split_sentences=True, max_length=10)
    documents = ["The man is one. He was!", "To people.", "One."]
    assert sequences(report.path) == [tokenizer(text)["input_ids"] for text in documents]
    assert report.counts.units == 4


def test_packing_that_joins_nothing_gives_a_warning(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "one"}\n{"text": "of the man"}\n')
    run(file, pack=True, join_rows=True)
    run("one\n\npeople", pack=True, force=True)
    assert caplog.text == ""
    run(file, pack=True, force=True)
    assert "--pack joined no lines: each row or JSON object is a document" in caplog.text


@pytest.mark.parametrize("options", [{}, {"pack": True}])
def test_batch_size_and_workers_do_not_change_the_store_of_a_json_file(
    run: Run, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    lines = tiny_corpus.read_text().splitlines()
    file = tmp_path / "records.json"
    file.write_text(json.dumps([{"text": "\n".join(lines[n : n + 7])} for n in range(0, len(lines), 7)], indent=1))
    run(file, output=tmp_path / "one", max_length=16, **options)
    run(file, output=tmp_path / "small", max_length=16, batch_size=3, **options)
    monkeypatch.setattr(tokenizing, "WORTH_A_WORKER", 1)
    run(file, output=tmp_path / "two", max_length=16, workers=2, batch_size=2, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "small") == contents(tmp_path / "two")


def test_each_sentence_is_a_sample(run: Run, tokenizer: PreTrainedTokenizerBase) -> None:
    report = run("The man is one. He was the one! \n\n  \nto people", split_sentences=True)
    expected = ["The man is one.", "He was the one!", "to people"]
    assert sequences(report.path) == [tokenizer(text)["input_ids"] for text in expected]
    assert (report.lines, report.counts.units, report.counts.blank) == (4, 5, 2)


@pytest.mark.parametrize(
    ("language", "expected"), [("en", ["Am 3.", "Mai war es.", "Gut."]), ("de", ["Am 3. Mai war es.", "Gut."])]
)
def test_sentence_ends_depend_on_the_language(
    run: Run, tokenizer: PreTrainedTokenizerBase, language: str, expected: list[str]
) -> None:
    report = run("Am 3. Mai war es. Gut.", split_sentences=True, language=language)
    assert sequences(report.path) == [tokenizer(text)["input_ids"] for text in expected]


def test_sentences_are_stripped(run: Run, byte_tokenizer: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    report = run(" The man is one. He was the one! ", split_sentences=True, tokenizer=str(byte_tokenizer))
    expected = ["The man is one.", "He was the one!"]
    assert sequences(report.path) == [tokenizer(text)["input_ids"] for text in expected]


def test_full_sentences_are_packed(run: Run, tokenizer: PreTrainedTokenizerBase) -> None:
    report = run("One two. The man. One.\nPeople one.", split_sentences=True, pack=True, max_length=9)
    expected = ["One two. The man.", "One. People one."]
    assert sequences(report.path) == [tokenizer(text)["input_ids"] for text in expected]


@pytest.mark.parametrize("workers", [1, 2])
def test_splitting_sentences_needs_a_package(run: Run, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setitem(sys.modules, "sentencex", None)
    monkeypatch.setattr(tokenizing, "WORTH_A_WORKER", 1)
    with pytest.raises(MinilmError, match="needs the package sentencex") as caught:
        run("one", split_sentences=True, workers=workers)
    assert caught.value.hint == "pip install sentencex"


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("overflow", ["split", "truncate", "drop"])
def test_long_line_in_parts_gives_the_same_tokens(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overflow: str, pack: bool
) -> None:
    text = f"one\n{' '.join(WORDS * 30)}\n{' '.join(WORDS * 9)}\n\ntwo people"
    options = {"overflow": overflow, "pack": pack, "max_length": 50}
    expected_store = run(text, output=tmp_path / "at-once", **options)
    monkeypatch.setattr(sources, "LONGEST_PART", 100)
    monkeypatch.setattr(encoder, "_AT_ONCE", 50)
    parts = run(text, output=tmp_path / "parts", **options)
    assert contents(parts.path) == contents(expected_store.path)
    assert (parts.lines, parts.counts) == (expected_store.lines, expected_store.counts)


def test_long_text_of_a_json_line_is_tokenised_in_parts(
    run: Run, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "_AT_ONCE", 50)
    file = tmp_path / "text.jsonl"
    texts = [" ".join(WORDS * 9), "", "one", " ".join(WORDS * 2)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    report = run(file)
    assert sequences(report.path) == [tokenizer(text)["input_ids"] for text in texts if text]


def test_few_bytes_are_tokenised_at_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "_AT_ONCE", 50)
    portions_seen: list[list[str]] = []

    portions = encoder._in_portions

    def record(texts: list[str]) -> Iterator[list[str]]:
        for portion in portions(texts):
            portions_seen.append(portion)
            yield portion

    monkeypatch.setattr(encoder, "_in_portions", record)
    file = tmp_path / "text.jsonl"
    texts = ["人" * 40, "人", "one", "é" * 20, "è" * 20, *"abc"]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run(file)
    assert "".join(text for portion in portions_seen for text in portion) == "".join(texts)
    assert [len("".join(portion).encode()) for portion in portions_seen] == [48, 48, 30, 40, 43]


def test_error_in_a_long_line_is_reported_with_its_byte(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LONGEST_PART", 100)
    with pytest.raises(MinilmError, match="byte 961 of the line, 0xff, is not UTF-8") as caught:
        run(b"one\n" + b"one " * 240 + b"\xff" + b" one" * 100)
    assert caught.value.where == f"{tmp_path / 'input-0.txt'}, line 2"


def test_batch_size_and_workers_do_not_change_the_store(
    run: Run, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny_corpus, output=tmp_path / "one", max_length=16)
    run(tiny_corpus, output=tmp_path / "small", max_length=16, batch_size=7)
    for most in (1, 10, 100):
        with monkeypatch.context() as patch:
            patch.setattr(sources, "_BATCH_BYTES", most)
            run(tiny_corpus, output=tmp_path / "short", max_length=16, force=True)
        assert contents(tmp_path / "short") == contents(tmp_path / "one")
    monkeypatch.setattr(tokenizing, "WORTH_A_WORKER", 1)
    started = []
    pool = tokenizer_pool.ProcessPoolExecutor
    monkeypatch.setattr(
        tokenizer_pool, "ProcessPoolExecutor", lambda n, *rest, **more: started.append(n) or pool(n, *rest, **more)
    )
    report = run(tiny_corpus, output=tmp_path / "two", max_length=16, workers=2, batch_size=11)
    assert started == [2]
    assert contents(tmp_path / "one") == contents(tmp_path / "small") == contents(tmp_path / "two")
    assert counts(report)["blank"] == 20


@pytest.mark.parametrize("workers", [1, 2])
def test_first_of_two_errors_is_reported(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(tokenizing, "WORTH_A_WORKER", 1)
    file = tmp_path / "text.txt.gz"
    file.write_bytes(gzip.compress(b"one\n" * 5 + b"\xff\n" + b"two\n" * 50)[:-9])
    with pytest.raises(MinilmError, match="is not UTF-8") as caught:
        run(file, workers=workers, batch_size=4)
    assert caught.value.where == f"{file}, line 6"


def test_small_input_starts_no_workers(run: Run, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_pool, "ProcessPoolExecutor", None)
    assert run(tiny_corpus, workers=8).sequences > 0


def test_progress_is_in_bytes_and_reaches_the_end(tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    packed = tmp_path / "corpus.txt.gz"
    packed.write_bytes(gzip.compress(tiny_corpus.read_bytes()))
    progress = Recorded()
    inputs = (str(tiny_corpus), str(packed))
    tokenize(
        TokenizeSettings(
            inputs=inputs, tokenizer=str(tiny_teacher), output=tmp_path / "tokens", workers=1, batch_size=50
        ),
        progress,
    )
    assert progress.total == sum(Path(file).stat().st_size for file in inputs)
    assert progress.done == sorted(progress.done)
    assert progress.done[-1] == progress.total
    assert progress.stopped


def test_token_lists_are_reproducible_gzipped_json_lines(run: Run, tiny_corpus: Path, tmp_path: Path) -> None:
    store = run(tiny_corpus, output=tmp_path / "tokens").path
    one = run(tiny_corpus, output=tmp_path / "one.jsonl.gz").path
    other = run(tiny_corpus, output=tmp_path / "other.jsonl.gz", batch_size=3).path
    lines = gzip.decompress(one.read_bytes()).decode().splitlines()
    assert [json.loads(line) for line in lines] == sequences(store)
    assert one.read_bytes() == other.read_bytes()
    convert_token_lists(one, tmp_path / "store", TokenizerInfo(vocabulary_size=180))
    assert sequences(tmp_path / "store") == sequences(store)


def test_input_name_need_not_be_utf_8(run: Run, tmp_path: Path) -> None:
    (tmp_path / "\udcff.txt").write_text("one\ntwo\n")
    assert run(tmp_path / "\udcff.txt").sequences == 2
    assert run(tmp_path / "*\udcff.txt", force=True).sequences == 2


def test_invalid_utf_8_is_replaced_on_request(run: Run, tokenizer: PreTrainedTokenizerBase) -> None:
    report = run("one \ufffd\n".encode() + b"two \xe9 three\n\xff\xff four\n", errors="replace")
    texts = ("one \ufffd", "two \ufffd three", "\ufffd\ufffd four")
    assert sequences(report.path) == [tokenizer(text)["input_ids"] for text in texts]
    assert report.counts.replaced == 3


@pytest.mark.parametrize("output", ["tokens", "ids.jsonl.gz"])
def test_error_leaves_no_output(run: Run, tmp_path: Path, output: str) -> None:
    with pytest.raises(MinilmError):
        run(b"one\n" * 10 + b"\xff\n", batch_size=2, output=tmp_path / output)
    assert [path.name for path in tmp_path.iterdir()] == ["input-0.txt"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "this line cannot be read as JSON: Expecting"),
        pytest.param("[" * 100_000, "cannot be read as JSON: it is nested too deeply", id="nested too deeply"),
        ('["text"]', "this line is not a JSON object, so it has no field 'text'"),
        ("null", "this line is not a JSON object"),
        ('{"body": "x", "id": 3}', "this line has no field 'text'; its fields are \\['body', 'id'\\]$"),
        (json.dumps(dict.fromkeys("abcdefghij")), "its fields are \\['a', 'b', 'c', 'd', 'e', 'f', \\.\\.\\.\\]$"),
        ("{}", "this line has no field 'text'; its fields are \\[\\]$"),
        ('{"text": 3}', "the field 'text' is not text, but 3$"),
        (json.dumps({"text": ["x" * 1000] * 1000}), "the field 'text' is not text, but .{,200}$"),
    ],
)
def test_json_line_without_text_is_refused_with_its_number(run: Run, tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "one"}\n\n' + line + "\n")
    with pytest.raises(MinilmError) as caught:
        run(file)
    assert re.search(message, caught.value.message)
    assert caught.value.where == f"{file}, line 3"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", None),
        ("\n\n \n", "Of 3 lines, 3 are blank and 0 were dropped as too long."),
        ("\u200b\n", "Of 1 lines, 1 are blank and 0 were dropped as too long."),
    ],
)
def test_file_without_text_is_refused(run: Run, tmp_path: Path, text: str, hint: str | None) -> None:
    with pytest.raises(MinilmError, match="no line has a token") as caught:
        run(text)
    assert caught.value.hint == hint
    assert [path.name for path in tmp_path.iterdir()] == ["input-0.txt"]


def test_missing_input_is_refused_before_the_tokenizer_is_loaded(run: Run, tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="there is no such file"):
        run("one", tmp_path / "nothing.txt", tokenizer="/no/such/tokenizer")
    with pytest.raises(MinilmError, match="this is a folder"):
        run(tmp_path, tokenizer="/no/such/tokenizer")


def test_existing_output_is_replaced_only_with_force(run: Run, tmp_path: Path) -> None:
    run("one two")
    before = contents(tmp_path / "tokens")
    with pytest.raises(MinilmError, match="exists already"):
        run("people")
    assert contents(tmp_path / "tokens") == before
    run("people", force=True)
    assert contents(tmp_path / "tokens") != before


@pytest.fixture
def tokenizer_without_unknown(tmp_path: Path) -> str:
    """A tokenizer of sentence pieces that knows only the letter a and has no unknown token."""
    pieces = Tokenizer(models.Unigram([("<pad>", 0.0), ("a", -1.0)], unk_id=None))
    PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="<pad>").save_pretrained(tmp_path / "of-a")
    return str(tmp_path / "of-a")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("options", [{}, {"split_sentences": True}, {"batch_size": 1}])
def test_text_that_cannot_be_encoded_is_reported_with_its_line(
    run: Run,
    tokenizer_without_unknown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    options: dict[str, Any],
) -> None:
    monkeypatch.setattr(tokenizing, "WORTH_A_WORKER", 1)
    assert run("a\naa\n", tokenizer=tokenizer_without_unknown, output=tmp_path / "right").tokens == 3
    with pytest.raises(MinilmError, match=r"the tokenizer cannot encode this text: .*unk_id.* is missing") as caught:
        run("a\n\naa\nab\nb", tokenizer=tokenizer_without_unknown, workers=workers, **options)
    assert caught.value.where == f"{tmp_path / 'input-0.txt'}, line 4"
    assert "--tokenizer" in (caught.value.hint or "")


def test_tokenizer_that_cannot_encode_a_letter_is_refused() -> None:
    tokenizer = Tokenizer(models.Unigram([("a", -1.0), ("<s>", 0.0)], unk_id=None))
    assert encoder.special_tokens(tokenizer) == SpecialTokens((), ())
    tokenizer.post_processor = processors.TemplateProcessing(single="<s>", special_tokens=[("<s>", 1)])
    with pytest.raises(MinilmError, match="does not put its special tokens before and after"):
        encoder.special_tokens(tokenizer)
    with pytest.raises(MinilmError, match=r"the tokenizer cannot encode this text: .*unk_id") as caught:
        encoder.special_tokens(Tokenizer(models.Unigram([("xyz", -1.0)], unk_id=None)))
    assert caught.value.where == "'a'"


def test_manifest_describes_the_tokenizer(run: Run, tiny_teacher: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    info = TokenStore(run("one", max_length=64).path).manifest
    assert info.max_length == 64
    assert info.tokenizer.name == str(tiny_teacher)
    assert info.tokenizer.vocabulary_size == len(tokenizer)
    assert info.tokenizer.special_ids == sorted(set(tokenizer.all_special_ids))
    assert len(info.tokenizer.vocabulary_sha256 or "") == 64


@pytest.mark.parametrize(
    ("text", "output", "named"),
    [
        ("folder/corpus.txt", "folder/corpus.txt", "corpus.txt"),
        ("folder/corpus.txt", "folder", "corpus.txt"),
        ("corpus.txt", "folder", "folder"),
    ],
)
def test_inputs_are_not_replaced(
    run: Run, tiny_teacher: Path, tmp_path: Path, text: str, output: str, named: str
) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "folder")
    for name in ("manifest.json", "shard-00000.npy"):
        (folder / name).touch()  # as if minilm had made it
    (tmp_path / text).write_bytes(b"one")
    with pytest.raises(MinilmError, match=f"this output would replace .*{named}") as caught:
        run(tmp_path / text, tokenizer=str(folder), output=tmp_path / output, force=True)
    assert caught.value.where == str(tmp_path / output)
    assert (tmp_path / text).read_bytes() == b"one"
