"""Messages of `minilm tokenize` for mistakes in options, inputs, tokenizers, outputs and permissions."""

from __future__ import annotations

import bz2
import gzip
import os
import shutil
from pathlib import Path

import pytest

from .conftest import Minilm
from .mistakes import (
    NOT_A_FILE,
    Mistake,
    Preparation,
    all_of,
    check_mistake,
    edit,
    flip,
    folder,
    folder_with,
    in_options,
    link,
    mode,
    pipe,
    remove,
    write,
)

TOKENIZER = "--tokenizer teacher --workers 1 "
TOKENIZE = "tokenize corpus.txt " + TOKENIZER
LATIN = write("latin.txt", "one\ntwo\ncafé\n".encode("latin-1"))
PACKED = gzip.compress(b"the of and\n")


def zeros(name: str) -> Preparation:
    """Write a sparse file with a line of 32 MiB."""
    return all_of(write(name, ""), lambda: os.truncate(name, 2**25))


MISTAKES_IN_OPTIONS = [
    Mistake("unknown command", "tokenise corpus.txt", ("tokenise", "tokenize")),
    Mistake("no input", "tokenize", ("INPUT",)),
    *in_options(
        TOKENIZE,
        {
            "--tokeniser teacher": ("--tokeniser", "--tokenizer"),
            "--revision v2": ("teacher: ", "no revision v2", "Leave out --revision"),
            "--max-length 0": ("--max-length: ", "greater than or equal to 2", "0"),
            "--max-length -5": ("--max-length: ", "-5"),
            "--max-length long": ("--max-length", "must be a whole number"),
            "--max-length 12.5": ("--max-length", "must be a whole number"),
            "--max-length 9999999": ("--max-length: ", "2097152"),
            f"--max-length {10**30}": ("--max-length: ", "less than"),
            f"--max-length {'9' * 5000}": ("--max-length", "maximum size"),
            "--max-length 2": ("--max-length 2", "special tokens"),
            "--pack --max-length 2": ("--max-length 2", "special tokens"),
            "--overflow wrap": ("overflow", "split", "truncate", "drop", "wrap"),
            "--errors ignore": ("errors", "strict", "replace", "ignore"),
            "--workers 0": ("workers", "greater than 0"),
            f"--workers {10**30}": ("workers", "less than"),
            "--batch-size 0": ("--batch-size: ", "greater than 0"),
            f"--batch-size {2**63}": ("--batch-size: ", "less than"),
            "--join-rows": ("--join-rows", "add --pack"),
            "--language de": ("--language", "--split-sentences"),
            "--split-sentences --language ''": ("language",),
            "--split-sentences --language English": ("language", "English"),
            "--text-field body": ("--text-field", "none of the inputs"),
            "-o new.jsonl": ("new.jsonl", "mistaken for a file", ".jsonl.gz"),
            "-o new.jsonl.gz --continue": ("--continue", "token-id lists", "Start again"),
        },
    ),
]

