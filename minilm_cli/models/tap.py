"""Models that run up to one layer's queries, keys and values, and return them.

transformers sends the attention of nearly every model through a registry. The function registered here sees the
queries, keys and values of any family. It computes attention as usual until the wanted call of a forward pass, keeps
the tensors of that call and ends the pass: nothing after them is computed.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.checks import unreadable_attention
from minilm_cli.models.families import family_of
from minilm_cli.models.inputs import InputAdapter, Inputs
from minilm_cli.ops.attention import Packing, attend_packed, attend_padded
from minilm_cli.ops.relations import Projections

#: The name to load models with: `attn_implementation=ATTENTION`.
ATTENTION = "minilm-tap"


class Tap(nn.Module, ABC):
    """A transformers model whose forward pass returns the projections of one layer's self-attention."""

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        """`layer` is 1-based."""
        super().__init__()
        self.model = model
        self.layer = layer
        self.family = family_of(model.config)

    @abstractmethod
    def forward(self, inputs: Inputs) -> Projections:
        """Run the model up to the layer; queries, keys and values as (positions, width).

        The positions are those of `inputs`, flattened. The heads are concatenated in `width`, as the model's own
        projections give them; the keys and values of a grouped-query family are narrower than its queries.
        """

    def packs(self) -> bool:
        """Whether a packed pass gives what a padded one gives, found by trying both.

        It does where `position_ids` alone tell a token's place. ESM also looks at the other tokens of the row.
        """
        if self.family.needs_own_row(self.model.config):
            return False
        pad_id = self.model.config.pad_token_id or 0
        ids = np.array([number % self.model.config.vocab_size for number in range(9) if number != pad_id])
        sequences = [ids[:5], ids[5:8]]
        device, was_training = next(self.parameters()).device, self.training
        self.eval()
        try:
            with torch.no_grad():
                padded = self(Inputs.padded(sequences).to(device))
                packed = self(Inputs.packed(sequences).to(device))
        except (TypeError, ValueError, IndexError, RuntimeError):
            return False  # the family takes no position_ids, or not these
        finally:
            self.train(was_training)
        return all(
            torch.allclose(ours, theirs[:8], rtol=1e-3, atol=1e-4) for ours, theirs in zip(packed, padded, strict=True)
        )

    def untrained_parameters(self, letters: Iterable[str]) -> list[str]:
        """Names of the model's parameters that the loss does not reach: they stay as they were initialised.

        The loss ends at the tapped projections whose `letters` (of q, k and v) the relations use. Everything after
        them gets no gradient: that layer's attention output, feed-forward part and norms, every later layer, and the
        pooler. Found by trying, not by name.
        """
        device, was_training = next(self.parameters()).device, self.training
        self.eval()
        with torch.enable_grad():
            ids = np.arange(4) % self.model.config.vocab_size
            found = dict(zip("qkv", self(Inputs.padded([ids]).to(device)), strict=True))
            total = torch.stack([found[letter].float().sum() for letter in letters]).sum()
            total.backward()  # type: ignore[no-untyped-call]  # it has no types
        names = [name for name, parameter in self.model.named_parameters() if parameter.grad is None]
        self.zero_grad(set_to_none=True)
        self.train(was_training)
        return names

    def widths(self) -> dict[str, int]:
        """The width of the tapped queries, keys and values, by letter, found by a pass over one token."""
        was_training = self.training
        self.eval()
        with torch.no_grad():
            found = self(Inputs.padded([np.ones(1, dtype=np.int64)]).to(next(self.parameters()).device))
        self.train(was_training)
        return {letter: tensor.shape[1] for letter, tensor in zip("qkv", found, strict=True)}


class _PassEnded(Exception):
    """The wanted projections are there: the rest of the forward pass is not needed."""


class _Active(threading.local):
    tap: RegistryTap | None = None


_active = _Active()


class RegistryTap(Tap):
    """Taps a model, loaded with `attn_implementation=ATTENTION`, through transformers' attention registry.

    Calls are counted, because some families do not number their layers. The forward pass raises `MinilmError` if the
    model's attention does not go through the registry, or is called fewer than `layer` times.
    """

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        """`layer` is 1-based."""
        super().__init__(model, layer)
        self._adapt = InputAdapter(model)
        self._calls = 0
        self._kept: Projections | None = None
        self._packing: Packing | None = None

    def forward(self, inputs: Inputs) -> Projections:
        """As every tap."""
        outer, _active.tap = _active.tap, self
        self._calls, self._kept = 0, None
        self._packing = Packing(inputs.lengths, inputs.ids.device) if inputs.is_packed else None
        try:
            self.model(**self._adapt(inputs))
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
            query = self.family.unscaled(query)
            self._kept = Projections(_join_heads(query), _join_heads(key), _join_heads(value))
            raise _PassEnded
        # Without a mask, transformers takes a module that does not say otherwise for a causal one; an encoder is not.
        options.setdefault("is_causal", getattr(module, "is_causal", False))
        if self._packing is None:
            return attend_padded(module, query, key, value, mask, **options)
        return attend_packed(self._packing, module, query, key, value, **options), None

    def _take(self) -> Projections:
        kept, self._kept = self._kept, None
        if kept is None:
            raise self._missing()
        return kept

    @property
    def is_packed(self) -> bool:
        """Whether the current pass is a packed one."""
        return self._packing is not None

    def _missing(self) -> MinilmError:
        if self._calls == 0:
            return unreadable_attention(self.family.name)
        return MinilmError(f"layer {self.layer} was requested, and the model has {self._calls}")


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
    """SDPA's mask; none for a packed row, whose mask would have the size of all its tokens squared."""
    if _active.tap is not None and _active.tap.is_packed:
        return None
    mask: Tensor | None = sdpa_mask(*arguments, **options)
    return mask


# A compiled model calls the attention as it is: its shapes change with each micro-batch. torch has no types for that.
AttentionInterface.register(ATTENTION, torch.compiler.disable(_tapped_attention))  # type: ignore[no-untyped-call]
AttentionMaskInterface.register(ATTENTION, _tapped_mask)
