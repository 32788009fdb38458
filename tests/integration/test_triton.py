"""The fused relation loss, without a GPU: see `tests.fused_kernels`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")]


def run(task: str, **environment: str) -> Any:
    command = [sys.executable, "-m", "tests.fused_kernels", task]
    done = subprocess.run(
        command, env=os.environ | environment, check=False, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_triton_kernels_agree_with_float64() -> None:
    found = run("interpret", TRITON_INTERPRET="1")
    assert len(found["errors"]) >= 10
    assert {name: loss for name, (loss, _) in found["errors"].items() if loss > 1e-6} == {}
    assert {name: gradient for name, (_, gradient) in found["errors"].items() if gradient > 1e-5} == {}
    assert found["repeats"]
    assert found["padding"] == 0
    assert found["agrees"]
    assert not found["agrees if wrong"]


def test_triton_kernels_compile_without_spilling_registers() -> None:
    found = run("compile", TRITON_INTERPRET="0")
    assert {
        architecture for name in found for architecture in ("sm_80", "sm_90", "sm_100") if architecture in name
    } == {
        "sm_80",
        "sm_90",
        "sm_100",
    }
    assert {name: numbers for name, numbers in found.items() if numbers["spilled"]} == {}