MISTAKES_IN_INPUTS = [
    *(
        Mistake(f"input {words[:60]!r}", f"tokenize {words} {TOKENIZER}", message)
        for words, message in (
            ("nowhere.txt", ("nowhere.txt", "no such file")),
            ("corpus.txt nowhere.txt", ("nowhere.txt", "no such file")),
            ("teacher", ("teacher", "folder", "text file")),
            ("''", ("folder",)),
            ("/dev/zero", ("/dev/zero", "a pipe or a device")),
            ("corpus.txt/more.txt", ("corpus.txt/more.txt", "Not a directory")),
            (f"{'x' * 300}.txt", ("cannot be read", "name too long")),
            (f"{'x/' * 5000}y.txt", ("cannot be read", "name too long")),
            ("'a\nb.txt'", ("a\nb.txt: there is no such file",)),
            ("日本語.txt", ("日本語.txt: there is no such file",)),
            ("'[bold]x[/].txt'", ("[bold]x[/].txt: no file matches this pattern",)),
            ("'teach*'", ("teach*", "no file matches")),
            ("'a\0b.txt'", ("Error: INPUT: must have no null",)),
            ("teacher/model.safetensors", ("model.safetensors, line 1", "not UTF-8")),
            ("hf://datasets/", ("hf://datasets/", "not the name of a data set")),
            ("hf://models/a", ("hf://models/a", "not the name of a data set")),
            ("hf://datasets/nobody/nothing", ("cannot be loaded", "Hub")),
        )
    ),
    *(
        Mistake(f"{name} that is {what}", f"tokenize {name} {TOKENIZER}", (name, *message), prepare)
        for name, what, message, prepare in (
            ("l.txt", "a link to itself", ("read",), link("l.txt", "l.txt")),
            ("l.txt", "a link to a device", ("a device",), link("l.txt", "/dev/zero")),
            ("l.txt", "a link to a folder", ("folder",), link("l.txt", "teacher")),
            ("l.txt", "a broken link", ("no such file",), link("l.txt", "nowhere")),
            ("pipe.txt.gz", "a pipe", ("a pipe",), pipe("pipe.txt.gz")),
            ("pipe.txt", "a pipe", ("a pipe or a device, not a file", "tokenize - < pipe.txt"), pipe("pipe.txt")),
            ("e.txt", "empty", ("no text",), write("e.txt", "")),
            ("e.txt", "blank", ("no text", "3 are blank"), write("e.txt", "\n  \n\t\n")),
            ("e.txt", "zero bytes", ("no text",), write("e.txt", bytes(100))),
            ("e.txt", "a long line of zero bytes", ("no text",), zeros("e.txt")),
            ("e.txt", "a byte order mark", ("no text",), write("e.txt", b"\xef\xbb\xbf")),
            ("latin.txt", "Latin-1", (", line 3", "0xe9", "not UTF-8", "--errors replace", "iconv"), LATIN),
            ("e.txt", "a surrogate", (", line 1", "0xed"), write("e.txt", b"\xed\xa0\x80\n")),
            ("e.txt", "an overlong byte", (", line 2", "0xc0"), write("e.txt", b"a\n\xc0\xaf\n")),
            ("e.txt.gz", "empty gzip", ("no text",), write("e.txt.gz", gzip.compress(b""))),
            ("e.txt.gz", "one byte of gzip", ("damaged",), write("e.txt.gz", b"\x1f")),
            ("e.txt.gz", "gzip and more", ("damaged",), write("e.txt.gz", PACKED + b"rubbish")),
            (
                "e.txt.gz",
                "gzip with a wrong checksum",
                ("damaged",),
                all_of(write("e.txt.gz", PACKED), flip("e.txt.gz")),
            ),
            (
                "e.txt.gz",
                "wrong far in a long line",
                (", line 2", "byte 3145729 of the line", "0xff"),
                write("e.txt.gz", gzip.compress(b"the\n" + bytes(3 * 2**20) + b"\xff", 1)),
            ),
            ("e.txt.xz", "gzip", ("damaged, or not compressed",), write("e.txt.xz", PACKED)),
            (
                "e.txt.bz2",
                "cut short",
                (", line", "cut short"),
                write("e.txt.bz2", bz2.compress(b"the of and\n" * 999)[:-9]),
            ),
            (
                "e.tar.gz",
                "an archive",
                (".tar.gz files are not supported", "JSON (.jsonl, .json), CSV or TSV"),
                write("e.tar.gz", PACKED),
            ),
            ("E.TSV", "without the column", ("no column 'text'; its columns are 'a', 'b'",), write("E.TSV", "a\tb\n")),
            (
                "e.csv",
                "without the column",
                ("no column 'text'; its columns are 'id', 'body'", "--text-field"),
                write("e.csv", "id,body\n1,the\n"),
            ),
            (
                "e.csv",
                "of semicolons",
                ("no column 'text'", ".csv means commas"),
                write("e.csv", "id;text\n1;the\n"),
            ),
            (
                "e.csv",
                "with a value too many",
                (", line 3", "header has 2 values", "row has 3", "quotation marks"),
                write("e.csv", "id,text\n1,the\n2,of,and\n"),
            ),
            ("e.json", "cut short", (", record 2", "ends too early"), write("e.json", '[{"text": "a"}, {"text": "b"')),
            ("e.json", "of texts", (", record 1", "an object is expected"), write("e.json", '["a"]')),
            (
                "e.json",
                "one object",
                ("record 1", "its fields are ['data']"),
                write("e.json", '{"data": [{"text": 1}]}'),
            ),
            (
                "e.json",
                "with a wrong record",
                (", record 2", "cannot be read as JSON"),
                write("e.json", '[{"text": "a"}, {a}]'),
            ),
            ("e.parquet", "text", ("damaged",), write("e.parquet", "the\n")),
            ("E.JSONL", "without the field", (", line 1", "'text'"), write("E.JSONL", '{"body": "a"}\n')),
        )
    ),
    *(
        Mistake(f"{what} with{option}", f"tokenize e.txt{option} {TOKENIZER}", ("e.txt", *message), prepare)
        for what, message, prepare in (
            ("gzip called txt", ("compressed with gzip", "ends in .gz"), write("e.txt", PACKED)),
            ("UTF-16 LE", ("UTF-16", "iconv -f utf-16"), write("e.txt", "\ufeffthe\n".encode("utf-16-le"))),
            ("UTF-16 BE", ("UTF-16", "iconv -f utf-16"), write("e.txt", "\ufeffthe\n".encode("utf-16-be"))),
        )
        for option in ("", " --errors replace")
    ),
    *(
        Mistake(f"JSON line that is {what}", f"tokenize e.jsonl {TOKENIZER}", message, write("e.jsonl", line))
        for what, line, message in (
            ("cut short", '{"text": "a"}\n{"text": \n', ("e.jsonl, line 2", "cannot be read as JSON")),
            ("without the field", '{"body": "a"}\n', ("e.jsonl, line 1", "'text'", "--text-field")),
            ("a list", "[1, 2]\n", ("e.jsonl, line 1", "JSON object", "named .json")),
            ("not a number", '{"text": NaN}\n', ("e.jsonl, line 1", "'text'")),
            ("a long list", '[\n{"text": "a"}\n]\n', ("e.jsonl, line 1", "cannot be read as JSON")),
            ("too many digits", f'{{"text": "a", "n": {"9" * 5000}}}\n', ("e.jsonl, line 1", "cannot be read as JSON")),
        )
    ),
    Mistake(
        "second file not UTF-8",
        f"tokenize corpus.txt latin.txt --batch-size 7 {TOKENIZER}",
        ("latin.txt, line 3", "not UTF-8"),
        LATIN,
    ),
    Mistake(
        "every line dropped",
        TOKENIZE + "--overflow drop --max-length 3",
        ("corpus.txt", "dropped as too long"),
        write("corpus.txt", "too long for three tokens\n" * 3),
    ),
    Mistake(
        "empty name of a field",
        f"tokenize e.jsonl --text-field '' {TOKENIZER}",
        ("--text-field: ", "at least 1 character"),
        write("e.jsonl", '{"text": "a"}\n'),
    ),
]

