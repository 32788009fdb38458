from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minilm_cli.evaluate.embedding import Array, encode_sorted, unit

TEXTS = ["four", "a", "seventh", "bb", "a", "ccc", "a"]


def length_and_first(texts: Sequence[str]) -> Array:
    return np.array([[len(text), ord(text[0])] for text in texts], np.float32)


def test_embeddings_are_in_the_order_of_the_texts() -> None:
    for batch in (1, 2, 32):
        np.testing.assert_array_equal(encode_sorted(length_and_first, TEXTS, batch=batch), length_and_first(TEXTS))


def test_equal_texts_are_computed_once_and_the_longest_first() -> None:
    batches, done = [], []

    def compute(texts: Sequence[str]) -> Array:
        batches.append(list(texts))
        return length_and_first(texts)

    encode_sorted(compute, TEXTS, batch=2, done=done.append)
    assert batches == [["seventh", "four"], ["ccc", "bb"], ["a"]]
    assert done == [2, 2, 3]


def test_zeros_have_no_direction() -> None:
    np.testing.assert_allclose(unit(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)), [[0.6, 0.8], [0.0, 0.0]])
