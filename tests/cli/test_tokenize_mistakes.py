"""What `minilm tokenize` says to every mistake."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from .conftest import Minilm
from .mistakes import Mistake, is_told

TOKENIZE = "tokenize corpus.txt --tokenizer teacher --workers 1 "


def text(name: str, content: str) -> None:
    """Write a text file."""
    Path(name).write_text(content, encoding="utf-8")


def latin1(name: str) -> None:
    """Write a file whose third line is not UTF-8."""
    Path(name).write_bytes("one\ntwo\ncafé\n".encode("latin-1"))


def damaged_gzip(name: str) -> None:
    """Write a gzip file with a wrong byte in its checksum."""
    content = bytearray(gzip.compress(b"some text\n" * 100))
    content[-6] ^= 0xFF
    Path(name).write_bytes(content)


def short_gzip(name: str) -> None:
    """Write the first half of a gzip file."""
    content = gzip.compress(Path("corpus.txt").read_bytes())
    Path(name).write_bytes(content[: len(content) // 2])


def loop(name: str) -> None:
    """Make a link that points to itself: a file that nobody can open."""
    Path(name).symlink_to(name)


MISTAKES = [
    Mistake("no input", "tokenize", ("INPUT",)),
    Mistake("missing file", "tokenize nowhere.txt --tokenizer teacher", ("nowhere.txt", "no such file")),
    Mistake(
        "second file missing", "tokenize corpus.txt nowhere.txt --tokenizer teacher", ("nowhere.txt", "no such file")
    ),
    Mistake("folder as input", "tokenize teacher --tokenizer teacher", ("teacher", "folder", "text file")),
    Mistake("unreadable file", "tokenize loop.txt --tokenizer teacher", ("loop.txt", "read"), lambda: loop("loop.txt")),
    Mistake(
        "empty file", "tokenize empty.txt --tokenizer teacher", ("empty.txt", "no text"), lambda: text("empty.txt", "")
    ),
    Mistake(
        "blank lines only",
        "tokenize blank.txt --tokenizer teacher",
        ("blank.txt", "no text", "3 are blank"),
        lambda: text("blank.txt", "\n  \n\t\n"),
    ),
    Mistake(
        "every line dropped",
        TOKENIZE + "--overflow drop --max-length 3",
        ("corpus.txt", "dropped as too long"),
        lambda: text("corpus.txt", "too long for three tokens\n" * 3),
    ),
    Mistake(
        "not UTF-8",
        "tokenize latin.txt --tokenizer teacher",
        ("latin.txt, line 3", "0xe9", "not UTF-8", "--errors replace", "iconv"),
        lambda: latin1("latin.txt"),
    ),
    Mistake(
        "second file not UTF-8",
        "tokenize corpus.txt latin.txt --tokenizer teacher --batch-size 7",
        ("latin.txt, line 3", "not UTF-8"),
        lambda: latin1("latin.txt"),
    ),
    Mistake(
        "jsonl line not JSON",
        "tokenize bad.jsonl --tokenizer teacher",
        ("bad.jsonl, line 2", "not JSON"),
        lambda: text("bad.jsonl", '{"text": "a"}\n{"text": \n'),
    ),
    Mistake(
        "jsonl line without the field",
        "tokenize bad.jsonl --tokenizer teacher",
        ("bad.jsonl, line 1", "'text'", "--text-field"),
        lambda: text("bad.jsonl", '{"body": "a"}\n'),
    ),
    Mistake(
        "jsonl field that is a number",
        "tokenize bad.jsonl --tokenizer teacher --text-field body",
        ("bad.jsonl, line 2", "'body'"),
        lambda: text("bad.jsonl", '{"body": "a"}\n{"body": 3}\n'),
    ),
    Mistake(
        "jsonl line that is a list",
        "tokenize bad.jsonl --tokenizer teacher",
        ("bad.jsonl, line 1", "JSON object"),
        lambda: text("bad.jsonl", "[1, 2]\n"),
    ),
    Mistake(
        "damaged gzip",
        "tokenize bad.txt.gz --tokenizer teacher",
        ("bad.txt.gz", "damaged"),
        lambda: damaged_gzip("bad.txt.gz"),
    ),
    Mistake(
        "gzip cut short",
        "tokenize short.txt.gz --tokenizer teacher",
        ("short.txt.gz", "cut short"),
        lambda: short_gzip("short.txt.gz"),
    ),
    Mistake(
        "text that is called gz",
        "tokenize plain.txt.gz --tokenizer teacher",
        ("plain.txt.gz", "damaged"),
        lambda: text("plain.txt.gz", "not compressed\n"),
    ),
    Mistake(
        "a table",
        "tokenize table.csv --tokenizer teacher",
        ("table.csv", ".csv files are not read", "JSON lines"),
        lambda: text("table.csv", "a,b\n1,2\n"),
    ),
    Mistake("unknown option", TOKENIZE + "--tokeniser teacher", ("--tokeniser", "--tokenizer")),
    Mistake("max length of zero", TOKENIZE + "--max-length 0", ("max_length", "greater than or equal to 2", "0")),
    Mistake("max length that is a word", TOKENIZE + "--max-length long", ("--max-length", "integer")),
    Mistake("no room for text", TOKENIZE + "--max-length 2", ("--max-length 2", "special tokens")),
    Mistake("unknown overflow", TOKENIZE + "--overflow wrap", ("overflow", "split", "truncate", "drop", "wrap")),
    Mistake("unknown errors", TOKENIZE + "--errors ignore", ("errors", "strict", "replace", "ignore")),
    Mistake("no workers", TOKENIZE + "--workers 0", ("workers", "greater than 0")),
    Mistake("batches of nothing", TOKENIZE + "--batch-size 0", ("batch_size", "greater than 0")),
    Mistake(
        "tokenizer folder missing",
        "tokenize corpus.txt --tokenizer ./nowhere",
        ("./nowhere", "no such tokenizer folder"),
    ),
    Mistake(
        "tokenizer not to be had",
        "tokenize corpus.txt --tokenizer nobody/nothing",
        ("nobody/nothing", "tokenizer cannot be loaded", "HF_HUB_OFFLINE"),
    ),
    Mistake("tokenizer is a file", "tokenize corpus.txt --tokenizer corpus.txt", ("corpus.txt", "tokenizer")),
    Mistake(
        "folder without a tokenizer",
        "tokenize corpus.txt --tokenizer empty",
        ("empty", "tokenizer cannot be loaded", "save_pretrained"),
        lambda: Path("empty").mkdir(),
    ),
    Mistake(
        "tokenizer not JSON",
        "tokenize corpus.txt --tokenizer teacher",
        ("teacher", "tokenizer cannot be loaded"),
        lambda: text("teacher/tokenizer.json", "{"),
    ),
    Mistake(
        "tokenizer without vocabulary",
        "tokenize corpus.txt --tokenizer teacher",
        ("teacher", "tokenizer"),
        lambda: Path("teacher/tokenizer.json").unlink(),
    ),
    Mistake("output exists", TOKENIZE, ("tokens", "exists already", "--force", "--output")),
    Mistake(
        "output file exists",
        TOKENIZE + "-o ids.jsonl.gz",
        ("ids.jsonl.gz", "exists already", "--force"),
        lambda: text("ids.jsonl.gz", "mine"),
    ),
    Mistake(
        "what exists is kept if the new one fails",
        "tokenize latin.txt --tokenizer teacher --force",
        ("latin.txt, line 3",),
        lambda: latin1("latin.txt"),
    ),
    Mistake("output below a file", TOKENIZE + "-o corpus.txt/tokens", ("corpus.txt",)),
    Mistake("unknown command", "tokenise corpus.txt", ("tokenise", "tokenize")),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_told_and_leaves_nothing_behind(mistake: Mistake, minilm: Minilm, workplace: Path) -> None:
    if "exists" not in mistake.name and "kept" not in mistake.name:
        for file in (workplace / "tokens").iterdir():
            file.unlink()
        (workplace / "tokens").rmdir()
    is_told(mistake, minilm)