MISTAKES_IN_TOKENIZERS = [
    *(
        Mistake(f"tokenizer {name[:60]!r}", f"tokenize corpus.txt --tokenizer {name}", message)
        for name, message in (
            ("./nowhere", ("./nowhere", "no such tokenizer folder")),
            ("nobody/nothing", ("nobody/nothing", "tokenizer cannot be loaded", "HF_HUB_OFFLINE")),
            ("corpus.txt", ("corpus.txt", "tokenizer")),
            ("''", ("tokenizer", "''")),
            ("' '", ("tokenizer cannot be loaded", "Hub")),
            ("'a\nb'", ("tokenizer cannot be loaded", "Hub")),
            ("a..b", ("a..b", "tokenizer cannot be loaded")),
            ("日本/語", ("日本/語", "tokenizer cannot be loaded")),
            ("x" * 5000, ("the tokenizer folder cannot be read", "name too long")),
            ("https://huggingface.co/a/b", ("no such tokenizer folder",)),
            (".", (".: there is no tokenizer here",)),
        )
    ),
    *(
        Mistake(
            f"tokenizer that is {what}",
            "tokenize corpus.txt --tokenizer ./odd",
            ("./odd: there is no such tokenizer folder",),
            NOT_A_FILE[what]("odd"),
        )
        for what in ("a pipe", "a device", "a broken link", "a link to itself")
    ),
    Mistake(
        "folder without a tokenizer",
        "tokenize corpus.txt --tokenizer empty",
        ("empty", "tokenizer cannot be loaded", "save_pretrained"),
        folder("empty"),
    ),
    Mistake("tokenizer without vocabulary", TOKENIZE, ("teacher", "tokenizer"), remove("teacher/tokenizer.json")),
    *(
        Mistake(f"tokenizer with {what}", TOKENIZE, ("teacher: the tokenizer cannot be loaded", *message), prepare)
        for what, message, prepare in (
            ("an empty file", ("tokenizer.json",), write("teacher/tokenizer.json", "")),
            ("an empty object", ("'added_tokens' is missing",), write("teacher/tokenizer.json", "{}")),
            ("a list", ("tokenizer.json",), write("teacher/tokenizer.json", "[]")),
            ("all bytes", ("utf-8",), write("teacher/tokenizer.json", bytes(range(256)))),
            ("a list as config", ("'get'",), write("teacher/tokenizer_config.json", "[]")),
            ("a number as class", (), edit("teacher/tokenizer_config.json", tokenizer_class=3)),
            ("a list as the model's config", ("mapping",), write("teacher/config.json", "[]")),
        )
    ),
    *(
        Mistake(
            f"tokenizer.json that is {what}",
            TOKENIZE,
            ("teacher: there is no tokenizer here",),
            NOT_A_FILE[what]("teacher/tokenizer.json"),
        )
        for what in ("a folder", "a pipe", "a broken link")
    ),
]

