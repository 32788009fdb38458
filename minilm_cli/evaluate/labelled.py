"""Labelled files as a task: columns, kind, classes and splits are found, and told to the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.seeding import derive
from minilm_cli.evaluate.columns import Columns, find_columns, find_header
from minilm_cli.evaluate.labels import BINARY, SCORE_KINDS, Labels, are_scores, classes_of, numbered, scores_of
from minilm_cli.evaluate.tables import Table, read_table
from minilm_cli.evaluate.task import LabelledTask, Split
from minilm_cli.settings.evaluate import Kind, LabelledData

#: Divisors of the rows of `train` that a missing split gets.
_SHARES = {"test": 5, "dev": 10}

#: Rows from which shares are taken.
_FEWEST = 20

#: Of the shares: always the same.
_SEED = 0

#: Classes that are listed by name.
_LISTED = 5


@dataclass(frozen=True)
class _Rows:
    """The rows of a split."""

    texts: Sequence[str]
    pairs: Sequence[str] | None
    labels: Labels

    def chosen(self, rows: Sequence[int]) -> _Rows:
        """Some of them."""
        pairs = None if self.pairs is None else [self.pairs[row] for row in rows]
        labels = self.labels
        values, lines = [labels.values[row] for row in rows], [labels.lines[row] for row in rows]
        return _Rows([self.texts[row] for row in rows], pairs, Labels(labels.file, values, lines))


def read_labelled(name: str, files: Mapping[str, str], data: LabelledData, *, training: bool) -> LabelledTask:
    """The task of these files, by split: `train` and whatever else there is.

    training: whether to train on it; else only what is scored is read. For training, a missing split is a seeded share
    of `train`. Raises `MinilmError` for whatever is wrong with the files.
    """
    if not training:
        scored = next(split for split in ("test", "dev", "train") if split in files)
        files = {"dev" if scored == "dev" else "test": files[scored]}
    tables = {split: read_table(file) for split, file in files.items()}
    first = next(iter(tables))
    tables[first] = find_header(tables[first], data)
    columns = find_columns(tables[first], data)
    rows = {split: _rows(_like(table, tables[first], columns), columns) for split, table in tables.items()}

    values = [value for part in rows.values() for value in part.labels.values]
    kind = data.kind or _kind(values, columns)
    classes = () if kind in SCORE_KINDS else classes_of(rows[first].labels)
    shared = [split for split in _SHARES if training and split not in rows]
    if shared:
        rows = _shared(rows, shared, by_class=bool(classes))
    splits = {split: _split(part, kind, classes) for split, part in rows.items()}
    task = LabelledTask(name, kind, splits, metrics_of(kind, len(classes)), classes)
    if kind in SCORE_KINDS and len(set(splits[task.scored].labels)) == 1:
        raise MinilmError("all rows have the same score", where=rows[task.scored].labels.file)
    return replace(task, found=_found(task, list(files.values()), tables[first], columns, shared))


def metrics_of(kind: Kind, classes: int) -> tuple[str, ...]:
    """Names in `scores.METRICS` for a task of this kind, with so many classes."""
    if kind in SCORE_KINDS:
        return ("spearman", "pearson")
    return ("accuracy", "f1") if classes == BINARY else ("accuracy", "macro-f1")


def _like(table: Table, first: Table, columns: Columns) -> Table:
    """The table with its columns named as in the first; raises `MinilmError` if it lacks some."""
    if first.has_header and not table.has_header:
        table = table.with_header()
    for column in columns.all:
        if column not in table.columns:
            raise MinilmError(
                f"there is no column {column!r}, which {first.name} has",
                where=table.name,
                hint="All files of a task need the same columns, also the labels; --test names another file to score.",
            )
    return table


def _rows(table: Table, columns: Columns) -> _Rows:
    labels = Labels(table.name, table.column(columns.label), table.lines)
    labels.check()
    return _Rows(table.column(columns.text), table.column(columns.pair) if columns.pair else None, labels)


def _kind(values: Sequence[str], columns: Columns) -> Kind:
    if are_scores(values, columns.label):
        return "similarity" if columns.pair else "regression"
    return "pair-classification" if columns.pair else "classification"


def _shared(rows: Mapping[str, _Rows], missing: Sequence[str], *, by_class: bool) -> dict[str, _Rows]:
    """The splits, with the missing ones taken out of `train` in an order that depends on nothing but its size."""
    train = rows["train"]
    labels = train.labels.values
    if len(labels) < _FEWEST:
        raise MinilmError(
            f"{len(labels)} rows are too few to share out; {_FEWEST} are needed",
            where=train.labels.file,
            hint=f"Give files of their own: {' '.join(f'--{split} FILE' for split in missing)}",
        )
    order = sorted(range(len(labels)), key=lambda row: derive(_SEED, "share", row))
    if by_class:  # one row of each class is left to train
        kept = set({labels[row]: row for row in order}.values())
        order.sort(key=kept.__contains__)
    found = dict(rows)
    for split in missing:
        size = len(labels) // _SHARES[split]
        found[split] = train.chosen(sorted(order[:size]))
        order = order[size:]
    return {**found, "train": train.chosen(sorted(order))}


def _split(rows: _Rows, kind: Kind, classes: Sequence[str]) -> Split:
    labels = scores_of(rows.labels) if kind in SCORE_KINDS else numbered(rows.labels, classes)
    return Split(rows.texts, rows.pairs, labels)


def _found(task: LabelledTask, files: Sequence[str], table: Table, columns: Columns, shared: Sequence[str]) -> str:
    """A sentence for the user."""
    names = ", ".join(Path(file).name for file in files)
    texts = f"texts in columns {columns.text} and {columns.pair}" if columns.pair else f"text in column {columns.text}"
    if task.classes:
        listed = ", ".join(task.classes) if len(task.classes) <= _LISTED else f"{len(task.classes)} classes"
        positive = f"; F1 is that of {task.classes[1]}" if len(task.classes) == BINARY else ""
        labels = f"class in column {columns.label} ({listed}{positive})"
    else:
        scores = [score for split in task.splits.values() for score in split.labels]
        labels = f"score in column {columns.label} ({min(scores):g} to {max(scores):g})"
    header = "" if table.has_header else ", no header"
    return f"{names}: {texts}, {labels}{header}; {rows_of(task)}{', by seeded shares' if shared else ''}"


def rows_of(task: LabelledTask) -> str:
    """The rows of each split, such as "90 train and 10 test rows"."""
    *others, last = [f"{len(split):,} {name}" for name, split in sorted(task.splits.items(), key=_order)]
    return f"{', '.join(others)} and {last} rows" if others else f"{last} rows"


def _order(split: tuple[str, Split]) -> int:
    return ("train", "dev", "test").index(split[0])
