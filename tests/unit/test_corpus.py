from __future__ import annotations

import bz2
import gzip
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from minilm_cli import corpus
from minilm_cli.corpus import JsonlWriter, TokenizeReport, convert_token_lists, tokenize
from minilm_cli.errors import MinilmError
from minilm_cli.settings import TokenizeSettings
from minilm_cli.tokens import TokenizerInfo, TokenStore


class Told:
    """Progress that keeps what it was told."""

    def __init__(self) -> None:
        self.total: float = 0
        self.done: list[float] = []
        self.stopped = False

    def start(self, title: str, total: float, *, done: float = 0, unit: str = "steps") -> None:
        assert (title, done, unit) == ("Tokenising", 0, "bytes")
        self.total = total

    def update(self, done: float, shown: object = None) -> None:
        self.done.append(done)
        self.shown = shown

    def stop(self) -> None:
        self.stopped = True


Run = Callable[..., TokenizeReport]


@pytest.fixture
def run(tiny_teacher: Path, tmp_path: Path) -> Run:
    """Tokenises files, or the text given, into `tokens`."""

    def tokenise(*inputs: Path | str | bytes, **options: Any) -> TokenizeReport:
        files = []
        for number, source in enumerate(inputs):
            file = source if isinstance(source, Path) else tmp_path / f"input-{number}.txt"
            if not isinstance(source, Path):
                file.write_bytes(source if isinstance(source, bytes) else source.encode())
            files.append(file)
        defaults = {"tokenizer": str(tiny_teacher), "output": tmp_path / "tokens", "workers": 1}
        return tokenize(TokenizeSettings(inputs=tuple(files), **defaults | options), Told())

    return tokenise


@pytest.fixture(scope="session")
def tokenizer(tiny_teacher: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_teacher)


def sequences(path: Path) -> list[list[int]]:
    store = TokenStore(path)
    store.verify()
    return [store[index].tolist() for index in range(len(store))]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def counts(report: TokenizeReport) -> dict[str, int]:
    return {name: count for name, count in vars(report.counts).items() if count}


# --- What is read ------------------------------------------------------------------------------------------------

line_of_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\ufeff"), max_size=30)


@given(lines=st.lists(line_of_text | st.sampled_from(["the man", "[SEP]", "", "  ", "a\r"]), max_size=30))
@settings(max_examples=15)
def test_each_line_is_read_back_as_the_tokenizer_gives_it(
    tiny_teacher: Path, tokenizer: PreTrainedTokenizerBase, lines: list[str]
) -> None:
    lines = [*lines, "the last line"]
    wanted = [tokenizer(line)["input_ids"] for line in lines if line.strip()]
    wanted = [ids for ids in wanted if len(ids) > 2]
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder, "lines.txt"), Path(folder, "tokens")
        file.write_bytes("\n".join(lines).encode())
        given_settings = TokenizeSettings(
            inputs=(file,), tokenizer=str(tiny_teacher), output=output, workers=1, batch_size=4
        )
        report = tokenize(given_settings, Told())
        assert sequences(output) == wanted
    assert (report.counts.lines, report.sequences) == (len(lines), len(wanted))
    assert report.counts.blank == len(lines) - len(wanted)
    assert report.tokens == sum(map(len, wanted))


