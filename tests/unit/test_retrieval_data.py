from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from minilm_cli.evaluate.reading import read_task
from minilm_cli.evaluate.task import RetrievalTask
from minilm_cli.settings.evaluate import LabelledData

from .text_inputs import put, refused


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages name files as they were given: here, without a folder."""
    monkeypatch.chdir(tmp_path)


def lines(*objects: dict[str, Any]) -> bytes:
    return "".join(json.dumps(found) + "\n" for found in objects).encode()


DOCUMENTS = (
    {"_id": "d1", "title": "Bees", "text": "They make honey."},
    {"_id": "d2", "title": "", "text": "Cats sleep."},
    {"_id": 3, "text": "Dogs bark.", "metadata": {}},
)
QUERIES = (
    {"_id": "q1", "text": "who makes honey?", "title": "no"},
    {"_id": "q2", "text": "who sleeps?"},
    {"_id": 7, "text": "?"},
)


def read(qrels: str = "q1\td1\t1\n", name: str = "qrels.tsv") -> RetrievalTask:
    if not Path("pets/corpus.jsonl").exists():
        put("pets/corpus.jsonl", lines(*DOCUMENTS))
    if not Path("pets/queries.jsonl").exists():
        put("pets/queries.jsonl", lines(*QUERIES))
    put(f"pets/{name}", qrels.encode())
    task = read_task("pets", LabelledData(), training=False)
    assert isinstance(task, RetrievalTask)
    return task


@pytest.mark.parametrize("name", ["qrels.tsv", "qrels/test.tsv"])
@pytest.mark.parametrize(
    "qrels",
    [
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\t3\t1\nq2\td1\t0\n7\td2\t1\n",
        "q1\td1\t2\nq1\t3\t1\nq2\td1\t0\n\n7\td2\t1\r\n",
        "q1 0 d1 2\nq1 0 3 1\nq2 0 d2 -1\n7 0 d2 1",
    ],
)
def test_queries_with_a_relevant_document_are_kept(name: str, qrels: str) -> None:
    task = read(qrels, name)
    assert task.name == "pets"
    assert task.documents == {"d1": "Bees They make honey.", "d2": "Cats sleep.", "3": "Dogs bark."}
    assert task.queries == {"q1": "who makes honey?", "7": "?"}
    assert task.relevant == {"q1": {"d1": 2, "3": 1}, "7": {"d2": 1}}
    assert task.found == "pets: 3 documents, 2 queries with 3 relevant ones"


def test_compressed_files_are_read() -> None:
    put("pets/corpus.jsonl.gz", gzip.compress(lines(*DOCUMENTS)))
    put("pets/queries.jsonl.gz", gzip.compress(lines(*QUERIES)))
    put("pets/qrels.tsv.gz", gzip.compress(b"q2\td2\t1\n"))
    task = read_task("pets", LabelledData(), training=False)
    assert isinstance(task, RetrievalTask)
    assert task.relevant == {"q2": {"d2": 1}}


def test_few_judgements_of_missing_documents_are_left_out() -> None:
    documents = [{"_id": str(number), "text": f"Text {number}."} for number in range(99)]
    put("pets/corpus.jsonl", lines(*documents))
    judged = [f"q1\t{number}\t1\n" for number in range(99)]
    task = read("".join([*judged, "q2\t99\t1\n"]))
    assert (task.queries.keys(), len(task.relevant["q1"])) == ({"q1"}, 99)
    assert task.found.endswith("with 100 relevant ones (1 of them left out, because the query or document is missing)")
    with refused("there is no document '99' in corpus.jsonl", "pets/qrels.tsv, line 99"):
        read("".join([*judged[:-1], "q2\t99\t1\n"]))


@pytest.mark.parametrize(
    ("qrels", "message", "line", "hint"),
    [
        ("q1\td9\t1\n", "there is no document 'd9' in corpus.jsonl", 1, ""),
        ("q9\td1\t1\n", "there is no query 'q9' in queries.jsonl", 1, ""),
        ("q1\td1\t0\n", "no document is relevant", None, "separated by tabs"),
        ("query-id\tcorpus-id\tscore\n", "no document is relevant", None, "separated by tabs"),
        ("q1\td1\t1\nq1\td2\n", "this line is not a relevance judgement", 2, "whole number"),
        ("q1\td1\t1\nq1\td2\tyes\n", "this line is not a relevance judgement", 2, "whole number"),
        ("q1\td1\t1\nq1\td2\t0.5\n", "this line is not a relevance judgement", 2, "whole number"),
    ],
)
def test_mistakes_in_judgements_are_reported(qrels: str, message: str, line: int | None, hint: str) -> None:
    with refused(message, f"pets/qrels.tsv, line {line}" if line else "pets/qrels.tsv", hint):
        read(qrels)


@pytest.mark.parametrize(
    ("content", "message", "line"),
    [
        (lines(*DOCUMENTS, DOCUMENTS[0]), "the id 'd1' is there twice", 4),
        (lines(DOCUMENTS[0], {"id": "d2", "text": "A."}), "an object with _id and text is expected", 2),
        (lines({"_id": "d2", "text": None}), "an object with _id and text is expected", 1),
        (b'{"_id": "d1"', "this line cannot be read as JSON", 1),
        (b"\n", "this file is empty", None),
    ],
)
def test_mistakes_in_texts_are_reported(content: bytes, message: str, line: int | None) -> None:
    for stem in ("corpus", "queries"):
        file = put(f"pets/{stem}.jsonl", content)
        with refused(message, f"{file}, line {line}" if line else file):
            read()
        Path(file).unlink()


def test_folder_without_judgements_is_refused() -> None:
    put("pets/corpus.jsonl", lines(*DOCUMENTS))
    put("pets/queries.jsonl", lines(*QUERIES))
    with refused("there is no qrels.tsv and no qrels/test.tsv", "pets", "A folder for retrieval has corpus.jsonl"):
        read_task("pets", LabelledData(), training=False)
    with refused("--label does not apply: a folder for retrieval has its own layout", "pets"):
        read_task("pets", LabelledData(label="x"), training=False)
