"""What goes through the modules of a layer when the model reads a sample, and what each module is for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from minilm_cli.models.families import Family
from minilm_cli.models.projections import ProjectionModules
from minilm_cli.ops.least_squares import is_norm

Rows = Callable[[Tensor], Tensor]
"""Of a module's input or output those of real tokens, (tokens, width)."""

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments and keywords of a module's call."""


def hidden_states(result: Any) -> Tensor:
    """The hidden states that a layer returns, alone or first of several."""
    found: Tensor = result[0] if isinstance(result, tuple) else result
    return found


def entered(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
    """The hidden states that a layer is called with."""
    found: Tensor = arguments[0] if arguments else keywords["hidden_states"]
    return found


def with_weights(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules inside it that have parameters of their own, and their names."""
    for name, part in module.named_modules():
        if next(part.parameters(recurse=False), None) is not None:
            yield name, part


@dataclass
class Passed:
    """What went through the modules with weights, by name, in the order of their first call."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def recording(parts: Iterator[tuple[str, nn.Module]], rows: Rows) -> Iterator[Passed]:
    """Keep what goes through some modules, at their first call."""
    passed = Passed()

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if name not in passed.outputs and isinstance(output, Tensor):
                passed.inputs[name], passed.outputs[name] = rows(arguments[0]), rows(output)

        return hook

    with ExitStack() as hooks:
        for name, part in parts:
            hooks.callback(part.register_forward_hook(keep(name)).remove)
        yield passed


@dataclass(frozen=True)
class LayerPass:
    """A layer's pass, and the roles of its modules, found by the order in which they are called."""

    layer: nn.Module
    attention: nn.Module
    entered: Tensor
    """Hidden states before and after the layer, (tokens, width)."""
    left: Tensor
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    projections: tuple[str, ...]
    """To queries, keys and values: three, or one that computes all."""
    attention_output: str
    to_units: tuple[str, ...]
    """Into the feed-forward units: one, or two if they are gated."""
    from_units: str

    @classmethod
    def of(cls, layer: nn.Module, call: Call, modules: ProjectionModules, rows: Rows) -> LayerPass | None:
        """Run the layer once more with the same arguments; `None` if its modules are not those of the usual layer."""
        arguments, keywords = call
        with recording(with_weights(layer), rows) as passed:
            left = rows(hidden_states(layer(*arguments, **keywords)))
        parts = dict(layer.named_modules())
        names = tuple(next(name for name, part in parts.items() if part is one) for one in modules.projections)
        linear = [name for name in passed.outputs if isinstance(parts[name], nn.Linear)]
        others = [name for name in linear if name not in names]
        known = all(isinstance(part, nn.Linear | nn.Embedding) or is_norm(part) for _, part in with_weights(layer))
        if not known or not {*names} <= {*linear} or len(others) not in (3, 4):
            return None
        output, *to_units, from_units = others
        before = rows(entered(*call))
        projected = passed.inputs, passed.outputs, names
        return cls(layer, modules.attention, before, left, *projected, output, tuple(to_units), from_units)

    def weight(self, name: str) -> Tensor:
        """The matrix of a linear module."""
        found: Tensor = self.layer.get_submodule(name).weight  # type: ignore[assignment]  # torch types it as any module
        return found

    def queries_keys_values(self, family: Family) -> dict[str, Tensor]:
        """What the projections give, by letter."""
        outputs = [self.outputs[name] for name in self.projections]
        parts = outputs if len(outputs) > 1 else family.split(self.attention, outputs[0])
        return dict(zip("qkv", parts, strict=True))

    def residual(self, writer: str) -> str | None:
        """The module that is the first to read the hidden states to which the output of `writer` is added.

        An empty name means what enters the layer; `None`, that the output is not added, or not as it is (Gemma 3).
        """
        if writer not in (self.attention_output, self.from_units):
            return None
        parts, order = dict(self.layer.named_modules()), list(self.outputs)
        norms = [name for name in order if is_norm(parts[name]) and self.outputs[name].shape == self.left.shape]
        first = order.index(self.to_units[0])
        if norms and _agree(self.left, self.outputs[norms[-1]]):  # a norm after each addition, as in BERT
            return "" if writer == self.attention_output else self.to_units[0]
        before = [name for name in norms if order.index(name) < first]
        if before and _agree(self.left, self.inputs[before[-1]] + self.outputs[self.from_units]):
            return "" if writer == self.attention_output else before[-1]
        return None


def _agree(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))
