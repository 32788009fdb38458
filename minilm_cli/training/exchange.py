"""The all-reduce of a step: gradients, losses and a few numbers of every process, in one buffer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minilm_cli.ops.length_groups import moved
from minilm_cli.training.distributed import World


@dataclass(frozen=True)
class Shared:
    """What all processes found in a step."""

    sums: Tensor
    """Loss and its parts, summed over all sequences."""
    padded_tokens: int
    """Tokens of all processes, padding included."""
    stopped_by: int
    """The number of the signal that stops one of the processes, or 0."""
    budget: int
    """The smallest budget of tokens that a process has come down to."""


class Exchange:
    """Adds up what all processes found in a step, with one all-reduce.

    torch's DistributedDataParallel does more than is needed: it averages, takes several reductions for large models,
    and waits for a backward pass of every process, where one may have nothing to do.
    """

    def __init__(self, world: World, parameters: Iterable[nn.Parameter]) -> None:
        """`parameters`: those whose gradients are added up."""
        self._world, self._parameters = world, list(parameters)
        self._buffer = torch.empty(0)

    def __call__(self, sums: Tensor, *, padded_tokens: int, stopped_by: int, budget: int) -> Shared:
        """Replace each parameter's gradient by the sum over all processes; returns the rest of what they found.

        Numbers go through fp32: they are exact up to 2^24.
        """
        if self._world.size == 1:
            return Shared(sums, padded_tokens, stopped_by, budget)
        numbers = torch.zeros(self._world.size, 3)
        numbers[self._world.rank] = torch.tensor((padded_tokens, stopped_by, budget))
        rest = torch.cat([sums, moved(numbers.flatten(), sums.device)])
        sizes = [parameter.numel() for parameter in self._parameters]
        if not self._buffer.numel():
            self._buffer = torch.empty(sum(sizes) + len(rest), device=sums.device)
        *gradients, tail = torch.split(self._buffer, [*sizes, len(rest)])
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if parameter.grad is None:
                gradient.zero_()
            else:
                gradient.copy_(parameter.grad.flatten())
        tail.copy_(rest)
        self._world.add_up(self._buffer)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        padded, stops, budgets = tail[len(sums) :].view_as(numbers).T.tolist()
        return Shared(tail[: len(sums)].clone(), int(sum(padded)), int(max(stops)), int(min(budgets)))
