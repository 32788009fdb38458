"""What the labels of a task are: classes or scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from minilm_cli.base.errors import MinilmError
from minilm_cli.settings.evaluate import Kind

#: Kinds whose texts are pairs, and kinds whose labels are scores.
PAIR_KINDS: tuple[Kind, ...] = ("pair-classification", "similarity")
SCORE_KINDS: tuple[Kind, ...] = ("similarity", "regression")

#: Columns, in lower case, whose numbers are scores even if they are few and whole, or classes even if they are many.
_NAMES_OF_SCORES = frozenset({"score", "similarity", "similarity_score", "relatedness", "relatedness_score"})
_NAMES_OF_CLASSES = frozenset({"label", "labels", "class", "category", "target", "topic", "intent"})

#: Classes of a task whose F1 is that of class 1.
BINARY = 2

#: Different whole numbers that are still taken for classes: with such a name, and without.
_MOST_CLASSES, _MOST_UNNAMED_CLASSES = 200, 20

#: Share of numbers in a column from which the rest is taken for mistakes.
_MOSTLY = 0.9

#: Classes that a message lists.
_SHOWN = 8

_TO_NAME_IT = "Name the column of the labels with --label"


@dataclass(frozen=True)
class Labels:
    """The labels of one split as they are in its file."""

    file: str
    values: Sequence[str]
    lines: Sequence[int]
    """By row: its line in the file."""

    def where(self, row: int) -> str:
        """File and line of a row, for messages."""
        return f"{self.file}, line {self.lines[row]}"

    def check(self) -> None:
        """Raise `MinilmError` if a row has no label."""
        found = set(self.values)
        if found <= {"", "-1"}:
            raise MinilmError(
                "these rows have no labels",
                where=self.file,
                hint="Name a file that has some with --test. The test files of GLUE have none: score its dev files.",
            )
        if "" in found:
            where = self.where(self.values.index(""))
            raise MinilmError("this row has no label", where=where, hint="Remove the rows without a label.")


def number(text: str) -> float | None:
    """The finite number that this text is, if it is one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def are_scores(values: Sequence[str], column: str) -> bool:
    """Whether these labels are scores, not classes, judged by the values and the name of their column."""
    numbers = [value for text in values if (value := number(text)) is not None]
    if len(numbers) < _MOSTLY * len(values):
        return False
    if not all(value.is_integer() for value in numbers) or column.lower() in _NAMES_OF_SCORES:
        return True
    most = _MOST_CLASSES if column.lower() in _NAMES_OF_CLASSES else _MOST_UNNAMED_CLASSES
    return len(set(numbers)) > most


def scores_of(labels: Labels) -> list[float]:
    """The labels as scores; raises `MinilmError` with the line of one that is no number."""
    scores: list[float] = []
    for row, text in enumerate(labels.values):
        if (value := number(text)) is None:
            raise MinilmError(
                f"the score {text!r} is not a number",
                where=labels.where(row),
                hint=f"Correct or remove the row. {_TO_NAME_IT}; if they are classes, say so with --kind.",
            )
        scores.append(value)
    return scores


def classes_of(labels: Labels) -> tuple[str, ...]:
    """The names of the classes in the order of their numbers: sorted, as numbers if all are.

    Raises `MinilmError` if there is only one class, or if nearly every row has its own.
    """
    counts = Counter(map(class_name, labels.values))
    if len(counts) == 1:
        raise MinilmError(
            f"all rows have the class {next(iter(counts))!r}",
            where=labels.file,
            hint=f"At least two classes are needed. {_TO_NAME_IT} if another column has them.",
        )
    if 2 * len(counts) > len(labels.values) and len(counts) > BINARY:
        raise MinilmError(
            f"these labels cannot be classes: {len(labels.values):,} rows have {len(counts):,} different ones",
            where=labels.file,
            hint=f"{_TO_NAME_IT}, or give the kind of the task with --kind.",
        )
    if all(number(name) is not None for name in counts):
        return tuple(sorted(counts, key=float))
    return tuple(sorted(counts))


def numbered(labels: Labels, classes: Sequence[str]) -> list[float]:
    """The labels as numbers of classes; raises `MinilmError` with the line of one that is not among them."""
    numbers = {name: float(index) for index, name in enumerate(classes)}
    found: list[float] = []
    for row, text in enumerate(labels.values):
        if (name := class_name(text)) not in numbers:
            raise MinilmError(
                f"no row for training has the class {name!r}",
                where=labels.where(row),
                hint=f"They have {_listed(classes)}. Remove the rows here, or add some of this class to those.",
            )
        found.append(numbers[name])
    return found


def _listed(classes: Sequence[str]) -> str:
    return f"{', '.join(classes[:_SHOWN])} …" if len(classes) > _SHOWN else ", ".join(classes)


def class_name(text: str) -> str:
    """The name of a class: 1.0, as tables of numbers are often written, is 1."""
    value = number(text)
    return str(int(value)) if value is not None and value.is_integer() else text.strip()
