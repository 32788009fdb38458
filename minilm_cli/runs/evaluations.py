"""The file of evaluations: every measurement with what it depends on, and the results made of them.

A measurement is one training, or one use of the embeddings as they are. It is written as soon as it is done, so that an
evaluation that was interrupted continues where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from minilm_cli import __version__
from minilm_cli.base.errors import MinilmError, refuse_newer
from minilm_cli.base.jsonio import read_json, write_json

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
    """`fine-tuning`, `zero-shot` or `probe`."""
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
    parameters: int | None
    megabytes: float
    sentences_per_second: float
    split: str
    """What was scored: `test`, or `dev` if there is no labelled `test`."""
    setting: Mapping[str, Any]
    """Chosen on the dev split, and what was fixed."""
    weights: str
    """Checksum of the model."""
    data: str
    """Checksum of the task."""
    means_little: bool
    """Whether the score says little of the model, as its last part has random weights."""


class Evaluations:
    """The content of the file, which may not exist yet."""

    def __init__(self, path: Path) -> None:
        """Read the file; raises `MinilmError` if it is another's."""
        self.path = path
        content = read_json(path, kind="file of evaluations") if path.exists() else {"measurements": [], "results": []}
        refuse_newer("file of evaluations", content, FORMAT_VERSION, where=str(path), writer="minilm")
        if not isinstance(content, dict) or not {"measurements", "results"} <= content.keys():
            raise MinilmError("this is not a file of evaluations", where=str(path), hint="Name another --output.")
        self._measurements: list[dict[str, Any]] = content["measurements"]
        self.results: list[dict[str, Any]] = content["results"]

    def scores_of(self, key: Mapping[str, Any]) -> Scores | None:
        """The scores of a measurement that was done before."""
        found = (each["scores"] for each in self._measurements if each["key"] == key)
        return next(found, None)

    def add_scores(self, key: Mapping[str, Any], scores: Scores, versions: Mapping[str, str]) -> None:
        """Keep a measurement."""
        self._measurements = [each for each in self._measurements if each["key"] != key]
        self._measurements.append({"key": dict(key), "scores": scores, "versions": dict(versions)})
        self._write()

    def add_results(self, results: Sequence[Result]) -> None:
        """Keep results, in place of earlier ones of the same model, task, protocol and metric."""
        new = [asdict(result) for result in results]
        same = {_identity(each) for each in new}
        self.results = [each for each in self.results if _identity(each) not in same] + new
        self._write()

    def _write(self) -> None:
        write_json(
            self.path,
            {
                "format_version": FORMAT_VERSION,
                "minilm": __version__,
                "results": self.results,
                "measurements": self._measurements,
            },
        )


def _identity(result: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(result[name] for name in ("task", "data", "protocol", "metric", "weights", "model"))


def deviation(scores: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 of a single score."""
    return stdev(scores) if len(scores) > 1 else 0.0


def retention(mean: float, teacher: Sequence[float]) -> float | None:
    """Percent of the teacher's mean; `None` if that is not above 0."""
    theirs = fmean(teacher) if teacher else math.nan
    return 100 * mean / theirs if theirs > 0 else None
