"""How well embeddings as they are find the documents that answer queries, by exact search over all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minilm_cli.evaluate.embedding import Encode, unit
from minilm_cli.evaluate.task import RetrievalTask

_NDCG_AT, _RECALL_AT = 10, 100
#: Documents, and cosines, that are held at once at most.
_DOCUMENTS, _COSINES = 2**15, 2**24
#: Cosines are rounded to steps of 1e-6: those of equal texts differ in the last bits, by their places in a block.
_STEPS = 10**6
_POSITION_BITS = 32


def retrieval(
    task: RetrievalTask, encode_query: Encode, encode_document: Encode, *, block: int | None = None
) -> dict[str, float]:
    """nDCG@10 and recall@100 by cosine: means over the queries that have relevant documents.

    As in BEIR, a document with the id of the query is left out of the ranking, and the best possible ranking has all
    relevant documents. Of equal cosines, the document with the greater id comes first, as in trec_eval.

    block: documents that are encoded and ranked together, for bounded memory. The result does not depend on it.
    """
    queries = [query for query, relevant in task.relevant.items() if relevant]
    if block is None:
        block = max(1, min(_DOCUMENTS, _COSINES // len(queries)))
    ndcg, recall = [], []
    for query, ranking in zip(queries, _search(task, queries, encode_query, encode_document, block), strict=True):
        relevant = task.relevant[query]
        found = [relevant.get(document, 0) for document in ranking]
        best = sorted(relevant.values(), reverse=True)
        ndcg.append(_gain(found[:_NDCG_AT]) / _gain(best[:_NDCG_AT]))
        recall.append(np.count_nonzero(found) / len(relevant))
    return {"ndcg@10": float(np.mean(ndcg)), "recall@100": float(np.mean(recall))}


def _search(
    task: RetrievalTask, queries: Sequence[str], encode_query: Encode, encode_document: Encode, block: int
) -> list[list[str]]:
    """For each query, the ids of the first documents, best first."""
    ids = sorted(task.documents)
    asked = unit(encode_query([task.queries[query] for query in queries]))
    kept = _RECALL_AT + 1  # one of them may be the query itself
    # A number holds a rounded cosine and below it the document's position, so that no two are equal.
    best = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(ids), block):
        part = ids[start : start + block]
        cosines = asked @ unit(encode_document([task.documents[document] for document in part])).T
        steps = np.rint(cosines * _STEPS).astype(np.int64)
        best = np.concatenate([best, (steps << _POSITION_BITS) + np.arange(start, start + len(part))], axis=1)
        if best.shape[1] > kept:
            best = np.partition(best, -kept, axis=1)[:, -kept:]
    positions = np.sort(best, axis=1)[:, ::-1] & (2**_POSITION_BITS - 1)
    return [
        [ids[position] for position in row if ids[position] != query][:_RECALL_AT]
        for query, row in zip(queries, positions, strict=True)
    ]


def _gain(relevance: Sequence[int]) -> float:
    """Discounted cumulative gain of documents in this order: the sum of relevance / log2(rank + 1)."""
    return float(np.sum(relevance / np.log2(np.arange(2, len(relevance) + 2))))