@pytest.mark.parametrize(
    "text", ["one\ntwo\n", "one\ntwo", "one\r\ntwo\r\n", "\ufeffone\ntwo\n", "\n\none\n \t\ntwo\n\n"]
)
def test_line_ends_byte_order_marks_and_blank_lines_make_no_tokens(
    run: Run, tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    report = run(text)
    assert sequences(report.path) == [tokenizer(word)["input_ids"] for word in ("one", "two")]
    assert report.counts.lines - report.counts.blank == 2


def test_a_byte_order_mark_is_left_out_of_each_file(
    run: Run, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    line = b'{"text": "one"}\n'
    files = [tmp_path / f"{number}.jsonl" for number in range(2)]
    for file in files:
        file.write_bytes(b"\xef\xbb\xbf" + line)
    report = run(*files)
    assert sequences(report.path) == [tokenizer("one")["input_ids"]] * 2


def test_files_are_read_in_the_order_they_are_given(run: Run, tokenizer: PreTrainedTokenizerBase) -> None:
    report = run("one\ntwo", "people\nlong\n")
    words = ["one", "two", "people", "long"]
    assert sequences(report.path) == [tokenizer(word)["input_ids"] for word in words]


def test_a_gzipped_file_gives_what_the_plain_one_gives(run: Run, tiny_corpus: Path, tmp_path: Path) -> None:
    packed = tmp_path / "corpus.txt.gz"
    packed.write_bytes(gzip.compress(tiny_corpus.read_bytes()))
    run(tiny_corpus, output=tmp_path / "plain")
    run(packed, output=tmp_path / "packed")
    assert contents(tmp_path / "plain") == contents(tmp_path / "packed")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_the_text_field_of_json_lines_is_read(
    run: Run, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, suffix: str
) -> None:
    lines = [
        '{"text": "no", "body": "one \\u00e9\\ntwo"}',
        "",
        '{"body": "people"}',
        '{"body": " "}',
        '{"body": "\\ud800"}',
    ]
    content = "\n".join(lines).encode()
    file = tmp_path / f"data{suffix}"
    file.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    report = run(file, text_field="body")
    wanted = [tokenizer(text)["input_ids"] for text in ("one é\ntwo", "people", "?")]
    assert sequences(report.path) == wanted
    assert counts(report) == {"lines": 5, "blank": 2}


def test_the_tokenizers_own_padding_and_truncation_are_put_aside(
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


# --- Longer lines ------------------------------------------------------------------------------------------------

WORDS = ["the", "of", "and", "to", "in", "is", "was", "it", "that", "he", "for", "on"]


@pytest.mark.parametrize(
    ("overflow", "parts", "count"),
    [
        ("split", [WORDS[0:5], WORDS[5:10], WORDS[10:12], ["one"]], {"lines": 3, "blank": 1, "split": 1}),
        ("truncate", [WORDS[0:5], ["one"]], {"lines": 3, "blank": 1, "truncated": 1}),
        ("drop", [["one"]], {"lines": 3, "blank": 1, "dropped": 1}),
    ],
)
def test_a_longer_line_is_split_truncated_or_dropped(
    run: Run, tokenizer: PreTrainedTokenizerBase, overflow: str, parts: list[list[str]], count: dict[str, int]
) -> None:
    report = run(f"{' '.join(WORDS)}\n\none\n", max_length=7, overflow=overflow)
    assert sequences(report.path) == [tokenizer(" ".join(part))["input_ids"] for part in parts]
    assert counts(report) == count
    assert (report.sequences, report.tokens) == (len(parts), sum(len(part) + 2 for part in parts))


@pytest.mark.parametrize("overflow", ["split", "truncate", "drop"])
def test_a_line_that_just_fits_is_left_alone(run: Run, tokenizer: PreTrainedTokenizerBase, overflow: str) -> None:
    report = run(" ".join(WORDS), max_length=len(WORDS) + 2, overflow=overflow)
    assert sequences(report.path) == [tokenizer(" ".join(WORDS))["input_ids"]]
    assert counts(report) == {"lines": 1}


def test_split_loses_and_repeats_no_token(run: Run, tokenizer: PreTrainedTokenizerBase, tiny_corpus: Path) -> None:
    report = run(tiny_corpus, max_length=9)
    lines = [line for line in tiny_corpus.read_text().splitlines() if line]
    wanted = [token for line in lines for token in tokenizer(line, add_special_tokens=False)["input_ids"]]
    found = [token for ids in sequences(report.path) for token in ids[1:-1]]
    assert found == wanted
    assert max(len(ids) for ids in sequences(report.path)) == 9


def test_a_length_that_leaves_no_room_is_refused(run: Run) -> None:
    with pytest.raises(MinilmError, match="--max-length 2 leaves no room"):
        run("one", max_length=2)
    assert len(sequences(run("one two", max_length=3).path)) == 2


def test_the_report_knows_the_percentiles_of_the_lengths(run: Run) -> None:
    report = run("\n".join(" ".join(WORDS[:n]) for n in range(1, 11)))
    assert report.length_histogram.tolist() == [0] * 3 + [1] * 10
    assert [report.percentile(share) for share in (0.1, 0.5, 0.9, 1.0)] == [3, 7, 11, 12]


# --- The same bytes ----------------------------------------------------------------------------------------------


def test_batch_size_and_workers_do_not_change_the_bytes(
    run: Run, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny_corpus, output=tmp_path / "one", max_length=16)
    run(tiny_corpus, output=tmp_path / "small", max_length=16, batch_size=7)
    monkeypatch.setattr(corpus, "WORTH_A_WORKER", 1)
    pools = []
    executor = corpus.ProcessPoolExecutor
    monkeypatch.setattr(corpus, "ProcessPoolExecutor", lambda *args: pools.append(args[0]) or executor(*args))
    report = run(tiny_corpus, output=tmp_path / "two", max_length=16, workers=2, batch_size=11)
    assert pools == [2]
    assert contents(tmp_path / "one") == contents(tmp_path / "small") == contents(tmp_path / "two")
    assert counts(report)["blank"] == 20


def test_an_error_in_a_worker_process_says_where(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "WORTH_A_WORKER", 1)
    with pytest.raises(MinilmError, match="byte 3 of the line, 0xff, is not UTF-8") as caught:
        run(b"fine\n" * 10 + b"no\xff\n" + b"fine\n" * 10, workers=2, batch_size=2)
    assert caught.value.where == f"{tmp_path / 'input-0.txt'}, line 11"
    assert not (tmp_path / "tokens").exists()


def test_workers_that_are_not_worth_their_start_are_not_started(
    run: Run, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "ProcessPoolExecutor", None)
    assert run(tiny_corpus, workers=8).sequences > 0


def test_progress_is_in_bytes_and_reaches_the_end(tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    packed = tmp_path / "corpus.txt.gz"
    packed.write_bytes(gzip.compress(tiny_corpus.read_bytes()))
    progress = Told()
    inputs = (tiny_corpus, packed)
    tokenize(
        TokenizeSettings(
            inputs=inputs, tokenizer=str(tiny_teacher), output=tmp_path / "tokens", workers=1, batch_size=50
        ),
        progress,
    )
    assert progress.total == sum(file.stat().st_size for file in inputs)
    assert progress.done == sorted(progress.done)
    assert progress.done[-1] == progress.total
    assert progress.stopped


# --- JSON lines of token ids -------------------------------------------------------------------------------------


def test_token_lists_are_gzipped_json_lines_and_the_same_bytes_each_time(
    run: Run, tiny_corpus: Path, tmp_path: Path
) -> None:
    store = run(tiny_corpus, output=tmp_path / "tokens").path
    one = run(tiny_corpus, output=tmp_path / "one.jsonl.gz").path
    other = run(tiny_corpus, output=tmp_path / "other.jsonl.gz", batch_size=3).path
    lines = gzip.decompress(one.read_bytes()).decode().splitlines()
    assert [json.loads(line) for line in lines] == sequences(store)
    assert one.read_bytes() == other.read_bytes()


def test_a_writer_of_token_lists_takes_any_cut_of_its_calls(tmp_path: Path) -> None:
    for name, cuts in (("one", [[1, 2]]), ("two", [[1], [], [2]])):
        writer = JsonlWriter(tmp_path / name)
        begin = 0
        for lengths in cuts:
            end = begin + sum(lengths)
            writer.add(np.arange(begin, end, dtype=np.uint16), np.array(lengths, dtype=np.int64))
            begin = end
        writer.close()
        assert gzip.decompress((tmp_path / name).read_bytes()) == b"[0]\n[1, 2]\n"
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


INFO = TokenizerInfo(vocabulary_size=180, special_ids=[3])


def converted(folder: Path, content: bytes, info: TokenizerInfo = INFO) -> Path:
    file = folder / "ids.jsonl.gz"
    file.write_bytes(gzip.compress(content))
    convert_token_lists(file, folder / "store", info)
    return folder / "store"


@given(st.lists(st.lists(st.integers(0, 179), min_size=1, max_size=6), min_size=1, max_size=20))
def test_token_lists_become_a_store_of_the_same_sequences(lists: list[list[int]]) -> None:
    content = "".join(json.dumps(ids) + "\n" for ids in lists).encode()
    with tempfile.TemporaryDirectory() as folder:
        assert sequences(converted(Path(folder), content)) == lists


def test_what_was_tokenised_as_lists_is_the_store_that_was_tokenised_at_once(
    run: Run, tiny_corpus: Path, tmp_path: Path
) -> None:
    store = run(tiny_corpus, output=tmp_path / "tokens").path
    lists = run(tiny_corpus, output=tmp_path / "ids.jsonl.gz").path
    convert_token_lists(lists, tmp_path / "store", INFO)
    assert sequences(store) == sequences(tmp_path / "store")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1, 2", "not JSON"),
        ("{}", "a list of token ids is wanted"),
        ("[]", "a list of token ids is wanted"),
        ("[1.0]", "a list of token ids is wanted"),
        ("[true]", "a list of token ids is wanted"),
        ('["1"]', "a list of token ids is wanted"),
        ("[[1]]", "a list of token ids is wanted"),
        ("7", "a list of token ids is wanted"),
        ("[180]", "the token id 180 is outside the teacher's vocabulary of 180"),
        ("[3, -1]", "the token id -1 is outside"),
        ("[18446744073709551616]", "the token id 18446744073709551616 is outside"),
        pytest.param(f"[{'9' * 5000}]", "not JSON", id="a number of thousands of digits"),
        ("[NaN]", "a list of token ids is wanted"),
        ("", "not JSON"),
        pytest.param("[" * 100_000, "not JSON", id="nested too deeply"),
    ],
)
def test_a_line_that_is_no_list_of_ids_is_refused_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(MinilmError, match=message) as caught:
        converted(tmp_path, b"[1]\n" * 1500 + line.encode() + b"\n[2]\n")
    assert caught.value.where == f"{tmp_path / 'ids.jsonl.gz'}, line 1501"


def test_a_line_longer_than_may_be_read_at_once_is_refused_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "LONGEST_LIST", 20)
    fits = b"[1, 2, 3, 4, 5, 66]\n"
    assert sequences(converted(tmp_path, fits)) == [[1, 2, 3, 4, 5, 66]]
    with pytest.raises(MinilmError, match="this line is longer than") as caught:
        converted(tmp_path, b"[1]\n" + b"[1, 2, 3, 4, 5, 666]\n")
    assert caught.value.where == f"{tmp_path / 'ids.jsonl.gz'}, line 2"


def test_lists_of_more_than_a_batch_are_all_read(tmp_path: Path) -> None:
    lists = [[n % 180] * 100 for n in range(5000)]
    content = "".join(json.dumps(ids) + "\n" for ids in lists).encode()
    assert len(content) > 2**20
    assert sequences(converted(tmp_path, content)) == lists


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(MinilmError) as caught:
        converted(tmp_path, b"[1]\n\xff\xfe\n")
    assert caught.value.where == f"{tmp_path / 'ids.jsonl.gz'}, line 2"


def test_a_file_of_no_lists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="the file holds no sequence"):
        converted(tmp_path, b"")


