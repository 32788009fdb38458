from __future__ import annotations

import os
import subprocess
import sys

import torch
from hypothesis import given
from hypothesis import strategies as st

from minilm_cli.base.seeding import derive


@given(st.integers(0, 2**62), st.lists(st.integers(0, 9) | st.text("abc/", max_size=3), max_size=3))
def test_seed_has_63_bits_and_is_valid_for_torch(seed: int, purpose: list[int | str]) -> None:
    derived = derive(seed, *purpose)
    assert 0 <= derived < 2**63
    assert derived == derive(seed, *purpose)
    torch.Generator().manual_seed(derived)


def test_seeds_of_different_purposes_differ() -> None:
    derived = [derive(seed, purpose, step) for seed in range(20) for purpose in ("a", "b") for step in range(50)]
    assert len(set(derived)) == len(derived)


def test_all_bits_are_used() -> None:
    ones, common_bits = 0, 2**63 - 1
    for step in range(100):
        ones |= derive(42, step)
        common_bits &= derive(42, step)
    assert ones == 2**63 - 1
    assert common_bits == 0


def test_seed_is_the_same_in_another_process() -> None:
    program = "from minilm_cli.base.seeding import derive; print(derive(42, 'dropout', 7))"
    environment = os.environ | {"PYTHONHASHSEED": "123"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == derive(42, "dropout", 7)


def test_derivation_never_changes() -> None:
    # Otherwise runs of earlier versions could not be resumed.
    assert derive(42, "dropout", 1) == 5005696565033842196
