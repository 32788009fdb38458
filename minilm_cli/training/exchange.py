"""The all-reduce of a step: gradients, losses and counts of all processes in one buffer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from minilm_cli.ops.length_groups import moved
from minilm_cli.training.distributed import World


class _Exchange:
    """Adds up what all processes found in a step, in one all-reduce: gradients, losses, and a few numbers of each.

    torch's DistributedDataParallel does more than is wanted: it averages, takes several reductions for large models,
    and waits for a backward pass of every process, where one may have nothing to do.
    """

    def __init__(self, world: World, parameters: Iterable[nn.Parameter]) -> None:
        self._world, self._parameters = world, list(parameters)
        self._buffer = torch.empty(0)

    def __call__(self, sums: Tensor, numbers: tuple[int, ...]) -> tuple[Tensor, list[tuple[int, ...]]]:
        """Put the whole gradient into the parameters; returns the sum of `sums`, and the `numbers` of each rank.

        Numbers come through fp32: they are exact up to 2^24.
        """
        sizes = [parameter.numel() for parameter in self._parameters]
        of_ranks = torch.zeros(self._world.size, len(numbers))
        of_ranks[self._world.rank] = torch.tensor(numbers)
        if not self._buffer.numel():
            self._buffer = torch.empty(sum(sizes) + len(sums) + of_ranks.numel(), device=sums.device)
        *gradients, rest = torch.split(self._buffer, [*sizes, len(sums) + of_ranks.numel()])
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if parameter.grad is None:
                gradient.zero_()
            else:
                gradient.copy_(parameter.grad.flatten())
        rest.copy_(torch.cat([sums, moved(of_ranks.flatten(), sums.device)]))
        self._world.add_up(self._buffer)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        added, found = rest[: len(sums)].clone(), rest[len(sums) :].view_as(of_ranks)
        return added, [tuple(map(int, row)) for row in found.tolist()]
