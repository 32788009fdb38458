from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minilm_cli.evaluate.reading import read_task, read_tasks
from minilm_cli.evaluate.task import LabelledTask
from minilm_cli.settings.evaluate import LabelledData

from .text_inputs import COMPRESSIONS, put, refused

SUBJECTS = ("A man", "The old dog", "Our neighbour", "Nobody here", "Some child")
ENDS = ("runs fast.", 'said "no".', "likes naïve art.", "is, well, late.", "lost it")
TEXTS = [f"{subject} {end}" for subject in SUBJECTS for end in ENDS]
OTHERS = [f"{text} They say so." for text in reversed(TEXTS)]
CLASSES = ["ham", "spam", "ham", "ham", "spam"] * 5
IDS = [str(number) for number in range(25)]
SCORES = [f"{number / 4:.2f}" for number in range(25)]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages name files as they were given: here, without a folder."""
    monkeypatch.chdir(tmp_path)


def tsv(name: str, *columns: list[str], header: str = "") -> str:
    """Write a file of these columns; returns its name."""
    lines = [header.split()] * bool(header) + [list(row) for row in zip(*columns, strict=True)]
    return put(name, "".join("\t".join(line) + "\n" for line in lines).encode())


def read(name: str, *, training: bool = False, **options: Any) -> LabelledTask:
    task = read_task(name, LabelledData(**options), training=training)
    assert isinstance(task, LabelledTask)
    return task


def as_csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_tsv(rows: list[dict[str, str]]) -> bytes:
    return "".join("\t".join(row) + "\n" for row in [list(rows[0]), *(row.values() for row in rows)]).encode()


def as_json(rows: list[dict[str, str]]) -> bytes:
    return "\n\n".join(json.dumps(row) for row in rows).encode()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(("suffix", "write"), [(".csv", as_csv), (".TSV", as_tsv), (".jsonl", as_json)])
def test_forms_of_a_file_give_the_same_task(
    suffix: str, write: Callable[[list[dict[str, str]]], bytes], compression: str
) -> None:
    rows = [{"class": name, "sentence": text} for name, text in zip(CLASSES, TEXTS, strict=True)]
    name = put(f"mail{suffix}{compression}", COMPRESSIONS[compression](b"\xef\xbb\xbf" + write(rows)))
    task = read(name)
    assert (task.name, task.kind, task.classes) == ("mail", "classification", ("ham", "spam"))
    assert (task.scored, task.metrics) == ("test", ("accuracy", "f1"))
    split = task.splits["test"]
    assert (list(split.texts), split.pairs) == (TEXTS, None)
    assert list(split.labels) == [float(name == "spam") for name in CLASSES]
    assert task.found == (
        f"{name}: text in column sentence, class in column class (ham, spam; F1 is that of spam); 25 test rows"
    )


def test_values_that_are_no_strings_in_json() -> None:
    rows: list[dict[str, Any]] = [{"text": text, "label": number % 2 == 1} for number, text in enumerate(TEXTS)]
    rows[0] = {"label": False, "tags": ["a"], "text": None}
    rows[1]["text"] = "\ud800."
    task = read(put("mail.jsonl", as_json(rows)))
    assert task.classes == ("false", "true")
    assert task.splits["test"].texts[:2] == ["", "?."]
    with refused("'tags' is a list or an object here", "mail.jsonl, line 1"):
        read("mail.jsonl", text="tags")


@pytest.mark.parametrize(
    ("columns", "header", "expected"),
    [
        ((CLASSES, TEXTS), "", "text in column 2, class in column 1 (ham, spam; F1 is that of spam), no header"),
        ((TEXTS, CLASSES), "v1 v2", "text in column v1, class in column v2 (ham, spam; F1 is that of spam)"),
        (
            (["x"] * 25, CLASSES, TEXTS),
            "",
            "text in column 3, class in column 2 (ham, spam; F1 is that of spam), no header",
        ),
        ((IDS, SCORES, TEXTS), "", "text in column 3, score in column 2 (0 to 6), no header"),
        (
            (TEXTS, [f"kind {number % 10}" for number in range(25)]),
            "text v2",
            "text in column text, class in column v2 (10 classes)",
        ),
        ((SCORES, TEXTS), "", "text in column 2, score in column 1 (0 to 6), no header"),
        ((SCORES, TEXTS), "v1 v2", "text in column v2, score in column v1 (0 to 6)"),
        ((TEXTS, OTHERS, SCORES), "", "texts in columns 1 and 2, score in column 3 (0 to 6), no header"),
    ],
)
def test_columns_are_found_by_content(columns: tuple[list[str], ...], header: str, expected: str) -> None:
    assert read(tsv("data.tsv", *columns, header=header)).found == f"data.tsv: {expected}; 25 test rows"


@pytest.mark.parametrize(
    ("header", "text", "pair", "label"),
    [
        ("sentence1 sentence2 label extra", "sentence1", "sentence2", "label"),
        ("text extra score score2", "text", None, "score"),
        ("#1_String #2_String Quality extra", "#1_String", "#2_String", "Quality"),
        ("premise hypothesis gold_label label1", "premise", "hypothesis", "gold_label"),
        ("question1 question2 is_duplicate id", "question1", "question2", "is_duplicate"),
        ("text_a text_b category label", "text_a", "text_b", "label"),
        ("Question Sentence Label index", "Question", "Sentence", "Label"),
        ("review text stars id", "text", None, "stars"),
    ],
)
def test_columns_are_found_by_usual_names(header: str, text: str, pair: str | None, label: str) -> None:
    name = tsv("data.tsv", *(TEXTS, OTHERS, CLASSES, CLASSES), header=header)
    values = dict(zip(header.split(), (TEXTS, OTHERS, CLASSES, CLASSES), strict=True))
    task = read(name)
    split = task.splits["test"]
    assert split.texts == values[text]
    assert split.pairs == (values[pair] if pair else None)
    assert f"in column {label} " in task.found


def test_columns_are_given_by_name_or_number() -> None:
    tsv("names.tsv", TEXTS, OTHERS, CLASSES, SCORES, header="label text foo bar")
    tsv("none.tsv", TEXTS, OTHERS, CLASSES, SCORES)
    for options in ({"text": "label", "label": "foo"}, {"text": "1", "label": "3"}):
        task = read("names.tsv", **options)
        assert (task.splits["test"].texts, task.splits["test"].pairs, task.kind) == (TEXTS, None, "classification")
    for name in ("names.tsv", "none.tsv"):
        task = read(name, text="2", pair="1", label="4")
        assert (task.splits["test"].texts, task.splits["test"].pairs, task.kind) == (OTHERS, TEXTS, "similarity")


def test_usual_names_come_before_content() -> None:
    with refused("these labels cannot be classes: 25 rows have 25 different ones", "data.tsv"):
        read(tsv("data.tsv", CLASSES, TEXTS, header="text label"))


def test_class_with_a_usual_name_is_no_header() -> None:
    classes = ["question", "comment", "question", "comment", "comment"] * 5
    task = read(tsv("data.tsv", classes, TEXTS))
    assert (len(task.splits["test"]), task.classes) == (25, ("comment", "question"))


def test_pair_with_unusual_names_needs_the_kind() -> None:
    tsv("data.tsv", TEXTS, OTHERS, SCORES, header="title body_text mark")
    with refused("several columns could be the text: title, body_text", "data.tsv", "--text-pair. The columns, with"):
        read("data.tsv")
    assert read("data.tsv", kind="similarity").splits["test"].pairs == OTHERS


def test_columns_without_name_are_empty_in_many_tables() -> None:
    rows = "".join(f"{label},{text.replace(',', '')},,\r\n" for label, text in zip(CLASSES, TEXTS, strict=True))
    task = read(put("mail.csv", f"v1,v2,,\r\n{rows},,,\r\nham,Look out,look up,\r\n".encode()))
    assert task.found.startswith("mail.csv: text in column v2, class in column v1 (ham, spam")
    assert len(task.splits["test"]) == 26  # without the row that is empty


@pytest.mark.parametrize(
    ("label", "values", "kind"),
    [
        ("label", ["0", "1", "2", "1", "0"] * 5, "classification"),
        ("label", ["0.0", "1.0", "1.0", "1.0", "0.0"] * 5, "classification"),
        ("label", ["0", "0.5", "1", "1", "0"] * 5, "regression"),
        ("score", ["0", "1", "2", "1", "0"] * 5, "regression"),
        ("stars", ["5", "1", "2", "1", "0"] * 5, "classification"),
        ("stars", [str(number) for number in range(100)], "regression"),
        ("label", [str(number) for number in range(50)] * 2, "classification"),
        ("stars", ["5", "n/a", "2", "1", "0"] * 5, "classification"),
        ("label", ["nan", "inf", "nan", "inf", "nan"] * 5, "classification"),
    ],
)
def test_kind_is_found_from_the_labels(label: str, values: list[str], kind: str) -> None:
    texts = (TEXTS * 4)[: len(values)]
    assert read(tsv("one.tsv", texts, values, header=f"text {label}")).kind == kind
    pair_kind = {"classification": "pair-classification", "regression": "similarity"}[kind]
    assert read(tsv("two.tsv", texts, values, texts, header=f"text1 {label} text2")).kind == pair_kind


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "-1", "9", "10"], ("-1", "9", "10")),
        (["1.0", "0.0", "1", "0", "0"], ("0", "1")),
        (["10", "9", "b", "a", "b"], ("10", "9", "a", "b")),
    ],
)
def test_classes_are_sorted(labels: list[str], classes: tuple[str, ...]) -> None:
    task = read(tsv("data.tsv", TEXTS, labels * 5, header="text label"), kind="classification")
    assert task.classes == classes
    assert task.metrics == ("accuracy", "f1" if len(classes) == 2 else "macro-f1")


# --- Splits ------------------------------------------------------------------------------------------------------
def test_missing_splits_are_the_same_rows_every_time() -> None:
    numbers = [f"text {number}" for number in range(40)]
    name = tsv("data.tsv", numbers, ["a", "b"] * 20, header="text label")
    splits = {split: part.texts for split, part in read(name, training=True).splits.items()}
    assert {split: len(texts) for split, texts in splits.items()} == {"train": 28, "dev": 4, "test": 8}
    assert sorted([*splits["train"], *splits["dev"], *splits["test"]]) == sorted(numbers)
    assert splits["dev"] == ["text 9", "text 16", "text 18", "text 28"]


def test_only_missing_splits_are_shared() -> None:
    name = tsv("data.tsv", TEXTS, CLASSES, header="text label")
    put("test.tsv", b"label\ttext\nham\tOne more.\n")
    task = read(name, training=True, test=Path("test.tsv"))
    assert {split: len(part) for split, part in task.splits.items()} == {"train": 23, "dev": 2, "test": 1}
    assert task.found.endswith("23 train, 2 dev and 1 test rows, by seeded shares")
    task = read(name, training=True, test=Path("test.tsv"), dev=Path("test.tsv"))
    assert {split: len(part) for split, part in task.splits.items()} == {"train": 25, "dev": 1, "test": 1}
    assert task.found.endswith("25 train, 1 dev and 1 test rows")


def test_each_class_keeps_a_row_for_training() -> None:
    classes = [f"rare {number}" for number in range(11)] + ["common"] * 14
    task = read(tsv("data.tsv", TEXTS, classes, header="text label"), training=True)
    assert set(task.splits["train"].labels) == set(range(12))


def test_folder_of_splits() -> None:
    put("sets/train.tsv", b"score\tsentence1\tsentence2\n1\tA b\tC d\n4.5\tE f\tG h\n")
    put("sets/validation.tsv", b"sentence1\tscore\tsentence2\nI j\t3\tK l\nU v\t4\tW x\n")
    put("sets/test.tsv", b"sentence1\tsentence2\tscore\nM n\tO p\t2\nQ r\tS t\t3\n")
    task = read("sets", training=True)
    assert (task.name, task.kind) == ("sets", "similarity")
    assert {split: part.labels for split, part in task.splits.items()} == {
        "train": [1, 4.5],
        "dev": [3, 4],
        "test": [2, 3],
    }
    assert read("sets").splits.keys() == {"test"}
    Path("sets/test.tsv").rename("sets/other.tsv")
    assert (read("sets").scored, read("sets").splits.keys()) == ("dev", {"dev"})
    assert read("sets", test=Path("sets/other.tsv")).splits.keys() == {"test"}
    assert read("sets/train.tsv").name == "sets"


def test_several_tasks_have_names_of_their_own() -> None:
    for name in ("a/mail.tsv", "b/mail.tsv", "b/post.tsv"):
        tsv(name, TEXTS, CLASSES, header="text label")
    names = ["a/mail.tsv", "b/mail.tsv", "b/post.tsv"]
    tasks = read_tasks(names, LabelledData(), training=False)
    assert [task.name for task in tasks] == ["a/mail.tsv", "b/mail.tsv", "post"]
    with refused("--test belongs to one task, and there are 2"):
        read_tasks(names[:2], LabelledData(test=Path("b/post.tsv")), training=False)
    with refused("this task is given twice", "a/mail.tsv"):
        read_tasks(names[:1] * 2, LabelledData(), training=False)


# --- Mistakes ----------------------------------------------------------------------------------------------------
LABELLED = "".join(f"{text}\t{label}\n" for text, label in zip(TEXTS, CLASSES, strict=True))

SCORED = "".join(f"{text}\t{score}\n" for text, score in zip(TEXTS, SCORES, strict=True))


@pytest.mark.parametrize(
    ("content", "options", "message", "where", "hint"),
    [
        ("", {}, "this file has no rows", "data.tsv", ""),
        ("text\tlabel\n", {}, "no rows but the header", "data.tsv", ""),
        ("text\tlabel\nA b\tx\textra\n", {}, "the first row has 2 values, and this row has 3", "data.tsv, line 2", ""),
        ("text\tlabel\ttext\nA b\tx\tC d\n", {}, "two columns are named 'text'", "data.tsv, line 1", ""),
        (f"text\tlabel\n{LABELLED}", {"text": "body"}, "there is no column 'body'", "data.tsv", "text ("),
        (f"text\tlabel\n{LABELLED}", {"text": "3"}, "there is no column '3'", "data.tsv", "text ("),
        (f"text\tlabel\n{LABELLED}", {"text": "label", "label": "label"}, "must name different", "data.tsv", ""),
        (f"text\tlabel\n{LABELLED}", {"label": "text"}, "25 rows have 25 different ones", "data.tsv", "--label"),
        (
            f"text\tlabel\n{LABELLED}",
            {"kind": "similarity"},
            "needs two texts, but only one",
            "data.tsv",
            "--text-pair",
        ),
        (
            f"text\tlabel\n{LABELLED}",
            {"kind": "classification", "pair": "1", "text": "2"},
            "--text-pair does not fit",
            "data.tsv",
            "",
        ),
        (f"text\tlabel\n{LABELLED}", {"kind": "regression"}, "'ham' is not a number", "data.tsv, line 2", "--kind"),
        (LABELLED.replace("spam", "ham"), {}, "all rows have the class 'ham'", "data.tsv", "two classes"),
        (LABELLED.replace("spam", "1").replace("ham", "1"), {"kind": "regression"}, "the same score", "data.tsv", ""),
        (f"text\tlabel\n{LABELLED}More text\t\n", {}, "this row has no label", "data.tsv, line 27", "Remove"),
        (LABELLED.replace("spam", "-1").replace("ham", "-1"), {}, "these rows have no labels", "data.tsv", "--test"),
        (
            "".join(f"{text}\t{text}\n" for text in TEXTS),
            {},
            "no column looks like the label",
            "data.tsv",
            "--label. The columns",
        ),
        (LABELLED.replace("\t", ";"), {}, "this file has a single column", "data.tsv", ".tsv tabs"),
        (
            "".join(f"x{n}\t{n % 2}\ty{n}\n" for n in range(20)),
            {},
            "no column looks like the text",
            "data.tsv",
            "--text",
        ),
        (f"text\tscore\n{SCORED}A b\tthree\n", {}, "the score 'three' is not a number", "data.tsv, line 27", "Correct"),
    ],
)
def test_mistakes_are_reported(content: str, options: dict[str, Any], message: str, where: str, hint: str) -> None:
    put("data.tsv", content.encode())
    with refused(message, where, hint):
        read("data.tsv", **options)


def test_mistakes_in_json_are_reported() -> None:
    for content, message, line in (
        (b'{"text": "A", "label": 1}\n[1]\n', "this line is not a JSON object", 2),
        (b'\n{"text": "A", "label": 1\n', "this line cannot be read as JSON", 2),
        (b'{"text": "A", "label": 1}\n{"text": "\xff", "label": 1}\n', "this line is not UTF-8", 2),
    ):
        with refused(message, f"{put('data.jsonl', content)}, line {line}"):
            read("data.jsonl")


def test_bytes_that_are_not_utf_8_are_reported() -> None:
    with refused("this line is not UTF-8", "data.csv, line 3", "iconv"):
        read(put("data.csv", b'text,label\nA b,1\n"C\xe9 d",2\n'))


def test_files_that_do_not_fit_are_reported() -> None:
    name = tsv("data.tsv", TEXTS, CLASSES, header="text label")
    for content, message, where in (
        ("text\tlabel\nA b\teggs\n", "no row for training has the class 'eggs'", "test.tsv, line 2"),
        ("text\nA b\n", "there is no column 'label', which data.tsv has", "test.tsv"),
        ("text\tlabel\n", "this file has no rows but the header", "test.tsv"),
        ("text\tlabel\nA b\t-1\nC d\t-1\n", "these rows have no labels", "test.tsv"),
    ):
        put("test.tsv", content.encode())
        with refused(message, where):
            read(name, training=True, test=Path("test.tsv"))
    with refused("there is no such file", "dev.tsv"):
        read(name, training=True, dev=Path("dev.tsv"))
    with refused("--dev is not used without training", None, "--test"):
        read(name, dev=Path("dev.tsv"))


def test_few_rows_are_not_shared_out() -> None:
    name = tsv("data.tsv", TEXTS[:19], CLASSES[:19], header="text label")
    with refused("19 rows are too few to share out; 20 are needed", name, "--test FILE --dev FILE"):
        read(name, training=True)


def test_places_without_a_task_are_reported() -> None:
    Path("folder").mkdir()
    put("notes.txt", b"one\n")
    put("two/train.csv", b"text,label\n")
    put("two/train.tsv", b"text,label\n")
    with refused("this folder has no train.tsv", "folder", "stsb, glue/cola"):
        read("folder")
    with refused("the name does not say how this file is to be read", "notes.txt", ".jsonl"):
        read("notes.txt")
    with refused("train.csv and train.tsv could both be meant", "two"):
        read("two")
    with refused("this is not a file", "/dev/null"):
        read("/dev/null")
    for spec, hint in (("mrpc", "mean glue/mrpc?"), ("STS-B", "mean stsb?"), ("no.tsv", "one of stsb, glue/cola")):
        with refused("there is no such file or folder, and no task of this name", spec, hint):
            read(spec)
