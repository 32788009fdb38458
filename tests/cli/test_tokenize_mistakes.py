"""Messages of `minilm tokenize` for mistakes of the user."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from pathlib import Path

import pytest

from .conftest import Minilm
from .mistakes import (
    Mistake,
    Preparation,
    all_of,
    edit,
    flip,
    folder,
    halve,
    is_told,
    link,
    mode,
    pipe,
    remove,
    write,
)

REST = " --tokenizer teacher --workers 1 "
TOKENIZE = "tokenize corpus.txt" + REST


def half_a_gzip(name: str) -> Preparation:
    """The first half of a gzip file."""
    return all_of(lambda: Path(name).write_bytes(gzip.compress(Path("corpus.txt").read_bytes())), halve(name))


def zeros(name: str) -> Preparation:
    """A sparse file with a line of 32 MiB."""
    return all_of(write(name, ""), lambda: os.truncate(name, 2**25))


MISTAKES = [
    Mistake("no input", "tokenize", ("INPUT",)),
    Mistake("missing file", "tokenize nowhere.txt --tokenizer teacher", ("nowhere.txt", "no such file")),
    Mistake(
        "second file missing", "tokenize corpus.txt nowhere.txt --tokenizer teacher", ("nowhere.txt", "no such file")
    ),
    Mistake(
        "revision of a folder", TOKENIZE + "--revision v2", ("teacher: ", "no revision v2", "Leave out --revision")
    ),
    Mistake("folder as input", "tokenize teacher --tokenizer teacher", ("teacher", "folder", "text file")),
    Mistake(
        "unreadable file", "tokenize loop.txt --tokenizer teacher", ("loop.txt", "read"), link("loop.txt", "loop.txt")
    ),
    Mistake("empty file", "tokenize empty.txt --tokenizer teacher", ("empty.txt", "no text"), write("empty.txt", "")),
    Mistake(
        "blank lines only",
        "tokenize blank.txt --tokenizer teacher",
        ("blank.txt", "no text", "3 are blank"),
        write("blank.txt", "\n  \n\t\n"),
    ),
    Mistake(
        "every line dropped",
        TOKENIZE + "--overflow drop --max-length 3",
        ("corpus.txt", "dropped as too long"),
        write("corpus.txt", "too long for three tokens\n" * 3),
    ),
    Mistake(
        "not UTF-8",
        "tokenize latin.txt --tokenizer teacher",
        ("latin.txt, line 3", "0xe9", "not UTF-8", "--errors replace", "iconv"),
        write("latin.txt", "one\ntwo\ncafé\n".encode("latin-1")),
    ),
    Mistake(
        "second file not UTF-8",
        "tokenize corpus.txt latin.txt --tokenizer teacher --batch-size 7",
        ("latin.txt, line 3", "not UTF-8"),
        write("latin.txt", "one\ntwo\ncafé\n".encode("latin-1")),
    ),
    Mistake(
        "jsonl line not JSON",
        "tokenize bad.jsonl --tokenizer teacher",
        ("bad.jsonl, line 2", "cannot be read as JSON"),
        write("bad.jsonl", '{"text": "a"}\n{"text": \n'),
    ),
    Mistake(
        "jsonl line without the field",
        "tokenize bad.jsonl --tokenizer teacher",
        ("bad.jsonl, line 1", "'text'", "--text-field"),
        write("bad.jsonl", '{"body": "a"}\n'),
    ),
    Mistake(
        "jsonl field that is a number",
        "tokenize bad.jsonl --tokenizer teacher --text-field body",
        ("bad.jsonl, line 2", "'body'"),
        write("bad.jsonl", '{"body": "a"}\n{"body": 3}\n'),
    ),
    Mistake(
        "jsonl line that is a list",
        "tokenize bad.jsonl --tokenizer teacher",
        ("bad.jsonl, line 1", "JSON object"),
        write("bad.jsonl", "[1, 2]\n"),
    ),
    Mistake(
        "damaged gzip",
        "tokenize bad.txt.gz --tokenizer teacher",
        ("bad.txt.gz", "damaged"),
        write("bad.txt.gz", gzip.compress(b"some text\n" * 100)[:-6] + bytes(6)),
    ),
    Mistake(
        "gzip cut short",
        "tokenize short.txt.gz --tokenizer teacher",
        ("short.txt.gz", "cut short"),
        half_a_gzip("short.txt.gz"),
    ),
    Mistake(
        "text that is called gz",
        "tokenize plain.txt.gz --tokenizer teacher",
        ("plain.txt.gz", "damaged"),
        write("plain.txt.gz", "not compressed\n"),
    ),
    Mistake(
        "a table",
        "tokenize table.csv --tokenizer teacher",
        ("table.csv", "no column 'text'; its columns are 'a', 'b'", "--text-field"),
        write("table.csv", "a,b\n1,2\n"),
    ),
    Mistake("unknown option", TOKENIZE + "--tokeniser teacher", ("--tokeniser", "--tokenizer")),
    Mistake("max length of zero", TOKENIZE + "--max-length 0", ("--max-length: ", "greater than or equal to 2", "0")),
    Mistake("max length that is a word", TOKENIZE + "--max-length long", ("--max-length", "integer")),
    Mistake("no room for text", TOKENIZE + "--max-length 2", ("--max-length 2", "special tokens")),
    Mistake("unknown overflow", TOKENIZE + "--overflow wrap", ("overflow", "split", "truncate", "drop", "wrap")),
    Mistake("unknown errors", TOKENIZE + "--errors ignore", ("errors", "strict", "replace", "ignore")),
    Mistake("no workers", TOKENIZE + "--workers 0", ("workers", "greater than 0")),
    Mistake("batches of nothing", TOKENIZE + "--batch-size 0", ("--batch-size: ", "greater than 0")),
    Mistake(
        "tokenizer folder missing",
        "tokenize corpus.txt --tokenizer ./nowhere",
        ("./nowhere", "no such tokenizer folder"),
    ),
    Mistake(
        "tokenizer that is not available",
        "tokenize corpus.txt --tokenizer nobody/nothing",
        ("nobody/nothing", "tokenizer cannot be loaded", "HF_HUB_OFFLINE"),
    ),
    Mistake("tokenizer is a file", "tokenize corpus.txt --tokenizer corpus.txt", ("corpus.txt", "tokenizer")),
    Mistake(
        "folder without a tokenizer",
        "tokenize corpus.txt --tokenizer empty",
        ("empty", "tokenizer cannot be loaded", "save_pretrained"),
        folder("empty"),
    ),
    Mistake(
        "tokenizer not JSON",
        "tokenize corpus.txt --tokenizer teacher",
        ("teacher", "tokenizer cannot be loaded"),
        write("teacher/tokenizer.json", "{"),
    ),
    Mistake(
        "tokenizer without vocabulary",
        "tokenize corpus.txt --tokenizer teacher",
        ("teacher", "tokenizer"),
        remove("teacher/tokenizer.json"),
    ),
    Mistake("output exists", TOKENIZE, ("tokens", "exists already", "--force", "--output")),
    Mistake(
        "output file exists",
        TOKENIZE + "-o ids.jsonl.gz",
        ("ids.jsonl.gz", "exists already", "--force"),
        write("ids.jsonl.gz", "mine"),
    ),
    Mistake(
        "what exists is kept if the new one fails",
        "tokenize latin.txt --tokenizer teacher --force",
        ("latin.txt, line 3",),
        write("latin.txt", "one\ntwo\ncafé\n".encode("latin-1")),
    ),
    Mistake("output below a file", TOKENIZE + "-o corpus.txt/tokens", ("corpus.txt",)),
    Mistake("unknown command", "tokenise corpus.txt", ("tokenise", "tokenize")),
]


MISTAKES_IN_NUMBERS = [
    Mistake("max length beyond counting", TOKENIZE + f"--max-length {10**30}", ("--max-length: ", "less than")),
    Mistake("max length of 5000 digits", TOKENIZE + f"--max-length {'9' * 5000}", ("--max-length", "maximum size")),
    Mistake("max length below zero", TOKENIZE + "--max-length -5", ("--max-length: ", "-5")),
    Mistake("max length with a fraction", TOKENIZE + "--max-length 12.5", ("--max-length", "integer")),
    Mistake("workers below zero", TOKENIZE.replace("--workers 1", "--workers -1"), ("workers", "-1")),
    Mistake(
        "workers beyond counting", TOKENIZE.replace("--workers 1", f"--workers {10**30}"), ("workers", "less than")
    ),
    Mistake("batches beyond counting", TOKENIZE + f"--batch-size {2**63}", ("--batch-size: ", "less than")),
    Mistake("batches below zero", TOKENIZE + "--batch-size -1", ("--batch-size: ", "-1")),
]

MISTAKES_IN_FILES = [
    Mistake(
        "pipe",
        "tokenize pipe.txt" + REST,
        ("pipe.txt", "a pipe or a device, not a file", "minilm tokenize - < pipe.txt"),
        pipe("pipe.txt"),
    ),
    Mistake("pipe of gzip", "tokenize pipe.txt.gz" + REST, ("pipe.txt.gz", "a pipe"), pipe("pipe.txt.gz")),
    Mistake("device", "tokenize /dev/null" + REST, ("/dev/null", "a pipe or a device")),
    Mistake("endless device", "tokenize /dev/zero" + REST, ("/dev/zero", "a pipe or a device")),
    Mistake("link to a device", "tokenize l.txt" + REST, ("l.txt", "a device"), link("l.txt", "/dev/zero")),
    Mistake("link to a folder", "tokenize l.txt" + REST, ("l.txt", "folder"), link("l.txt", "teacher")),
    Mistake("link to nothing", "tokenize l.txt" + REST, ("l.txt", "no such file"), link("l.txt", "nowhere")),
    Mistake("file below a file", "tokenize corpus.txt/more.txt" + REST, ("corpus.txt/more.txt", "Not a directory")),
    Mistake("file without a name", "tokenize ''" + REST, ("folder",)),
    Mistake("long name", f"tokenize {'x' * 300}.txt" + REST, ("cannot be read", "name too long")),
    Mistake("long path", f"tokenize {'x/' * 5000}y.txt" + REST, ("cannot be read", "name too long")),
    Mistake("name in two lines", "tokenize 'a\nb.txt'" + REST, ("a\nb.txt: there is no such file",)),
    Mistake("name in Japanese", "tokenize 日本語.txt" + REST, ("日本語.txt: there is no such file",)),
    Mistake("name with markup", "tokenize '[bold]x[/].txt'" + REST, ("[bold]x[/].txt: no file matches this pattern",)),
    Mistake("name with a null", "tokenize 'a\0b.txt'" + REST, ("Error: INPUT: must have no null",)),
    Mistake("empty gzip", "tokenize e.txt.gz" + REST, ("e.txt.gz", "damaged"), write("e.txt.gz", "")),
    Mistake("gzip of nothing", "tokenize e.txt.gz" + REST, ("no text",), write("e.txt.gz", gzip.compress(b""))),
    Mistake("gzip of a byte", "tokenize e.txt.gz" + REST, ("e.txt.gz", "damaged"), write("e.txt.gz", b"\x1f")),
    Mistake(
        "gzip with rubbish after it",
        "tokenize e.txt.gz" + REST,
        ("e.txt.gz", "damaged"),
        write("e.txt.gz", gzip.compress(b"the of and\n") + b"rubbish"),
    ),
    Mistake(
        "gzip with a wrong checksum",
        "tokenize e.txt.gz" + REST,
        ("e.txt.gz", "damaged"),
        all_of(write("e.txt.gz", gzip.compress(b"the of and\n")), flip("e.txt.gz")),
    ),
    *(
        Mistake(
            f"gzip that is called txt{with_option}",
            f"tokenize e.txt{with_option}" + REST,
            ("e.txt", "compressed with gzip", "ends in .gz"),
            write("e.txt", gzip.compress(b"the of and\n")),
        )
        for with_option in ("", " --errors replace")
    ),
    *(
        Mistake(
            f"text in {order}{with_option}",
            f"tokenize e.txt{with_option}" + REST,
            ("e.txt", "UTF-16", "iconv -f utf-16"),
            write("e.txt", "\ufeffthe of and\n".encode(order)),
        )
        for order in ("utf-16-le", "utf-16-be")
        for with_option in ("", " --errors replace")
    ),
    Mistake("zero bytes", "tokenize e.txt" + REST, ("e.txt", "no text"), write("e.txt", bytes(100))),
    Mistake("byte-order mark alone", "tokenize e.txt" + REST, ("e.txt", "no text"), write("e.txt", b"\xef\xbb\xbf")),
    Mistake("surrogate", "tokenize e.txt" + REST, ("e.txt, line 1", "0xed"), write("e.txt", b"\xed\xa0\x80\n")),
    Mistake("overlong byte", "tokenize e.txt" + REST, ("e.txt, line 2", "0xc0"), write("e.txt", b"a\n\xc0\xaf\n")),
    Mistake("weights", "tokenize teacher/model.safetensors" + REST, ("model.safetensors, line 1", "not UTF-8")),
    Mistake("shard", "tokenize tokens/shard-00000.npy -o new" + REST, (".npy files are not supported",)),
    Mistake(
        "archive",
        "tokenize e.tar.gz" + REST,
        (".tar.gz files are not supported", "JSON lines (.jsonl) or CSV"),
        write("e.tar.gz", gzip.compress(b"x")),
    ),
    Mistake("table in capitals", "tokenize E.TSV" + REST, (".tsv files are not supported",), write("E.TSV", "a\tb\n")),
    Mistake("line of zero bytes", "tokenize e.txt" + REST, ("e.txt", "no text"), zeros("e.txt")),
    Mistake(
        "far in a long line",
        "tokenize e.txt.gz" + REST,
        ("e.txt.gz, line 2", "byte 3145729 of the line", "0xff"),
        write("e.txt.gz", gzip.compress(b"the\n" + bytes(3 * 2**20) + b"\xff", 1)),
    ),
    Mistake("pattern without a file", "tokenize 'nothing-*.txt'" + REST, ("nothing-*.txt", "no file matches")),
    Mistake("pattern of folders", "tokenize 'teach*'" + REST, ("teach*", "no file matches")),
    Mistake("standard input twice", "tokenize - -" + REST, ("standard input", "only once")),
    *(
        Mistake(f"{name} of gzip", f"tokenize {name}" + REST, (name, "damaged, or not compressed"), write(name, packed))
        for packed in [gzip.compress(b"the of and\n")]
        for name in ("e.txt.bz2", "e.txt.xz", "e.txt.zst")
    ),
    *(
        Mistake(f"{name} cut short", f"tokenize {name}" + REST, (f"{name}, line", "cut short"), write(name, packed))
        for name, packed in (
            ("e.txt.bz2", bz2.compress(b"the of and\n" * 999)[:-9]),
            ("e.txt.xz", lzma.compress(b"the of and\n" * 999)[:-9]),
        )
    ),
    Mistake(
        "table without the column",
        "tokenize e.csv" + REST,
        ("e.csv", "no column 'text'", "'id', 'body'", "--text-field"),
        write("e.csv", "id,body\n1,the\n"),
    ),
    Mistake(
        "table with a value too many",
        "tokenize e.csv" + REST,
        ("e.csv, line 3", "header has 2 values", "row has 3", "quotation marks"),
        write("e.csv", "id,text\n1,the\n2,of,and\n"),
    ),
    Mistake(
        "table with an open quotation mark",
        "tokenize e.csv.gz" + REST,
        ("e.csv.gz", "this is not CSV"),
        write("e.csv.gz", gzip.compress(b'id,text\n1,the\n2,"of\n')),
    ),
    Mistake(
        "table of semicolons",
        "tokenize e.csv" + REST,
        ("e.csv", "no column 'text'", "only commas"),
        write("e.csv", "id;text\n1;the\n"),
    ),
    Mistake("language without sentences", TOKENIZE + "--language de", ("--language", "--split-sentences")),
    Mistake("store called a file", TOKENIZE + "-o new.jsonl", ("new.jsonl", "mistaken for a file", ".jsonl.gz")),
    Mistake(
        "complete store continued",
        TOKENIZE + "-o done --continue",
        ("done", "this store is complete", "add --force"),
        all_of(folder("done"), write("done/manifest.json", "{}")),
    ),
    Mistake(
        "input of a pattern replaced",
        "tokenize 'do*/more.txt' -o done --force" + REST,
        ("done", "would replace done/more.txt"),
        all_of(
            folder("done"), *(write(f"done/{name}", "") for name in ("manifest.json", "shard-00000.npy", "more.txt"))
        ),
    ),
    Mistake("text called Parquet", "tokenize e.parquet" + REST, ("e.parquet", "damaged"), write("e.parquet", "the\n")),
    Mistake("empty Parquet", "tokenize e.parquet" + REST, ("e.parquet", "damaged"), write("e.parquet", "")),
    Mistake(
        "data set without a name", "tokenize hf://datasets/" + REST, ("hf://datasets/", "not the name of a data set")
    ),
    Mistake("model of the Hub", "tokenize hf://models/a" + REST, ("hf://models/a", "not the name of a data set")),
    Mistake("data set that is not there", "tokenize hf://datasets/nobody/nothing" + REST, ("cannot be loaded", "Hub")),
    Mistake("language that is none", TOKENIZE + "--split-sentences --language ''", ("language",)),
    Mistake("language in words", TOKENIZE + "--split-sentences --language English", ("language", "English")),
    Mistake(
        "lists continued", TOKENIZE + "-o new.jsonl.gz --continue", ("--continue", "token-id lists", "Start again")
    ),
    Mistake("no room when packing", TOKENIZE + "--pack --max-length 2", ("--max-length 2", "special tokens")),
    *(
        Mistake(
            f"JSON line that is {what}", "tokenize e.jsonl" + REST, ("e.jsonl, line 1", said), write("e.jsonl", line)
        )
        for what, line, said in (
            ("null", "null\n", "'text'"),
            ("an empty object", "{}\n", "'text'"),
            ("not a number", '{"text": NaN}\n', "'text'"),
            ("a list of texts", '{"text": ["a"]}\n', "'text'"),
            ("nested deeply", "[" * 100_000 + "\n", "cannot be read as JSON"),
            ("the first of a long list", '[\n{"text": "a"}\n]\n', "cannot be read as JSON"),
            ("of a number of 5000 digits", f'{{"text": "a", "n": {"9" * 5000}}}\n', "cannot be read as JSON"),
        )
    ),
    Mistake(
        "JSON line with a field without a name",
        "tokenize e.jsonl --text-field ''" + REST,
        ("--text-field: ", "at least 1 character"),
        write("e.jsonl", '{"text": "a"}\n'),
    ),
    Mistake(
        "JSON lines in capitals",
        "tokenize E.JSONL" + REST,
        ("E.JSONL, line 1", "'text'"),
        write("E.JSONL", '{"body": "a"}\n'),
    ),
]

MISTAKES_IN_TOKENIZERS = [
    *(
        Mistake(f"tokenizer {what}", f"tokenize corpus.txt -o new --tokenizer {name}", said)
        for what, name, said in (
            ("without a name", "''", ("tokenizer", "''")),
            ("of a space", "' '", ("tokenizer cannot be loaded", "Hub")),
            ("of two lines", "'a\nb'", ("tokenizer cannot be loaded", "Hub")),
            ("of two dots", "a..b", ("a..b", "tokenizer cannot be loaded")),
            ("in Japanese", "日本/語", ("日本/語", "tokenizer cannot be loaded")),
            ("of a long name", "x" * 5000, ("the tokenizer folder cannot be read", "name too long")),
            ("of an address", "https://huggingface.co/a/b", ("no such tokenizer folder",)),
            ("of its file", "teacher/tokenizer.json", ("teacher/tokenizer.json", "no such tokenizer folder")),
            ("of this folder", ".", (".: there is no tokenizer here",)),
            ("of a device", "/dev/null", ("/dev/null", "no such tokenizer folder")),
        )
    ),
    *(
        Mistake(
            f"tokenizer that is {what}",
            "tokenize corpus.txt -o new --tokenizer ./odd",
            ("./odd: there is no such tokenizer folder",),
            prepare,
        )
        for what, prepare in (
            ("a pipe", pipe("odd")),
            ("a link to nothing", link("odd", "nowhere")),
            ("a link to itself", link("odd", "odd")),
        )
    ),
    *(
        Mistake(f"tokenizer file that is {what}", TOKENIZE, ("teacher: the tokenizer cannot be loaded", said), prepare)
        for what, said, prepare in (
            ("empty", "tokenizer.json", write("teacher/tokenizer.json", "")),
            ("an empty object", "'added_tokens' is missing", write("teacher/tokenizer.json", "{}")),
            ("a list", "tokenizer.json", write("teacher/tokenizer.json", "[]")),
            ("all bytes", "utf-8", write("teacher/tokenizer.json", bytes(range(256)))),
            ("a config that is a list", "'get'", write("teacher/tokenizer_config.json", "[]")),
            ("a config of a class that is a number", "", edit("teacher/tokenizer_config.json", tokenizer_class=3)),
            ("a model's config that is a list", "mapping", write("teacher/config.json", "[]")),
        )
    ),
    *(
        Mistake(f"tokenizer file as {what}", TOKENIZE, ("teacher: there is no tokenizer here",), prepare)
        for what, prepare in (
            ("a folder", folder("teacher/tokenizer.json")),
            ("a pipe", pipe("teacher/tokenizer.json")),
            ("a link to nothing", link("teacher/tokenizer.json", "nowhere")),
        )
    ),
]

MISTAKES_IN_OUTPUTS = [
    Mistake("output of a long name", TOKENIZE + f"-o {'x' * 300}", ("name too long", "a shorter name")),
    Mistake("output of a name too long to be built", TOKENIZE + f"-o {'x' * 250}", ("too long", "a shorter name")),
    Mistake("output in place of a pipe", TOKENIZE + "--force -o p", ("p: ", "a pipe"), pipe("p")),
    *(
        Mistake(f"output {what} exists", TOKENIZE + f"-o {name}", ("this output exists already",), prepare)
        for what, name, prepare in (
            ("that is a link to nothing", "l", link("l", "nowhere")),
            ("that is a link to itself", "l", link("l", "l")),
            ("that is a pipe", "p", pipe("p")),
        )
    ),
    Mistake("output that is this folder", TOKENIZE + "--force -o .", ("a name of its own", "--output")),
    Mistake("output that has no name", TOKENIZE + "-o ''", ("a name of its own", "--output")),
    Mistake("output that is the folder above", TOKENIZE + "--force -o ..", ("..: ", "a name of its own", "--output")),
    Mistake("maximum length beyond reason", TOKENIZE + "--max-length 9999999", ("--max-length: ", "2097152")),
    Mistake("field of text that has none", TOKENIZE + "--text-field body", ("--text-field", "none of the inputs")),
    Mistake("output below a link to nothing", TOKENIZE + "-o l/x", ("l/x", "below a file"), link("l", "nowhere")),
    Mistake("output below a link to itself", TOKENIZE + "-o l/x", ("l/x", "below a file"), link("l", "l")),
    Mistake("output of ids that exists as a folder", TOKENIZE + "-o x.jsonl.gz", ("exists",), folder("x.jsonl.gz")),
    *(
        Mistake(
            f"output in place of {what}",
            TOKENIZE + f"--force -o {name}",
            (f"{name}: this is a {there}", "--force does not replace it", "--output"),
            prepare,
        )
        for what, name, there, prepare in (
            ("a file", "notes.txt", "file", write("notes.txt", "mine")),
            ("a file of ids that is to be a folder", "ids.txt", "file", write("ids.txt", "[1]\n")),
            ("a folder that is to be a file", "ids.jsonl.gz", "folder", folder("ids.jsonl.gz")),
        )
    ),
    Mistake("output with a null", TOKENIZE + "-o 'a\0b'", ("null",)),
    Mistake(
        "output in place of the input",
        TOKENIZE + "--force -o corpus.txt",
        ("this output would replace corpus.txt", "--output"),
    ),
    Mistake(
        "output in place of a link to the input",
        "tokenize l.txt --tokenizer teacher --force -o corpus.txt",
        ("this output would replace l.txt", "--output"),
        link("l.txt", "corpus.txt"),
    ),
    Mistake(
        "output in place of the input's folder that exists",
        "tokenize tokens/more.txt --tokenizer teacher --force",
        ("this output would replace tokens/more.txt",),
        write("tokens/more.txt", "the of and\n"),
    ),
]

MISTAKES_IN_RIGHTS = [
    Mistake("text without permission to read", TOKENIZE, ("corpus.txt", "denied"), mode("corpus.txt", 0)),
    Mistake(
        "text in a folder without permission to search",
        "tokenize sub/a.txt" + REST,
        ("sub/a.txt", "denied"),
        all_of(folder("sub"), write("sub/a.txt", "the"), mode("sub", 0)),
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
            f"{file} without permission to read",
            TOKENIZE,
            ("teacher", f"{file} cannot be read", "Check its permissions"),
            mode(f"teacher/{file}", 0),
        )
        for file in ("tokenizer.json", "tokenizer_config.json")
    ),
    Mistake(
        "output in a folder without permission to write",
        TOKENIZE + "-o sub/x",
        ("sub", "nothing can be written", "denied", "ls -ld sub\n"),
        all_of(folder("sub"), mode("sub", 0o500)),
    ),
    Mistake(
        "output in a folder without permission to search",
        TOKENIZE + "-o sub/x",
        ("sub/x: Permission denied", "ls -ld sub\n"),
        all_of(folder("sub"), mode("sub", 0)),
    ),
    Mistake(
        "output below a folder without permission to write",
        TOKENIZE + "-o sub/a/b/x",
        ("sub: nothing can be written here", "ls -ld sub\n"),
        all_of(folder("sub"), mode("sub", 0o500)),
    ),
    Mistake(
        "output that exists without permission to list",
        TOKENIZE + "--force",
        ("tokens: Permission denied", "ls -ld tokens\n"),
        mode("tokens", 0),
    ),
    Mistake(
        "current folder without permission to write",
        TOKENIZE + "-o new",
        (".: nothing can be written",),
        mode(".", 0o500),
    ),
]


@pytest.fixture
def place(workplace: Path, request: pytest.FixtureRequest) -> Path:
    """The current folder; without tokens, unless the mistake is about what exists."""
    name = request.getfixturevalue("mistake").name
    if "exists" not in name and "kept" not in name and "shard" not in name:
        for file in (workplace / "tokens").iterdir():
            file.unlink()
        (workplace / "tokens").rmdir()
    return workplace


@pytest.mark.parametrize(
    "mistake",
    [*MISTAKES, *MISTAKES_IN_NUMBERS, *MISTAKES_IN_FILES, *MISTAKES_IN_TOKENIZERS, *MISTAKES_IN_OUTPUTS],
    ids=str,
)
@pytest.mark.usefixtures("place")
def test_a_mistake_is_reported_and_leaves_nothing_behind(mistake: Mistake, minilm: Minilm) -> None:
    is_told(mistake, minilm)


@pytest.mark.parametrize("mistake", MISTAKES_IN_RIGHTS, ids=str)
@pytest.mark.usefixtures("place", "ordinary_user")
def test_missing_permissions_are_reported(mistake: Mistake, minilm: Minilm) -> None:
    is_told(mistake, minilm)
