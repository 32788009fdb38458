"""A plain trainer, the way MiniLMv2 is usually written: what the benchmarks compare with.

The batch is padded to its longest sequence, everything is fp32, both models run all layers and return all states,
and autograd differentiates a masked `log_softmax` and `kl_div` over scores of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel

HEADS = 48


def relation_loss(teacher: list[Tensor], student: list[Tensor], mask: Tensor, heads: int = HEADS) -> Tensor:
    """Mean over sequences of the QQ + KK + VV loss; tensors (batch, tokens, width), mask (batch, tokens)."""
    bias = torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, torch.finfo(torch.float32).min)[
        :, None, None, :
    ]
    total = torch.zeros((), device=mask.device)
    for ours, theirs in zip(student, teacher, strict=True):
        log_p, log_q = (_scores(x, heads, bias).log_softmax(-1) for x in (theirs, ours))
        rows = functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean(1)
        total = total + ((rows * mask).sum(1) / mask.sum(1)).mean()
    return total


def _scores(states: Tensor, heads: int, bias: Tensor) -> Tensor:
    split = states.view(*states.shape[:2], heads, -1).transpose(1, 2)
    return split @ split.transpose(2, 3) / split.shape[-1] ** 0.5 + bias


class PlainTrainer:
    """One optimiser step at a time, on padded batches."""

    def __init__(self, teacher: BertModel, student: BertModel) -> None:
        self.teacher, self.student = teacher.eval(), student.train()
        self._kept: dict[str, list[Tensor]] = {}
        for name, model in (("teacher", teacher), ("student", student)):
            attention = model.encoder.layer[-1].attention.self
            for projection in (attention.query, attention.key, attention.value):
                projection.register_forward_hook(self._keeper(name))
        self._optimizer = torch.optim.AdamW(student.parameters(), lr=6e-4, eps=1e-6, weight_decay=0.01)

    def _keeper(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            self._kept.setdefault(name, []).append(output)

        return keep

    def step(self, input_ids: Tensor, mask: Tensor) -> float:
        """Train on one padded batch, (batch, tokens); returns the loss."""
        self._kept.clear()
        with torch.no_grad():
            self.teacher(input_ids=input_ids, attention_mask=mask, output_hidden_states=True)
        self.student(input_ids=input_ids, attention_mask=mask, output_hidden_states=True)
        loss = relation_loss(self._kept["teacher"], self._kept["student"], mask)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self._optimizer.step()
        return loss.item()