@pytest.mark.parametrize(
    "content",
    [b"no gzip at all", gzip.compress(b"[1]\n" * 9999)[:-30], b""],
    ids=["no gzip", "cut short", "empty"],
)
def test_a_damaged_file_of_lists_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "ids.jsonl.gz"
    file.write_bytes(content)
    with pytest.raises(MinilmError) as caught:
        convert_token_lists(file, tmp_path / "store", INFO)
    assert caught.value.where == str(file)


# --- What is refused ---------------------------------------------------------------------------------------------


def test_bytes_that_are_not_utf8_are_refused_with_file_and_line(run: Run, tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="byte 2 of the line, 0xe9, is not UTF-8") as caught:
        run(b"one\nh\xe9llo\n", batch_size=1)
    assert caught.value.where == f"{tmp_path / 'input-0.txt'}, line 2"
    assert "--errors replace" in (caught.value.hint or "")
    assert [path.name for path in tmp_path.iterdir()] == ["input-0.txt"]


def test_bytes_that_are_not_utf8_are_replaced_if_asked(run: Run, tokenizer: PreTrainedTokenizerBase) -> None:
    report = run(b"one\ntwo \xe9 three\n", errors="replace")
    assert sequences(report.path) == [tokenizer(text)["input_ids"] for text in ("one", "two \ufffd three")]


