"""Input files, and the samples that are read from them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest

from minilm_cli.base.errors import MinilmError
from minilm_cli.corpus.sources import Batch, Source, find_sources

try:
    from compression import zstd
except ImportError:
    from backports import zstd

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
}


def put(name: str, content: bytes) -> str:
    """Write a file, and its folders; returns its name."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content)
    return name


def source(name: str, field: str | None = None) -> Source:
    (single,) = find_sources([name], field)
    return single


def read(name: str, field: str | None = None, count: int = 100) -> list[bytes]:
    """All samples of an input; the parts of a sample are joined."""
    return [text for _, text in numbered(source(name, field).batches(count))]


def numbered(batches: Iterator[Batch]) -> list[tuple[int, bytes]]:
    """Number and text of each sample; the parts of a sample are joined."""
    samples: list[tuple[int, bytes]] = []
    continues = False
    for batch in batches:
        first, *others = batch.lines
        number = batch.place.number
        if continues:
            assert (samples[-1][0], others) == (number, [])
            samples[-1] = (number, samples[-1][1] + first)
        else:
            samples += enumerate(batch.lines, number)
        continues = batch.continues
        assert not (continues and others)
    assert not continues
    return samples


@contextmanager
def changed(module: ModuleType, **constants: int) -> Iterator[None]:
    with mock.patch.multiple(module, **constants):
        yield


@contextmanager
def refused(message: str, where: str | None = None, hint: str = "", kind: type = MinilmError) -> Iterator[None]:
    with pytest.raises(kind, match=re.escape(message)) as caught:
        yield
    assert (caught.value.where, type(caught.value)) == (where, kind)
    assert hint in (caught.value.hint or "")
