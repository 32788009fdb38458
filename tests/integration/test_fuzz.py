"""Damaged files are read or refused, in bounded memory."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from minilm_cli.tokens import id_lists
from tests.fuzz.targets import INFO, Files, Target, bounded_memory, targets

pytestmark = pytest.mark.slow

#: Examples of a target; `python -m tests.fuzz` tries more.
EXAMPLES = 80


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_damaged_files_are_opened_or_refused(target: Target) -> None:
    outcomes = []

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(files=target.files)
    def examples(files: Files) -> None:
        outcomes.append(target.opens(files))

    with bounded_memory():
        examples()
    assert set(outcomes) == {True, False}


def test_an_allocation_beyond_the_bound_fails() -> None:
    with bounded_memory(), pytest.raises(MemoryError):
        bytes(2**30)


def test_the_longest_lists_are_read_in_bounded_memory() -> None:
    ids = (id_lists.LONGEST_LIST - len("[1]\n")) // len("1,")
    longest = b"[" + b"1," * ids + b"1]\n"
    # It takes 230 MiB in a new process, most of it for the histogram of two million lengths.
    with tempfile.TemporaryDirectory() as folder, bounded_memory(400 * 2**20):
        file = Path(folder, "ids.jsonl.gz")
        file.write_bytes(gzip.compress(longest, 1) * 10)
        id_lists.convert_token_lists(file, Path(folder, "store"), INFO)
