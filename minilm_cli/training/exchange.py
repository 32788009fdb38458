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
    """Results of a step, over all processes."""

    sums: Tensor
    """Loss and its parts, summed over all sequences."""
    padded_tokens: int
    """Tokens of all processes, padding included."""
    stopped_by: int
    """The number of the signal that stops one of the processes, or 0."""
    budget: int
    """The smallest budget of tokens of any process."""


class Exchange:
    """Sums the results of a step over all processes, with one all-reduce.

    torch's DistributedDataParallel does not fit: it averages, splits large models into several reductions, and needs a
    backward pass in every process, although a process may have no sequences in a step.
    """

    def __init__(self, world: World, parameters: Iterable[nn.Parameter]) -> None:
        """`parameters`: those whose gradients are summed."""
        self._world, self._parameters = world, list(parameters)
        self._buffer = torch.empty(0)

    def __call__(self, sums: Tensor, *, padded_tokens: int, stopped_by: int, budget: int) -> Shared:
        """Replace each parameter's gradient by its sum over all processes; returns the other results.

        Numbers are sent as fp32, so they are exact up to 2^24.
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
        pairs = list(zip(self._parameters, gradients, strict=True))
        # A few launches on a GPU, however many parameters there are.
        if empty := [gradient for parameter, gradient in pairs if parameter.grad is None]:
            torch._foreach_zero_(empty)
        found = {gradient: parameter.grad.flatten() for parameter, gradient in pairs if parameter.grad is not None}
        if found:
            torch._foreach_copy_([*found], [*found.values()])
        tail.copy_(rest)
        self._world.all_reduce(self._buffer)
        for parameter, gradient in pairs:
            parameter.grad = gradient.view_as(parameter)
        padded, stops, budgets = tail[len(sums) :].view_as(numbers).T.tolist()
        return Shared(tail[: len(sums)].clone(), int(sum(padded)), int(max(stops)), int(min(budgets)))
