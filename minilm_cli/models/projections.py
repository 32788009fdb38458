"""The modules of a layer that compute queries, keys and values, found by their names, and hooks on them.

For models whose attention does not go through transformers' registry, and for projections before a rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.families import Family, family_of
from minilm_cli.ops.relations import Projections

#: What families call the three projections.
_NAMES = (
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
)


@dataclass(frozen=True)
class ProjectionModules:
    """The attention module of a layer, and those of its children that compute queries, keys and values."""

    attention: nn.Module
    projections: tuple[nn.Module, ...]
    """Three, or one that computes all."""

    @property
    def normed(self) -> bool:
        """Whether queries and keys are normed after their projection (Gemma 3)."""
        return any(name in dict(self.attention.named_children()) for name in ("q_norm", "query_norm"))


def uses_registry(model: PreTrainedModel) -> bool:
    """Whether the model has attention, and it goes through transformers' registry."""
    has_attention = any("Attention" in type(module).__name__ for module in model.modules())
    return has_attention and bool(model._can_set_attn_implementation())


def find_projections(model: PreTrainedModel, layers: Sequence[int]) -> list[ProjectionModules] | None:
    """The projections of some layers' self-attention, or `None` if one has none under a known name.

    layers: 1-based and rising; those after the last may have been dropped. Raises `MinilmError` if the model never had
    so many.
    """
    family, count, last = family_of(model.config), model.config.num_hidden_layers, layers[-1]
    if last > count:
        raise MinilmError(f"layer {last} was requested, and the model has {count}")
    stack = family.layer_stack(model, count) or family.layer_stack(model, last)
    if stack is None:
        return None
    found = []
    for layer in layers:
        modules = _projections_of(stack[1][layer - 1], family)
        if modules is None:
            return None
        found.append(modules)
    return found


def _projections_of(layer: nn.Module, family: Family) -> ProjectionModules | None:
    names = ((family.fused,), *_NAMES) if family.fused else _NAMES
    for module in layer.modules():
        children = dict(module.named_children())
        for some in names:
            if all(name in children for name in some):
                return ProjectionModules(module, tuple(children[name] for name in some))
    return None


class ProjectionHooks:
    """Collects the outputs of a layer's projections during a pass, and hands them over as soon as all are there."""

    def __init__(
        self,
        found: ProjectionModules,
        family: Family,
        *,
        rotated: bool,
        wanted: Callable[[], bool],
        done: Callable[[Projections], None],
    ) -> None:
        """rotated: apply the family's own rotation, if it is outside the registry. wanted: whether to collect."""
        self._found, self._family, self._wanted, self._done = found, family, wanted, done
        self._outputs: dict[nn.Module, Tensor] = {}
        self._arguments: dict[str, Any] = {}
        self._rotate = family.rotate if rotated else None
        for module in found.projections:
            module.register_forward_hook(self._collect)
        found.attention.register_forward_pre_hook(self._begin, with_kwargs=True)

    def _begin(self, _: nn.Module, __: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self._wanted():
            self._outputs, self._arguments = {}, keywords

    def _collect(self, module: nn.Module, _: Any, output: Tensor) -> None:
        if not self._wanted():
            return
        self._outputs[module] = output.transpose(1, 2) if isinstance(module, nn.Conv1d) else output
        if len(self._outputs) == len(self._found.projections):
            self._done(self._projections())

    def _projections(self) -> Projections:
        """Those of the pass, (positions, width)."""
        outputs = tuple(self._outputs[module] for module in self._found.projections)
        attention, arguments = self._found.attention, self._arguments
        self._outputs, self._arguments = {}, {}
        parts = self._family.split(attention, outputs[0]) if len(outputs) == 1 else outputs
        if self._rotate is not None:
            parts = self._rotate(attention, arguments, parts)
        return Projections(*(part.flatten(0, 1) for part in parts))
