"""How well the cosines of embeddings as they are agree with the scores of pairs."""

from __future__ import annotations

import numpy as np

from minilm_cli.base.errors import MinilmError
from minilm_cli.evaluate.embedding import Encode, unit
from minilm_cli.evaluate.scores import METRICS
from minilm_cli.evaluate.task import LabelledTask


def similarity(task: LabelledTask, encode: Encode) -> dict[str, float]:
    """Spearman and Pearson correlation of the cosines of pairs with their scores, on the scored split.

    Raises `MinilmError` if the task is not about similarity.
    """
    split = task.splits[task.scored]
    if task.kind != "similarity" or split.pairs is None:
        raise MinilmError(
            f"--zero-shot compares the two texts of a pair with a score, and this task is {task.kind}",
            where=task.name,
            hint="Use --probe, which trains a classifier or regression on the embeddings.",
        )
    first, second = np.split(unit(encode([*split.texts, *split.pairs])), 2)
    cosines = np.sum(first * second, axis=1)
    return {name: METRICS[name](split.labels, cosines) for name in ("spearman", "pearson")}
