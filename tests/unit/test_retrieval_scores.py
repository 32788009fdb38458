from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from minilm_cli.evaluate.embedding import Array
from minilm_cli.evaluate.retrieval import retrieval
from minilm_cli.evaluate.task import RetrievalTask


def angle(texts: Sequence[str]) -> Array:
    """A text is a number of degrees."""
    turned = np.radians([float(text) for text in texts])
    return np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)


def scores(
    documents: Mapping[str, str],
    relevant: Mapping[str, Mapping[str, int]],
    queries: Mapping[str, str] | None = None,
    block: int | None = None,
) -> dict[str, float]:
    task = RetrievalTask("degrees", documents, queries or dict.fromkeys(relevant, "0"), relevant)
    return retrieval(task, angle, angle, block=block)


#: Ranked a, b, c, d for the query at 0°.
FOUR = {"d": "40", "b": "-20", "a": "10", "c": "30"}


def test_gains_are_discounted_by_rank() -> None:
    found = scores(FOUR, {"q": {"b": 2, "d": 1}})
    assert list(found) == list(RetrievalTask.metrics)
    expected = (2 / math.log2(3) + 1 / math.log2(5)) / (2 + 1 / math.log2(3))
    assert found == pytest.approx({"ndcg@10": expected, "recall@100": 1.0})


def test_a_perfect_ranking_and_one_without_relevant_documents() -> None:
    assert scores(FOUR, {"q": {"a": 3, "b": 1}}) == pytest.approx({"ndcg@10": 1.0, "recall@100": 1.0})
    assert scores(FOUR, {"q": {"nowhere": 1}}) == {"ndcg@10": 0.0, "recall@100": 0.0}


def test_relevant_documents_that_are_not_there_count_in_the_best_ranking() -> None:
    found = scores(FOUR, {"q": {"a": 1, "nowhere": 1}})
    assert found == pytest.approx({"ndcg@10": 1 / (1 + 1 / math.log2(3)), "recall@100": 0.5})


def test_queries_count_alike_and_those_without_relevant_documents_do_not() -> None:
    relevant = {"one": {"a": 1}, "two": {"nowhere": 1}, "three": {}}
    assert scores(FOUR, relevant) == pytest.approx({"ndcg@10": 0.5, "recall@100": 0.5})


def test_only_ten_documents_count_for_ndcg_and_a_hundred_for_recall() -> None:
    documents = {f"{n:03}": str(n / 2) for n in range(120)}
    found = scores(documents, {"q": {"009": 1}, "r": {"010": 1}, "s": {"099": 1}, "t": {"100": 1}})
    assert found == pytest.approx({"ndcg@10": 1 / math.log2(11) / 4, "recall@100": 3 / 4})
    # No ranking can have more than ten of the twenty.
    assert scores(documents, {"q": {f"{n:03}": 1 for n in range(20)}})["ndcg@10"] == pytest.approx(1.0)


def test_a_document_with_the_id_of_the_query_is_left_out() -> None:
    assert scores(FOUR, {"a": {"b": 1}})["ndcg@10"] == pytest.approx(1.0)
    documents = {f"{n:03}": str(n / 2) for n in range(120)}
    assert scores(documents, {"000": {"100": 1}})["recall@100"] == 1.0


def test_of_equal_cosines_the_greater_id_comes_first() -> None:
    documents = {"b": "30", "c": "30", "a": "30"}
    second = pytest.approx(1 / math.log2(3))
    for block in (1, 2, 3):
        assert scores(documents, {"q": {"c": 1}}, block=block)["ndcg@10"] == pytest.approx(1.0)
        assert scores(documents, {"q": {"b": 1}}, block=block)["ndcg@10"] == second


def test_equal_texts_have_equal_cosines_in_every_place_of_a_block() -> None:
    generator = np.random.default_rng(0)
    vectors = {text: generator.normal(size=384).astype(np.float32) for text in ("document", *map(str, range(20)))}
    documents = {f"{n:03}": "document" for n in range(200)}
    queries = {f"q{n}": str(n) for n in range(20)}
    task = RetrievalTask("equal", documents, queries, {query: {"199": 1} for query in queries})

    def encode(texts: Sequence[str]) -> Array:
        return np.stack([vectors[text] for text in texts])

    for block in (1, 2, 9, 67, 150, 200):
        assert retrieval(task, encode, encode, block=block)["ndcg@10"] == pytest.approx(1.0)


def random_task() -> tuple[RetrievalTask, dict[str, Array]]:
    """300 documents, every third of them equal to another, and 20 queries."""
    generator = np.random.default_rng(0)
    vectors = {str(n): generator.normal(size=33).astype(np.float32) for n in range(220)}
    documents = {f"d{n}": str(20 + n % 200) for n in range(300)}
    queries = {f"q{n}": str(n) for n in range(20)}
    relevant = {
        query: {f"d{n}": int(generator.integers(1, 4)) for n in generator.choice(300, 30, replace=False)}
        for query in queries
    }
    return RetrievalTask("random", documents, queries, relevant), vectors


def test_blocks_do_not_change_the_result() -> None:
    task, vectors = random_task()

    def encode(texts: Sequence[str]) -> Array:
        return np.stack([vectors[text] for text in texts])

    whole = retrieval(task, encode, encode)
    assert 0 < whole["ndcg@10"] < whole["recall@100"] < 1
    for block in (1, 7, 101, 299):
        assert retrieval(task, encode, encode, block=block) == whole


def test_queries_and_documents_are_encoded_each_in_their_way() -> None:
    def opposite(texts: Sequence[str]) -> Array:
        return -angle(texts)

    task = RetrievalTask("degrees", FOUR, {"q": "0", "unasked": "90"}, {"q": {"d": 1}})
    asked: list[str] = []

    def encode_query(texts: Sequence[str]) -> Array:
        asked.extend(texts)
        return opposite(texts)

    assert retrieval(task, encode_query, angle)["ndcg@10"] == pytest.approx(1.0)
    assert asked == ["0"]
