"""A folder for retrieval in BEIR's layout: corpus.jsonl, queries.jsonl, and qrels.tsv or qrels/test.tsv."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from minilm_cli.base.errors import MinilmError
from minilm_cli.corpus.decompress import find_file
from minilm_cli.evaluate.tables import find_table, json_objects, text_lines
from minilm_cli.evaluate.task import RetrievalTask

_LAYOUT = "A folder for retrieval has corpus.jsonl, queries.jsonl, and qrels.tsv or qrels/test.tsv."

#: Share of the judgements whose query or document may be missing: published data sets have a few.
_MOST_UNKNOWN = 0.01

_JUDGEMENTS = "Each line has query id, document id and relevance, a whole number, separated by tabs."


def is_retrieval_folder(folder: Path) -> bool:
    """Whether the folder has documents and queries."""
    return all(find_table(folder, (stem,), ".jsonl") for stem in ("corpus", "queries"))


def read_retrieval(folder: Path) -> RetrievalTask:
    """The documents, and the queries that have a relevant one.

    Raises `MinilmError`, with file and line, for what is not as the layout says.
    """
    documents, queries = _texts(folder, "corpus"), _texts(folder, "queries")
    file = find_table(folder, ("qrels",), ".tsv") or find_table(folder / "qrels", ("test",), ".tsv")
    if file is None:
        raise MinilmError("there is no qrels.tsv and no qrels/test.tsv", where=str(folder), hint=_LAYOUT)
    relevant: dict[str, dict[str, int]] = {}
    count, unknown = 0, list[MinilmError]()
    for where, query, document, relevance in _judgements(file):
        if relevance <= 0:
            continue
        count += 1
        if query not in queries:
            unknown.append(MinilmError(f"there is no query {query!r} in queries.jsonl", where=where))
        elif document not in documents:
            unknown.append(MinilmError(f"there is no document {document!r} in corpus.jsonl", where=where))
        else:
            relevant.setdefault(query, {})[document] = relevance
    if len(unknown) > _MOST_UNKNOWN * count:
        raise unknown[0]
    if not relevant:
        raise MinilmError("no document is relevant: no relevance is above 0", where=str(file), hint=_JUDGEMENTS)
    found = f"{folder.name}: {len(documents):,} documents, {len(relevant):,} queries with {count:,} relevant ones"
    if unknown:
        found += f" ({len(unknown):,} of them left out, because the query or document is missing)"
    return RetrievalTask(folder.name, documents, {query: queries[query] for query in relevant}, relevant, found)


def _texts(folder: Path, stem: str) -> dict[str, str]:
    """Texts by id; those of the corpus begin with the title, if there is one."""
    file = find_table(folder, (stem,), ".jsonl")
    texts: dict[str, str] = {}
    for number, found in json_objects(find_file(str(file))):
        where = f"{file}, line {number}"
        name, text, title = found.get("_id"), found.get("text"), found.get("title") if stem == "corpus" else None
        if not isinstance(name, str | int) or not isinstance(text, str) or not isinstance(title, str | None):
            raise MinilmError(
                "an object with _id and text is expected", where=where, hint='{"_id": "d1", "title": "…", "text": "…"}'
            )
        if str(name) in texts:
            raise MinilmError(f"the id {name!r} is there twice", where=where)
        texts[str(name)] = f"{title} {text}" if title else text
    if not texts:
        raise MinilmError("this file is empty", where=str(file), hint=_LAYOUT)
    return texts


def _judgements(file: Path) -> Iterator[tuple[str, str, str, int]]:
    """Place, query, document and relevance of each line: of BEIR's three columns, or TREC's four."""
    for number, line in text_lines(find_file(str(file))):
        values = line.split("\t") if "\t" in line else line.split()
        where = f"{file}, line {number}"
        is_number = re.fullmatch(r"-?\d+", values[-1].strip()) is not None
        if len(values) not in (3, 4) or not (is_number or number == 1):
            raise MinilmError("this line is not a relevance judgement", where=where, hint=_JUDGEMENTS)
        if is_number:  # else it is a header
            yield where, values[0], values[-2], int(values[-1])