MISTAKES_IN_OUTPUTS = [
    *in_options(
        TOKENIZE,
        {
            f"-o {'x' * 300}": ("name too long", "a shorter name"),
            f"-o {'x' * 250}": ("too long", "a shorter name"),
            "-o 'a\0b'": ("null",),
            "-o ''": ("a name of its own", "--output"),
            "-o corpus.txt/tokens": ("corpus.txt",),
            "--force -o ..": ("..: ", "a name of its own", "--output"),
            "--force -o corpus.txt": ("this output would replace corpus.txt", "--output"),
        },
    ),
    *(
        Mistake(f"existing output that is {what}", TOKENIZE + f"-o {name}", (name, "exists already"), prepare)
        for what, name, prepare in (
            ("a file", "ids.jsonl.gz", write("ids.jsonl.gz", "mine")),
            ("a folder for a file", "ids.jsonl.gz", folder("ids.jsonl.gz")),
            ("a broken link", "l", link("l", "nowhere")),
        )
    ),
    *(
        Mistake(f"output below {what}", TOKENIZE + "-o l/x", ("l/x", "below a file"), link("l", target))
        for what, target in (("a broken link", "nowhere"), ("a link to itself", "l"))
    ),
    *(
        Mistake(
            f"output that would replace a {there}, {name}",
            TOKENIZE + f"--force -o {name}",
            (f"{name}: this is a {there}", "--force does not replace it", "--output"),
            prepare,
        )
        for name, there, prepare in (
            ("notes.txt", "file", write("notes.txt", "mine")),
            ("ids.jsonl.gz", "folder", folder("ids.jsonl.gz")),
        )
    ),
    Mistake(
        "complete store continued",
        TOKENIZE + "-o done --continue",
        ("done", "this store is complete", "add --force"),
        all_of(folder("done"), write("done/manifest.json", "{}")),
    ),
    Mistake(
        "output that would replace an input of a pattern",
        f"tokenize 'do*/more.txt' -o done --force {TOKENIZER}",
        ("done", "would replace done/more.txt"),
        folder_with("done", ("manifest.json", "shard-00000.npy", "more.txt")),
    ),
    Mistake(
        "output that would replace a linked input",
        "tokenize l.txt --tokenizer teacher --force -o corpus.txt",
        ("this output would replace l.txt", "--output"),
        link("l.txt", "corpus.txt"),
    ),
]

