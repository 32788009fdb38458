"""Models that run up to one layer's queries, keys and values, and return them.

transformers sends the attention of nearly every model through a registry. The function registered here sees the
queries, keys and values of whatever family, computes attention as usual until the wanted call of a forward pass, keeps
the tensors of that one and ends the pass: nothing after them is computed. Ignores what is done with the tensors.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from minilm_cli.errors import MinilmError
from minilm_cli.relations import Projections

#: The name to load models with: `attn_implementation=ATTENTION`.
ATTENTION = "minilm-tap"

#: Families that scale their queries before the attention function, which then scales by 1 (ESM's `EsmSelfAttention`).
_SCALES_QUERIES_FIRST = frozenset({"esm"})


class _PassEnded(Exception):
    """The wanted projections are there; what comes after them in the forward pass is not needed."""


class _Active(threading.local):
    tap: RelationTap | None = None


_active = _Active()


class RelationTap(nn.Module):
    """Wraps a transformers model; its forward pass returns the projections of one layer's self-attention."""

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        """`layer` is 1-based. `model` was loaded with `attn_implementation=ATTENTION`."""
        super().__init__()
        self.model = model
        self.layer = layer
        self._calls = 0
        self._kept: Projections | None = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Projections:
        """Run `input_ids` (batch, tokens) up to the layer; queries, keys and values as (batch × tokens, width).

        The heads stand side by side in `width`, as the model's own projections give them; the keys and values of a
        grouped-query family are narrower than its queries. Raises `MinilmError` if the model's attention does not go
        through the registry, or is called fewer than `layer` times.
        """
        outer, _active.tap = _active.tap, self
        self._calls, self._kept = 0, None
        try:
            self.model(input_ids=input_ids, attention_mask=attention_mask)
        except _PassEnded:
            pass
        finally:
            _active.tap = outer
        return self._take()

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attention as usual, or the end of the pass at the wanted call; tensors (batch, heads, tokens, width)."""
        self._calls += 1
        if self._calls == self.layer:
            if self.model.config.model_type in _SCALES_QUERIES_FIRST:
                query = query * query.shape[-1] ** 0.5
            self._kept = Projections(_join_heads(query), _join_heads(key), _join_heads(value))
            raise _PassEnded
        return sdpa_attention_forward(module, query, key, value, mask, **options)

    def _take(self) -> Projections:
        kept, self._kept = self._kept, None
        if kept is None:
            raise self._missing()
        return kept

    def _missing(self) -> MinilmError:
        family = self.model.config.model_type
        if self._calls == 0:
            return MinilmError(
                f"models of the family {family!r} do not use transformers' attention registry",
                hint="BERT, RoBERTa, ELECTRA, DistilBERT, ALBERT, ModernBERT and their relatives do.",
            )
        return MinilmError(f"layer {self.layer} was asked for, and the model has {self._calls}")


def _join_heads(tensor: Tensor) -> Tensor:
    """(batch, heads, tokens, width) to (batch × tokens, heads × width): for most families a view."""
    return tensor.transpose(1, 2).flatten(2).flatten(0, 1)


def _tapped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    if _active.tap is None:
        output: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return output
    return _active.tap.attend(module, query, key, value, attention_mask, **options)


AttentionInterface.register(ATTENTION, _tapped_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def untrained_parameters(tap: RelationTap, *, vocabulary_size: int) -> list[str]:
    """Names of the parameters of `tap.model` that the loss does not reach: they stay as they were initialised.

    The loss ends at the tapped projections, so what comes after them gets no gradient: that layer's attention output,
    feed-forward part and norms, every later layer, and the pooler. Found by trying, not by name.
    """
    was_training = tap.training
    tap.eval()
    with torch.enable_grad():
        device = next(tap.parameters()).device
        tokens = torch.arange(4, device=device)[None, :] % vocabulary_size
        sum(tensor.float().sum() for tensor in tap(tokens, torch.ones_like(tokens))).backward()
    names = [name for name, parameter in tap.model.named_parameters() if parameter.grad is None]
    tap.zero_grad(set_to_none=True)
    tap.train(was_training)
    return names