@pytest.mark.parametrize("output", ["tokens", "ids.jsonl.gz"])
def test_an_error_in_the_middle_leaves_nothing_and_no_file_open(run: Run, tmp_path: Path, output: str) -> None:
    with pytest.raises(MinilmError):
        run(b"one\n" * 10 + b"\xff\n", batch_size=2, output=tmp_path / output)
    assert [path.name for path in tmp_path.iterdir()] == ["input-0.txt"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "this line is not JSON"),
        pytest.param("[" * 100_000, "this line is not JSON", id="nested too deeply"),
        ('["text"]', "not a JSON object with a string field 'text'"),
        ('{"body": "x"}', "not a JSON object with a string field 'text'"),
        ('{"text": null}', "not a JSON object with a string field 'text'"),
        ('{"text": 3}', "not a JSON object with a string field 'text'"),
        ("null", "not a JSON object with a string field 'text'"),
    ],
)
def test_a_json_line_without_text_is_refused_with_its_number(run: Run, tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "one"}\n\n' + line + "\n")
    with pytest.raises(MinilmError, match=message) as caught:
        run(file)
    assert caught.value.where == f"{file}, line 3"


@pytest.mark.parametrize("text", ["", "\n\n \n", "\u200b\n"])
def test_a_file_without_text_is_refused_and_leaves_nothing(run: Run, tmp_path: Path, text: str) -> None:
    with pytest.raises(MinilmError, match="not one line has a token"):
        run(text)
    assert [path.name for path in tmp_path.iterdir()] == ["input-0.txt"]