#: With a token store at the default output.
MISTAKES_WITH_AN_OUTPUT = [
    Mistake("output exists", TOKENIZE, ("tokens", "exists already", "--force", "--output")),
    Mistake("output kept after an error", f"tokenize latin.txt --force {TOKENIZER}", ("latin.txt, line 3",), LATIN),
    Mistake(
        "output that would replace an input",
        f"tokenize tokens/more.txt --force {TOKENIZER}",
        ("this output would replace tokens/more.txt",),
        write("tokens/more.txt", "the of and\n"),
    ),
]

MISSING_PERMISSIONS = [
    Mistake("text unreadable", TOKENIZE, ("corpus.txt", "denied"), mode("corpus.txt", 0)),
    Mistake(
        "text in an unsearchable folder",
        f"tokenize sub/a.txt {TOKENIZER}",
        ("sub/a.txt", "denied"),
        folder_with("sub", ("a.txt",), bits=0),
    ),
    *(
        Mistake(
            f"tokenizer folder with the mode {bits:o}",
            TOKENIZE,
            ("teacher: the tokenizer folder cannot be read", "denied", "ls -ld teacher"),
            mode("teacher", bits),
        )
        for bits in (0, 0o600, 0o300)
    ),
    *(
        Mistake(
            f"{file} unreadable",
            TOKENIZE,
            ("teacher", f"{file} cannot be read", "Check its permissions"),
            mode(f"teacher/{file}", 0),
        )
        for file in ("tokenizer.json", "tokenizer_config.json")
    ),
    *(
        Mistake(f"output {name}", TOKENIZE + f"-o {output}", (*message, "ls -ld sub\n"), folder_with("sub", bits=bits))
        for name, output, bits, message in (
            ("in an unwritable folder", "sub/x", 0o500, ("sub", "nothing can be written", "denied")),
            ("in an unsearchable folder", "sub/x", 0, ("sub/x: Permission denied",)),
            ("deep in an unwritable folder", "sub/a/b/x", 0o500, ("sub: nothing can be written here",)),
        )
    ),
    Mistake(
        "existing output unlistable",
        TOKENIZE + "--force -o sub",
        ("sub: Permission denied", "ls -ld sub\n"),
        folder_with("sub", ("manifest.json", "shard-00000.npy"), bits=0),
    ),
    Mistake("current folder unwritable", TOKENIZE, (".: nothing can be written",), mode(".", 0o500)),
]


@pytest.fixture
def without_tokens(workplace: Path) -> None:
    """The current folder without a token store."""
    shutil.rmtree(workplace / "tokens")


@pytest.mark.parametrize(
    "mistake",
    [*MISTAKES_IN_OPTIONS, *MISTAKES_IN_INPUTS, *MISTAKES_IN_TOKENIZERS, *MISTAKES_IN_OUTPUTS],
    ids=str,
)
@pytest.mark.usefixtures("without_tokens")
def test_a_mistake_is_reported_and_changes_no_file(mistake: Mistake, minilm: Minilm) -> None:
    check_mistake(mistake, minilm)


@pytest.mark.parametrize("mistake", MISTAKES_WITH_AN_OUTPUT, ids=str)
@pytest.mark.usefixtures("workplace")
def test_an_existing_output_is_kept_after_a_mistake(mistake: Mistake, minilm: Minilm) -> None:
    check_mistake(mistake, minilm)


@pytest.mark.parametrize("mistake", MISSING_PERMISSIONS, ids=str)
@pytest.mark.usefixtures("without_tokens", "ordinary_user")
def test_a_missing_permission_is_reported(mistake: Mistake, minilm: Minilm) -> None:
    check_mistake(mistake, minilm)
