"""Models that run up to one layer's queries, keys and values, and return them.

transformers sends the attention of nearly every model through a registry. The function registered here sees the
queries, keys and values of whatever family, computes attention as usual until the wanted call of a forward pass, keeps
the tensors of that one and ends the pass: nothing after them is computed. Ignores what is done with the tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.families import _SCALES_QUERIES_FIRST, first_position
from minilm_cli.ops.attention import Packing, attend_packed, attend_padded
from minilm_cli.ops.relation_loss import Projections

#: The name to load models with: `attn_implementation=ATTENTION`.
ATTENTION = "minilm-tap"


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
        self._first_position = first_position(model)
        self._calls = 0
        self._kept: Projections | None = None
        self._packing: Packing | None = None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        lengths: tuple[int, ...] | None = None,
    ) -> Projections:
        """Run the model up to the layer; queries, keys and values as (positions, width).

        Either padded: `input_ids` and `attention_mask`, (batch, tokens), for batch × tokens positions. Or packed, for a
        model that `packs`: sequences one after the other in one row, `input_ids` and `position_ids` (counted from 0 in
        each sequence), (1, positions), and the `lengths` of the sequences.

        The heads stand side by side in `width`, as the model's own projections give them; the keys and values of a
        grouped-query family are narrower than its queries. Raises `MinilmError` if the model's attention does not go
        through the registry, or is called fewer than `layer` times.
        """
        inputs = {"input_ids": input_ids}
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        if position_ids is not None:
            inputs["position_ids"] = position_ids + self._first_position
        outer, _active.tap = _active.tap, self
        self._calls, self._kept = 0, None
        self._packing = None if lengths is None else Packing(lengths, input_ids.device)
        try:
            self.model(**inputs)
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
        # Without a mask transformers takes a module that does not say otherwise for a causal one; an encoder is not.
        options.setdefault("is_causal", getattr(module, "is_causal", False))
        if self._packing is None:
            return attend_padded(module, query, key, value, mask, **options)
        return attend_packed(self._packing, module, query, key, value, **options), None

    @property
    def is_packed(self) -> bool:
        """Whether the pass under way is a packed one."""
        return self._packing is not None

    def packs(self) -> bool:
        """Whether a packed pass gives what a padded one gives, found by trying both.

        It does where a token's place is told by `position_ids` alone. ESM also looks at what else is in the row.
        """
        config = self.model.config
        if getattr(config, "token_dropout", False):
            return False
        device, pad_id = next(self.parameters()).device, config.pad_token_id or 0
        ids = torch.tensor([number % config.vocab_size for number in range(9) if number != pad_id], device=device)
        padded = torch.full((2, 5), pad_id, device=device)
        padded[0], padded[1, :3] = ids[:5], ids[5:8]
        mask = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]], device=device)
        positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]], device=device)
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                apart = self(padded, mask)
                together = self(ids[None, :8], position_ids=positions, lengths=(5, 3))
        except (TypeError, ValueError, IndexError, RuntimeError):
            return False  # the family takes no position_ids, or not these
        finally:
            self.train(was_training)
        return all(
            torch.allclose(ours, theirs[:8], rtol=1e-3, atol=1e-4) for ours, theirs in zip(together, apart, strict=True)
        )

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


def _tapped_mask(*arguments: Any, **options: Any) -> Tensor | None:
    """SDPA's mask; none for a packed row, which would have one the size of all its tokens squared."""
    if _active.tap is not None and _active.tap.is_packed:
        return None
    mask: Tensor | None = sdpa_mask(*arguments, **options)
    return mask


# A compiled model calls the attention as it is: its shapes are new with each micro-batch. torch has no types for that.
AttentionInterface.register(ATTENTION, torch.compiler.disable(_tapped_attention))  # type: ignore[no-untyped-call]


AttentionMaskInterface.register(ATTENTION, _tapped_mask)


def untrained_parameters(tap: RelationTap, letters: Iterable[str]) -> list[str]:
    """Names of the parameters of `tap.model` that the loss does not reach: they stay as they were initialised.

    The loss ends at the tapped projections whose `letters` (of q, k and v) the relations use. What comes after them
    gets no gradient: that layer's attention output, feed-forward part and norms, every later layer, and the pooler.
    Found by trying, not by name.
    """
    was_training = tap.training
    tap.eval()
    with torch.enable_grad():
        device = next(tap.parameters()).device
        tokens = torch.arange(4, device=device)[None, :] % tap.model.config.vocab_size
        found = dict(zip("qkv", tap(tokens, torch.ones_like(tokens)), strict=True))
        total = torch.stack([found[letter].float().sum() for letter in letters]).sum()
        total.backward()  # type: ignore[no-untyped-call]  # it has no types
    names = [name for name, parameter in tap.model.named_parameters() if parameter.grad is None]
    tap.zero_grad(set_to_none=True)
    tap.train(was_training)
    return names
