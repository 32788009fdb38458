"""Models that run up to a layer's queries, keys and values, and return them: those of one layer or of several.

transformers sends the attention of most models through a registry. The function registered here sees the queries, keys
and values of any of them. It computes attention as usual, keeps the tensors of each wanted call of a forward pass, and
ends the pass at the last: nothing after them is computed. In families outside the registry, hooks on the layers'
projections do the same. A compiled pass is a single graph where attention can be traced: it has no end before the
model's, but torch drops what the projections do not need.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.checks import unreadable_attention
from minilm_cli.models.families import family_of, is_rotary
from minilm_cli.models.inputs import InputAdapter, Inputs
from minilm_cli.models.projections import ProjectionHooks, find_projections, uses_registry
from minilm_cli.ops.attention import Packing, attend_packed, attend_padded, can_be_traced
from minilm_cli.ops.relations import Projections

#: The name of our attention function in transformers' registry.
ATTENTION = "minilm-tap"

#: Largest difference of a factor from 1 that is rounding.
_ROUNDING = 1e-6


class _PassEnded(Exception):
    """The wanted projections are there: the rest of the forward pass is not needed."""


class _Active(threading.local):
    tap: Tap | None = None


_active = _Active()


class Tap(nn.Module):
    """A transformers model whose forward pass returns the projections of some layers' self-attention.

    Attention calls are counted, because some families do not number their layers.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[int], *, rotated: bool = True) -> None:
        """layers: 1-based and rising. rotated: queries and keys as attention compares them, else before their rotation.

        Raises `MinilmError` if the model's projections cannot be read there.
        """
        super().__init__()
        self.model = model
        self.layers = tuple(layers)
        self.family = family_of(model.config)
        self._adapt = InputAdapter(model)
        self.in_registry = uses_registry(model)
        """Whether its attention goes through transformers' registry, and so through `attend`."""
        self._at_call = self.in_registry and (rotated or not is_rotary(model.config))
        self._calls = 0
        self._kept: list[Projections] = []
        self._packing: Packing | None = None
        self._run: Callable[..., None] = self._pass
        if self.in_registry:
            model.set_attn_implementation(ATTENTION)
        if not self._at_call:
            found = find_projections(model, self.layers)
            if found is None:
                raise unreadable_attention(self.family.name)
            if self.in_registry and found[0].normed:
                raise MinilmError(
                    f"relations.rotary: {self.family.name} norms its queries and keys between projection and rotation",
                    hint="Use relations.rotary=after.",
                )
            for modules in found:
                ProjectionHooks(
                    modules, self.family, rotated=rotated, wanted=lambda: _active.tap is self, done=self._keep
                )

    def forward(self, inputs: Inputs) -> tuple[Projections, ...]:
        """Run the model up to the last of the layers; each layer's queries, keys and values as (positions, width).

        The positions are those of `inputs`, flattened. The heads are concatenated in `width`, as the model's own
        projections give them; the keys and values of a grouped-query family are narrower than its queries.
        Raises `MinilmError` if the model has fewer layers.
        """
        outer, _active.tap = _active.tap, self
        self._calls, self._kept = 0, []
        packing = Packing(inputs.lengths, inputs.ids.device) if inputs.is_packed else None
        try:
            self._run(self._adapt(inputs), packing)
        except _PassEnded:
            pass
        finally:
            _active.tap, kept, self._kept = outer, tuple(self._kept), []
        if len(kept) < len(self.layers):
            raise self._missing()
        return kept

    def compile_pass(self) -> None:
        """Compile the pass by torch.compile, for batches of any shape."""
        if not self._at_call:
            # Else what is compiled for a module without hooks is taken for one that has them.
            torch._dynamo.config.skip_nnmodule_hook_guards = False
        self._run = torch.compile(self._pass, dynamic=True)

    def _pass(self, arguments: dict[str, Tensor], packing: Packing | None) -> None:
        # Given as an argument, because a compiled pass takes numbers that it finds in a module for constants.
        self._packing = packing
        self.model(**arguments)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attention as usual, or the end of the pass at the last wanted call; tensors (batch, heads, tokens, width)."""
        self._calls += 1
        if self._at_call and self._calls in self.layers:
            compared = _unscaled(query, options.get("scaling"))
            self._keep(Projections(_join_heads(compared), _join_heads(key), _join_heads(value)))
        # Without a mask, transformers takes a module that does not say otherwise for a causal one; an encoder is not.
        options.setdefault("is_causal", getattr(module, "is_causal", False))
        if self._packing is None:
            return attend_padded(module, query, key, value, mask, **options)
        return attend_packed(self._packing, module, query, key, value, **options), None

    def _keep(self, found: Projections) -> None:
        """Keep a layer's projections; end the pass if it is the last, unless it is being traced."""
        self._kept.append(found)
        if len(self._kept) == len(self.layers) and not torch.compiler.is_compiling():
            raise _PassEnded

    def can_be_traced(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> bool:
        """Whether torch.compile can take the attention of the current pass into its graph."""
        return can_be_traced(self._packing, query, key, value, **options)

    @property
    def is_packed(self) -> bool:
        """Whether the current pass is a packed one."""
        return self._packing is not None

    def _missing(self) -> MinilmError:
        if self._calls == 0:
            return unreadable_attention(self.family.name)
        return MinilmError(f"layer {self.layers[-1]} was requested, and the model has {self._calls}")


def _unscaled(query: Tensor, scaling: float | None) -> Tensor:
    """Queries so that attention's scores are query · key / √(head width), whatever factor the family puts where.

    ESM multiplies its queries by 1/√(head width), and T5's have learnt that factor: both then scale by 1.
    """
    factor = 1.0 if scaling is None else scaling * math.sqrt(query.shape[-1])
    return query if abs(factor - 1) < _ROUNDING else query * factor


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
    tap = _active.tap
    if tap is None:
        output: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return output
    if torch.compiler.is_compiling() and not tap.can_be_traced(query, key, value, **options):
        result: tuple[Tensor, Tensor | None] = _untraced(tap, module, query, key, value, attention_mask, **options)
        return result
    return tap.attend(module, query, key, value, attention_mask, **options)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch has no types for it
def _untraced(tap: Tap, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """`tap.attend` between two graphs of a compiled model."""
    return tap.attend(*arguments, **options)


def _tapped_mask(*arguments: Any, **options: Any) -> Tensor | None:
    """SDPA's mask; none for a packed row, whose mask would have the size of all its tokens squared."""
    if _active.tap is not None and _active.tap.is_packed:
        return None
    mask: Tensor | None = sdpa_mask(*arguments, **options)
    return mask


AttentionInterface.register(ATTENTION, _tapped_attention)
AttentionMaskInterface.register(ATTENTION, _tapped_mask)