def test_if_all_is_too_long_that_is_said(run: Run) -> None:
    with pytest.raises(MinilmError, match="Of 2 lines 1 are blank and 1 were dropped as too long"):
        run(" ".join(WORDS) + "\n\n", max_length=4, overflow="drop")


def test_a_damaged_gzip_file_is_refused_by_name(run: Run, tiny_corpus: Path, tmp_path: Path) -> None:
    whole = gzip.compress(tiny_corpus.read_bytes())
    for content in (whole[:-40], whole[:200] + b"\x00" * 50 + whole[250:], b"plain text", bz2.compress(b"one")):
        file = tmp_path / "corpus.txt.gz"
        file.write_bytes(content)
        with pytest.raises(MinilmError, match="damaged or cut short") as caught:
            run(file)
        assert caught.value.where == str(file)


def test_an_input_that_is_not_there_or_a_folder_is_refused_before_anything_is_loaded(run: Run, tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="there is no such file"):
        run("one", tmp_path / "nothing.txt", tokenizer="/no/such/tokenizer")
    with pytest.raises(MinilmError, match="this is a folder"):
        run(tmp_path, tokenizer="/no/such/tokenizer")


def test_an_output_that_exists_is_refused_unless_forced(run: Run, tmp_path: Path) -> None:
    run("one two")
    before = contents(tmp_path / "tokens")
    with pytest.raises(MinilmError, match="exists already"):
        run("people")
    assert contents(tmp_path / "tokens") == before
    run("people", force=True)
    assert contents(tmp_path / "tokens") != before


def test_a_tokenizer_that_is_not_there_is_refused(run: Run) -> None:
    with pytest.raises(MinilmError, match="there is no such tokenizer folder"):
        run("one", tokenizer="./nowhere")


def test_the_manifest_knows_the_tokenizer(run: Run, tiny_teacher: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    info = TokenStore(run("one", max_length=64).path).manifest
    assert info.max_length == 64
    assert info.tokenizer.name == str(tiny_teacher)
    assert info.tokenizer.vocabulary_size == len(tokenizer)
    assert info.tokenizer.special_ids == sorted(set(tokenizer.all_special_ids))
    assert len(info.tokenizer.vocabulary_sha256 or "") == 64
