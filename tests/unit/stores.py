"""Small token stores and their batch streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from minilm_cli.tokens.mixture import Mixture
from minilm_cli.tokens.store import TokenizerInfo, TokenStore, TokenStoreWriter
from minilm_cli.training.batches import BatchStream


def store_of(folder: Path, lengths: list[int], *, shard_tokens: int = 64) -> TokenStore:
    """Sequences of these lengths; the ids of each are 1, 2, 3 …, and the last is the special 99."""
    info = TokenizerInfo(vocabulary_size=100, special_ids=[99])
    writer = TokenStoreWriter(folder, info, 512, shard_tokens=shard_tokens)
    writer.add(np.array([token for length in lengths for token in (*range(1, length), 99)]), np.array(lengths))
    writer.close()
    return TokenStore(folder)


def stream(data: Mixture | TokenStore, **options: Any) -> BatchStream:
    defaults = {"seed": 1, "batch_size": 8, "micro_batch_tokens": 64, "max_length": 30}
    return BatchStream(data, **defaults | options)


def held_out(steps: BatchStream) -> list[int]:
    """The indices of the held-out sequences."""
    return [index for batch in steps.held_out() for index in batch.indices.tolist()]


def sequences(path: Path) -> list[list[int]]:
    """All sequences of a valid token store."""
    store = TokenStore(path)
    store.verify()
    return [store[index].tolist() for index in range(len(store))]


def contents(folder: Path) -> dict[str, bytes]:
    """The content of each file in a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}
