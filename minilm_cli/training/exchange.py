"""What the processes exchange in a step: gradients, losses and a few numbers, in one all-reduce and one buffer."""

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

    sums: list[float]
    """Loss and its parts, summed over all sequences."""
    grad_norm: float
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

    def add(self, sums: Tensor, *, padded_tokens: int, stopped_by: int, budget: int) -> Tensor:
        """Replace each parameter's gradient by its sum over all processes; returns the rest, for `read`.

        On a GPU nothing waits for the sums: what is computed from them is queued behind the all-reduce.
        Numbers are sent as fp32, so they are exact up to 2^24.
        """
        numbers = torch.zeros(self._world.size, 3)
        numbers[self._world.rank] = torch.tensor((padded_tokens, stopped_by, budget))
        rest = torch.cat([sums, moved(numbers.flatten(), sums.device)])
        return rest if self._world.size == 1 else self._all_reduce(rest)

    def _all_reduce(self, rest: Tensor) -> Tensor:
        sizes = [parameter.numel() for parameter in self._parameters]
        if not self._buffer.numel():
            self._buffer = torch.empty(sum(sizes) + len(rest), device=rest.device)
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
        return tail

    def read(self, added: Tensor, grad_norm: Tensor) -> Shared:
        """What `add` returned, as numbers, with the norm of the summed gradient.

        The one wait for the device in a step. Raises `Lost` if a process does not take part in the all-reduce.
        """
        self._world.finish()
        *found, norm = torch.cat([added, grad_norm.to(added.device)[None]]).tolist()
        end = len(found) - 3 * self._world.size
        padded, stops, budgets = found[end::3], found[end + 1 :: 3], found[end + 2 :: 3]
        return Shared(found[:end], norm, int(sum(padded)), int(max(stops)), int(min(budgets)))
