"""The file of evaluations: every measurement with what it depends on, and the results made of them.

A measurement is one training, or one use of the embeddings as they are. It is written as soon as it is done, so that an
evaluation that was interrupted continues where it stopped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pydantic import TypeAdapter, ValidationError

from minilm_cli import __version__
from minilm_cli.base.errors import MinilmError, refuse_newer
from minilm_cli.base.jsonio import first_wrong, read_json, write_json
from minilm_cli.base.write_errors import creating

FORMAT_VERSION = 1

#: The file's name in a run.
FILE = "evaluations.json"

Scores = Mapping[str, Mapping[str, float]]
"""By split and metric."""


@dataclass(frozen=True)
class Result:
    """A model's score on a task."""

    task: str
    protocol: str
    """`fine-tuning`, `zero-shot`, `probe` or `mteb`."""
    metric: str
    model: str
    is_teacher: bool
    mean: float
    std: float
    """Standard deviation over seeds; 0 for a single score."""
    scores: list[float]
    """One for each seed, as fractions of 1."""
    retention: float | None
    """Percent of the teacher's mean; `None` for the teacher itself, or without one."""
    teacher: str | None
    """What it was compared with."""
    teacher_mean: float | None
    parameters: int | None
    megabytes: float
    sentences_per_second: float
    split: str
    """What was scored: `test`, or `dev` if there is no labelled `test`."""
    setting: dict[str, Any]
    """Chosen on the dev split, and what was fixed."""
    weights: str
    """Checksum of the model."""
    data: str
    """Checksum of the task."""
    means_little: bool
    """Whether the score says little of the model, as its last part has random weights."""


@dataclass(frozen=True)
class Measurement:
    """The scores of one training, or of the embeddings as they are."""

    key: dict[str, Any]
    """All that decides about them."""
    scores: dict[str, dict[str, float]]
    versions: dict[str, str]


@dataclass(frozen=True)
class _Content:
    measurements: list[Measurement] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)


_CONTENT = TypeAdapter(_Content)


class Evaluations:
    """The file, which may not exist yet. It is read anew before each change, as others may write it too."""

    def __init__(self, path: Path) -> None:
        """Raises `MinilmError` if the file is another's."""
        self.path = path
        self._read()

    def prepare(self) -> None:
        """Create the file's folder; raises `MinilmError` if nothing can be written there."""
        with creating(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path.parent, os.W_OK):
            raise MinilmError("nothing can be written here", where=str(self.path.parent), hint="Name another --output.")

    @property
    def results(self) -> list[Result]:
        """All results."""
        return self._read().results

    def scores_of(self, key: Mapping[str, Any]) -> Scores | None:
        """The scores of a measurement that was done before."""
        return next((each.scores for each in self._read().measurements if each.key == key), None)

    def add_scores(self, key: Mapping[str, Any], scores: Scores, versions: Mapping[str, str]) -> None:
        """Keep a measurement."""
        content = self._read()
        others = [each for each in content.measurements if each.key != key]
        plain = {split: dict(found) for split, found in scores.items()}
        self._write(_Content([*others, Measurement(dict(key), plain, dict(versions))], content.results))

    def add_results(self, results: Sequence[Result]) -> None:
        """Keep results, in place of earlier ones of the same model, task, protocol and metric."""
        content, new = self._read(), set(map(_identity, results))
        others = [each for each in content.results if _identity(each) not in new]
        self._write(_Content(content.measurements, [*others, *results]))

    def _read(self) -> _Content:
        if not self.path.exists():
            return _Content()
        content = read_json(self.path, kind="file of evaluations")
        refuse_newer("file of evaluations", content, FORMAT_VERSION, where=str(self.path), writer="minilm")
        known = {"measurements", "results"}
        if not isinstance(content, dict) or not known <= content.keys():
            raise MinilmError("this is not a file of evaluations", where=str(self.path), hint="Name another --output.")
        try:
            return _CONTENT.validate_python({name: content[name] for name in known})
        except ValidationError as error:
            raise MinilmError(
                f"this is not a sound file of evaluations: {first_wrong(error)}",
                where=str(self.path),
                hint="Remove it, or name another --output.",
            ) from None

    def _write(self, content: _Content) -> None:
        write_json(self.path, {"format_version": FORMAT_VERSION, "minilm": __version__, **asdict(content)})


def _identity(result: Result) -> tuple[str, ...]:
    return (result.task, result.data, result.protocol, result.metric, result.weights, result.model)


def deviation(scores: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 of a single score."""
    return stdev(scores) if len(scores) > 1 else 0.0


def retention(mean: float, teacher: Sequence[float]) -> float | None:
    """Percent of the teacher's mean; `None` if that is not above 0."""
    theirs = fmean(teacher) if teacher else math.nan
    return 100 * mean / theirs if theirs > 0 else None
