"""Embedding tables whose gradients stay sparse until the optimiser needs them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SparseEmbeddings:
    """Keeps the gradients of a model's embedding tables as the rows that were looked up.

    A dense gradient is mostly zeros, and a new one for each micro-batch took 4% of a step on a CPU.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tables = [module for module in model.modules() if type(module) is nn.Embedding]
        self._gradients: dict[nn.Embedding, Tensor] = {}
        for table in self._tables:
            table.sparse = True

    def densify(self) -> None:
        """Replace the rows by dense gradients, always in the same memory."""
        for table in self._tables:
            rows = table.weight.grad
            if rows is None or not rows.is_sparse:  # a table that is also used whole, as DeBERTa's of positions
                continue
            if table not in self._gradients:
                self._gradients[table] = torch.empty_like(table.weight)
            # Not coalesced first: `index_add_` adds up the parts of a row.
            table.weight.grad = self._gradients[table].zero_().index_add_(0, rows._indices()[0], rows._values())
