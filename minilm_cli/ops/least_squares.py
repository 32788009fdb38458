"""Weights that reproduce given outputs as well as they can, by least squares."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

#: Added to the diagonal of the inputs' second moments, as a share of its mean: directions that hardly occur get none.
_RIDGE = 1e-4

#: Rows that are converted to float64 at a time.
_ROWS = 4096


def fit_linear(inputs: Tensor, targets: Tensor, *, bias: bool) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias (out) of the linear map nearest to `targets`, (rows, out), from `inputs`, (rows, in).

    Minimises the squared error, with a small ridge penalty on the weight; computed in float64.
    """
    width, out = inputs.shape[1], targets.shape[1]
    mean_in = inputs.mean(0, dtype=torch.float64) if bias else inputs.new_zeros(width, dtype=torch.float64)
    mean_out = targets.mean(0, dtype=torch.float64) if bias else inputs.new_zeros(out, dtype=torch.float64)
    moments = inputs.new_zeros(width, width, dtype=torch.float64)
    products = inputs.new_zeros(width, out, dtype=torch.float64)
    for begin in range(0, len(inputs), _ROWS):
        rows = slice(begin, begin + _ROWS)
        centred = inputs[rows] - mean_in
        moments.addmm_(centred.T, centred)
        products.addmm_(centred.T, targets[rows] - mean_out)
    moments.diagonal().add_(_RIDGE * moments.diagonal().mean() + torch.finfo(torch.float32).tiny)
    weight = torch.linalg.solve(moments, products).T
    found = (mean_out - weight @ mean_in).to(inputs.dtype) if bias else None
    return weight.to(inputs.dtype), found


def fit_norm(norm: Any, inputs: Tensor, targets: Tensor) -> None:
    """Set weight and bias of a norm so that its outputs are nearest to `targets`, component by component.

    norm: a layer norm or RMS norm, with a bias or without; whatever it does, its output must be linear in its weight.
    inputs, targets: (rows, width).
    """
    weight, bias = norm.weight, getattr(norm, "bias", None)
    weight.zero_()
    if bias is not None:
        bias.zero_()
    constant = norm.forward(inputs)  # not by a call, which would run hooks. Gemma adds 1 to its weights.
    weight.fill_(1.0)
    normed = norm.forward(inputs) - constant
    wanted = targets - constant
    mean, mean_wanted = (0.0, 0.0) if bias is None else (normed.mean(0), wanted.mean(0))
    centred = normed - mean
    weight.copy_((centred * (wanted - mean_wanted)).sum(0) / centred.square().sum(0).clamp_min(1e-12))
    if bias is not None:
        bias.copy_(mean_wanted - weight * mean)


def is_norm(module: nn.Module) -> bool:
    """Whether a module scales each component by a weight, and may add a bias."""
    parameters = dict(module.named_parameters(recurse=False))
    return parameters.keys() <= {"weight", "bias"} and all(value.dim() == 1 for value in parameters.values())
