"""Embeddings of many texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Encode = Callable[[Sequence[str]], Array]
"""Texts to their embeddings, (texts, width), in fp32."""


def encode_sorted(
    compute: Encode, texts: Sequence[str], *, batch: int = 32, done: Callable[[int], None] | None = None
) -> Array:
    """The embeddings of texts, (texts, width), computed in batches of texts that are about as long as each other.

    Such batches have little padding. The longest come first: what does not fit into memory fails at once. Equal texts
    are computed once.

    done: is told after each batch how many of `texts` it was, equal ones included.
    """
    counts = Counter(texts)
    order = sorted(counts, key=len, reverse=True)
    found = []
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        found.append(compute(part))
        if done is not None:
            done(sum(counts[text] for text in part))
    row = {text: number for number, text in enumerate(order)}
    embeddings: Array = np.concatenate(found)[[row[text] for text in texts]]
    return embeddings


def unit(embeddings: Array) -> Array:
    """Embeddings, (texts, width), scaled to length 1, so that dot products are cosines; zeros stay zeros."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    scaled: Array = embeddings / np.where(lengths > 0, lengths, 1)
    return scaled
