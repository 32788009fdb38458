"""A student narrower than its teacher, with weights that compute what the teacher does as nearly as they can.

The student reads a sample of tokens. When its pass reaches a module, the module's weights are fitted, by least squares,
to what the teacher's module of the same name gives for the same tokens, mapped to the student's width (see
`models.narrowing`). So each module makes up for what those before it have lost, and for layers that are left out. The
family's own code decides the order, so families need no code of their own here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.families import family_of
from minilm_cli.models.inputs import InputAdapter, Inputs
from minilm_cli.models.layer_maps import RelationHeads, Widths, maps_of_layer
from minilm_cli.models.layer_pass import (
    Call,
    LayerPass,
    Passed,
    Rows,
    entered,
    hidden_states,
    recording,
    with_weights,
)
from minilm_cli.models.narrowing import residual_map
from minilm_cli.models.projections import find_projections
from minilm_cli.ops.least_squares import fit_linear, fit_norm, is_norm

#: Of the random rotation of the principal directions: the same for every student.
_SEED = 0

_HINT = "Use a student of the teacher's widths and heads, or --init random."


@torch.no_grad()
def shrink(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    sources: Sequence[int],
    tapped: Sequence[int],
    sample: Inputs,
    relations: RelationHeads,
) -> float:
    """Fit the student to the teacher; returns the share of the hidden states' second moments that its width keeps.

    Both are of one family. sources: for each student layer from the first, the teacher's layer
    that it takes over, 1-based; later layers keep their weights. tapped: the teacher's layers whose relations are
    learnt. sample: padded sequences. Besides the models, memory holds about 30 numbers of the teacher's width for each
    token, and one layer's attention.
    Raises `MinilmError` if the family has modules that cannot be fitted.
    """
    with ExitStack() as until_end:
        for model in (student, teacher):
            until_end.callback(model.train, model.training)
            model.eval()
        seen = _Seen.of(teacher, sources[-1], sample)
        spaces = _Spaces(Widths(family_of(teacher.config), teacher.config, student.config), seen)
        _map_tables(student, teacher, spaces)
        fitting = _Fitting(teacher, sources, tapped, relations, seen, spaces)
        fitting.attach(student, until_end)
        student(**InputAdapter(student)(sample))
    if fitting.layers < len(sources):  # SqueezeBERT runs its layers without a call
        raise spaces.unfit(seen.name)
    return spaces.kept


@dataclass(frozen=True)
class _Seen:
    """The teacher's pass over the sample."""

    layers: nn.ModuleList
    name: str
    """Of the list of layers, in both models."""
    calls: Sequence[Call]
    """Of each layer."""
    moments: Tensor
    """Second moments of the hidden states, (hidden, hidden)."""
    outside: Passed
    """Outside of the layers."""
    rows: Rows

    @classmethod
    def of(cls, teacher: PreTrainedModel, last: int, sample: Inputs) -> _Seen:
        """last: the last layer in use; the layers after it may have been dropped."""
        family, hidden = family_of(teacher.config), teacher.config.hidden_size
        stack = family.layer_stack(teacher, teacher.config.num_hidden_layers) or family.layer_stack(teacher, last)
        if stack is None:
            raise MinilmError(
                f"--init teacher: the layers of {family.name} models share their weights: the student needs the"
                " teacher's widths and heads",
                hint=_HINT,
            )
        name, layers = stack
        rows, calls, moments = _real_tokens(sample), [], torch.zeros(hidden, hidden, dtype=torch.float64)

        def add(states: Tensor) -> None:
            # Scaled to one length: where no norm follows the additions, later layers have longer ones.
            scaled = nn.functional.normalize(rows(states).double())
            moments.addmm_(scaled.T, scaled)

        def begin(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            # Gemma's cache would grow if the layer is run again.
            calls.append((arguments, {k: None if isinstance(v, Cache) else v for k, v in keywords.items()}))
            add(entered(arguments, keywords))

        with ExitStack() as hooks:
            for layer in layers[:last]:
                hooks.callback(layer.register_forward_pre_hook(begin, with_kwargs=True).remove)
            hooks.callback(layers[last - 1].register_forward_hook(lambda *found: add(hidden_states(found[-1]))).remove)
            outside = hooks.enter_context(recording(_outside(teacher, name), rows))
            teacher(**InputAdapter(teacher)(sample))
        return cls(layers, name, calls, moments, outside, rows)


def _real_tokens(sample: Inputs) -> Rows:
    """Of a tensor of all tokens the rows of real ones; another tensor as rows."""
    assert sample.mask is not None
    real = sample.mask.flatten().bool()

    def rows(tensor: Tensor) -> Tensor:
        flat = tensor.flatten(0, -2)
        return flat[real] if len(flat) == len(real) else flat

    return rows


def _outside(model: PreTrainedModel, layers: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules with weights outside of the layers."""
    return ((name, part) for name, part in _without_tables(model) if not name.startswith(f"{layers}."))


def _without_tables(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules with weights inside it, but for embeddings, which may be read without a call."""
    return ((name, part) for name, part in with_weights(module) if not isinstance(part, nn.Embedding))


# --- Spaces ------------------------------------------------------------------------------------------------------


class _Spaces:
    """The map of each space outside of attention and units: the residual stream, and that of narrower embeddings."""

    def __init__(self, widths: Widths, seen: _Seen) -> None:
        self.widths, self._seen = widths, seen
        self.residual, self.kept = residual_map(seen.moments, widths.student.hidden_size, seed=_SEED)
        self._found = {widths.teacher.hidden_size: self.residual}

    def of(self, module: str, wide: int, width: int) -> Tensor:
        """The map of what a module gives, `wide` in the teacher and `width` in the student; raises `MinilmError`."""
        found = self._found.get(wide)
        if found is None and wide == width:
            found = torch.eye(wide)
        elif found is None:
            inputs = next((one for one in self._seen.outside.inputs.values() if one.shape[1] == wide), None)
            if inputs is None:
                raise self.unfit(module)
            found, _ = residual_map(inputs.T @ inputs, width, seed=_SEED)
        self._found[wide] = found
        if found.shape != (width, wide):
            raise self.unfit(module)
        return found

    def unfit(self, module: str) -> MinilmError:
        """The error for a module that cannot be of another size."""
        family = self.widths.family.name
        return MinilmError(f"--init teacher: {module} of {family} models cannot be of another size", hint=_HINT)


def _map_tables(student: PreTrainedModel, teacher: PreTrainedModel, spaces: _Spaces) -> None:
    """Map the rows of all embeddings; the student may have fewer rows or more."""
    theirs = dict(teacher.named_modules())
    for name, table in student.named_modules():
        source = theirs.get(name)
        if isinstance(table, nn.Embedding) and isinstance(source, nn.Embedding) and table.weight.requires_grad:
            rows, (_, wide) = min(len(table.weight), len(source.weight)), source.weight.shape
            scale = getattr(source, "embed_scale", 1.0) / getattr(table, "embed_scale", 1.0)  # Gemma's
            table.weight[:rows] = source.weight[:rows] @ spaces.of(name, wide, table.weight.shape[1]).T * scale


# --- The student's pass ------------------------------------------------------------------------------------------


class _Fitting:
    """Hooks that fit the student's modules as its pass reaches them."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        sources: Sequence[int],
        tapped: Sequence[int],
        relations: RelationHeads,
        seen: _Seen,
        spaces: _Spaces,
    ) -> None:
        self._teacher, self._sources, self._tapped = teacher, sources, tapped
        self._relations, self._seen, self._spaces = relations, seen, spaces
        self._layer: _LayerFit | None = None
        self.layers = 0
        """That were fitted."""

    def attach(self, student: PreTrainedModel, hooks: ExitStack) -> None:
        """Register the hooks, to be removed with `hooks`."""
        layers: Any = student.get_submodule(self._seen.name)
        for layer, source in zip(layers, self._sources, strict=False):
            hooks.callback(layer.register_forward_pre_hook(self._begin(layer, source), with_kwargs=True).remove)
            for name, part in _without_tables(layer):
                hooks.callback(part.register_forward_pre_hook(self._in_layer(name)).remove)
            hooks.callback(layer.register_forward_hook(self._end).remove)
        for name, part in _outside(student, self._seen.name):
            hooks.callback(part.register_forward_pre_hook(self._in_model(name)).remove)

    def _begin(self, layer: nn.Module, source: int) -> Callable[..., None]:
        def hook(_: nn.Module, *call: Any) -> None:
            modules = find_projections(self._teacher, [source])
            theirs = self._seen.layers[source - 1]
            found = modules and LayerPass.of(theirs, self._seen.calls[source - 1], modules[0], self._seen.rows)
            if not found:
                raise self._spaces.unfit(type(theirs).__name__)
            relations = self._relations if source in self._tapped else None
            units: Any = layer.get_submodule(found.from_units)
            maps = maps_of_layer(found, self._spaces.widths, self._spaces.residual, units.in_features, relations)
            self._layer = _LayerFit(found, maps, self._seen.rows(entered(*call)), {})

        return hook

    def _end(self, *_: Any) -> None:
        self._layer = None
        self.layers += 1

    def _in_layer(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if self._layer is None or name not in self._layer.theirs.outputs or name in self._layer.inputs:
                return
            inputs = self._layer.inputs[name] = self._seen.rows(arguments[0])
            if not self._copied(module, self._layer.theirs.layer.get_submodule(name)):
                self._fit(name, module, inputs, *self._target(self._layer, name))

        return hook

    def _target(self, layer: _LayerFit, name: str) -> tuple[Tensor, Tensor]:
        """What a module is to give, and which of its outputs the teacher has too."""
        output = layer.theirs.outputs[name]
        if (known := layer.maps.get(name)) is not None:
            return output @ known.T, known.any(1)
        space = self._spaces.of(name, output.shape[1], self._spaces.widths.student.hidden_size)
        target = output @ space.T
        if (reader := layer.theirs.residual(name)) is not None:
            target += layer.theirs.inputs.get(reader, layer.theirs.entered) @ space.T
            target -= layer.inputs.get(reader, layer.entered)
        return target, space.any(1)

    def _in_model(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            output = self._seen.outside.outputs.get(name)
            if output is not None and not self._copied(module, self._teacher.get_submodule(name)):
                space = self._spaces.of(name, output.shape[1], _width(module))
                self._fit(name, module, self._seen.rows(arguments[0]), output @ space.T, space.any(1))

        return hook

    def _copied(self, module: nn.Module, theirs: nn.Module) -> bool:
        """Copy the teacher's weights, if both read and write the same spaces."""
        found, state = module.state_dict(), theirs.state_dict()
        of_head = is_norm(module) and _width(module) != self._spaces.widths.student.hidden_size  # Gemma's
        same = self._spaces.widths.same or of_head
        if same := same and all(found[name].shape == state[name].shape for name in found):
            module.load_state_dict(state)
        return same

    def _fit(self, name: str, module: nn.Module, inputs: Tensor, target: Tensor, known: Tensor) -> None:
        """Fit a module; outputs that the teacher lacks keep their weights."""
        if is_norm(module) and inputs.shape == target.shape:
            fit_norm(module, inputs, target)
        elif isinstance(module, nn.Linear):
            weight, bias = fit_linear(inputs, target, bias=module.bias is not None)
            module.weight[known] = weight[known]
            if bias is not None:
                module.bias[known] = bias[known]
        else:
            raise self._spaces.unfit(name)


@dataclass(frozen=True)
class _LayerFit:
    """A student layer that is being fitted."""

    theirs: LayerPass
    maps: Mapping[str, Tensor]
    """Of the projections and of what enters the units, by name."""
    entered: Tensor
    """The student's hidden states before the layer."""
    inputs: dict[str, Tensor]
    """Of the student's modules so far."""


def _width(module: nn.Module) -> int:
    return module.out_features if isinstance(module, nn.Linear) else len(next(module.parameters()))
