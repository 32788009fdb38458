"""What a model is evaluated on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from minilm_cli.base.checksums import sha256_of_text
from minilm_cli.settings.evaluate import Kind


@dataclass(frozen=True)
class Split:
    """Labelled texts, or pairs of texts."""

    texts: Sequence[str]
    pairs: Sequence[str] | None
    """The second text of each pair; `None` for single texts."""
    labels: Sequence[float]
    """Scores, or numbers of classes from 0."""

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class LabelledTask:
    """Classes or scores of texts, or of pairs of texts."""

    name: str
    kind: Kind
    splits: Mapping[str, Split]
    """`test`, or `dev` if there is no labelled `test`: what is scored. `train`, where it was asked for."""
    metrics: tuple[str, ...]
    """Names in `scores.METRICS`; settings are chosen by the first."""
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of their numbers; none for scores."""
    found: str = ""
    """What was found out about the data, for the user: columns, kind, rows."""

    @property
    def scored(self) -> str:
        """The split that is scored."""
        return "test" if "test" in self.splits else "dev"

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of kind, texts and labels."""
        splits = {name: [split.texts, split.pairs, split.labels] for name, split in self.splits.items()}
        return sha256_of_text(json.dumps([self.kind, self.classes, splits]))


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, and the documents that answer them."""

    name: str
    documents: Mapping[str, str]
    """Texts by id."""
    queries: Mapping[str, str]
    relevant: Mapping[str, Mapping[str, int]]
    """By query: how relevant documents are, above 0."""
    found: str = ""
    """What was found out about the data, for the user."""

    #: Names of what is measured, and of the split.
    metrics, scored = ("ndcg@10", "recall@100"), "test"

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of all of it."""
        return sha256_of_text(json.dumps([self.documents, self.queries, self.relevant]))


@dataclass(frozen=True)
class MtebTask:
    """A task of the library `mteb`, which has its data and computes its score."""

    name: str
    found: str = ""

    #: As of the other tasks: mteb's main score.
    metrics, scored = ("main",), "test"

    @property
    def checksum(self) -> str:
        """Of the name: the library knows the data."""
        return sha256_of_text(self.name)


Task = LabelledTask | RetrievalTask | MtebTask
