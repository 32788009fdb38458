from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from minilm_cli.ops.least_squares import fit_linear, fit_norm, is_norm


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_map_is_found_again(bias: bool) -> None:
    inputs, weight, shift = rows(9000, 5) + 1, rows(3, 5, 1), rows(1, 3, 2) * bias
    found, found_bias = fit_linear(inputs, inputs @ weight.T + shift, bias=bias)
    torch.testing.assert_close(found, weight, rtol=0, atol=1e-3)
    assert (found_bias is not None) == bias
    if found_bias is not None:
        torch.testing.assert_close(found_bias, shift[0], rtol=0, atol=1e-3)


def test_no_other_map_is_nearer() -> None:
    inputs, targets = rows(200, 4), rows(200, 2, 1)
    weight, bias = fit_linear(inputs, targets, bias=True)
    assert bias is not None

    def error(weight: Tensor, bias: Tensor) -> float:
        return float((inputs @ weight.T + bias - targets).square().sum())

    least = error(weight, bias)
    for seed in range(10):
        assert error(weight + 0.01 * rows(2, 4, seed), bias + 0.01 * rows(1, 2, seed)[0]) > least


def test_directions_that_do_not_occur_get_no_weight() -> None:
    inputs = rows(50, 3)
    inputs[:, 2] = 0
    weight, _ = fit_linear(inputs, rows(50, 2, 1), bias=False)
    assert weight.isfinite().all()
    assert not weight[:, 2].any()
    nothing, _ = fit_linear(torch.zeros(5, 3), rows(5, 2), bias=False)
    assert not nothing.any()


@pytest.mark.parametrize(
    "make", [nn.LayerNorm, lambda width: nn.LayerNorm(width, bias=False), nn.RMSNorm, Gemma3RMSNorm]
)
@torch.no_grad()
def test_a_norm_is_found_again(make: Callable[[int], Any]) -> None:
    inputs = rows(300, 6) * torch.arange(1, 7) + 1
    wanted, found = make(6), make(6)
    assert is_norm(wanted)
    for parameter in wanted.parameters():
        parameter.copy_(rows(1, 6, 3)[0])
    fit_norm(found, inputs, wanted(inputs))
    torch.testing.assert_close(found(inputs), wanted(inputs), rtol=1e-4, atol=1e-5)


def test_other_modules_are_no_norms() -> None:
    assert not any(map(is_norm, (nn.Linear(2, 2), nn.Embedding(2, 2), nn.Conv1d(2, 2, 1))))
