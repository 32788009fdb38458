"""The maps of what the modules inside a layer give, from the teacher's widths to the student's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from minilm_cli.models import narrowing
from minilm_cli.models.families import Family, HeadSizes, is_rotary
from minilm_cli.models.layer_pass import LayerPass


@dataclass(frozen=True)
class RelationHeads:
    """The relations that a tapped layer is to keep: how many heads, and which of `q`, `k` and `v`."""

    count: int
    letters: frozenset[str]


@dataclass(frozen=True)
class Widths:
    """Teacher and student, as far as the maps of a layer depend on them."""

    family: Family
    teacher: PreTrainedConfig
    student: PreTrainedConfig

    @property
    def heads(self) -> tuple[HeadSizes, HeadSizes]:
        """The attention heads of both."""
        return self.family.head_sizes(self.teacher), self.family.head_sizes(self.student)

    @property
    def same(self) -> bool:
        """Whether hidden states and attention heads are the same in both."""
        theirs, ours = self.heads
        return theirs == ours and self.teacher.hidden_size == self.student.hidden_size

    @property
    def factor(self) -> float:
        """What products of queries and keys are to be multiplied by, for scores of the same size."""
        return self.family.score_scale(self.teacher) / self.family.score_scale(self.student)


def maps_of_layer(
    found: LayerPass, widths: Widths, space: Tensor, units: int, relations: RelationHeads | None
) -> dict[str, Tensor]:
    """The maps of the projections and of what enters the feed-forward units, (student's width, teacher's), by name.

    space: the map of the residual stream. units: the student's. relations: of a tapped layer.
    """
    parts = found.queries_keys_values(widths.family)
    maps = _of_heads(found, parts, widths, space)
    if relations is not None:
        maps |= _of_relations(parts, maps, widths, relations)
    each = [maps[letter] for letter in "qkv"]
    named = dict(zip(found.projections, each if len(found.projections) > 1 else [_diagonal(*each)], strict=True))
    kept = narrowing.unit_map(found.inputs[found.from_units], space @ found.weight(found.from_units), units)
    for name in found.to_units:  # a gated part may compute gates and units together
        named[name] = _diagonal(*[kept] * (found.outputs[name].shape[1] // kept.shape[1]))
    return named


def _of_heads(found: LayerPass, parts: Mapping[str, Tensor], widths: Widths, space: Tensor) -> dict[str, Tensor]:
    """The maps that keep attention: each of the student's heads is one of the teacher's, those that write most."""
    theirs, ours = widths.heads
    output = (space @ found.weight(found.attention_output)).chunk(theirs.count, dim=1)
    context = found.inputs[found.attention_output].chunk(theirs.count, dim=1)
    written = torch.stack([(one @ other.T).square().mean() for one, other in zip(context, output, strict=True)])
    query, key, value = (part.chunk(part.shape[1] // theirs.width, dim=1) for part in parts.values())
    maps = {
        letter: torch.zeros(count * ours.width, part.shape[1])
        for (letter, part), count in zip(parts.items(), (ours.count, ours.groups, ours.groups), strict=True)
    }
    for place, (group, heads) in enumerate(_chosen(written, theirs, ours)):
        if is_rotary(widths.teacher):
            turned = widths.family.rotates_neighbours
            of_query = of_key = narrowing.rotary_map(theirs.width, ours.width, neighbours=turned, factor=widths.factor)
        else:
            queries = torch.cat([query[head] for head in heads])
            of_query, of_key = narrowing.attention_maps(queries, key[group], ours.width, factor=widths.factor)
        of_value = narrowing.value_map(value[group], torch.cat([output[head] for head in heads]), ours.width)
        for number, head in enumerate(heads, start=place * len(heads)):
            _block(maps["q"], number, head, of_query.shape).copy_(of_query)
        _block(maps["k"], place, group, of_key.shape).copy_(of_key)
        _block(maps["v"], place, group, of_value.shape).copy_(of_value)
    return maps


def _chosen(written: Tensor, theirs: HeadSizes, ours: HeadSizes) -> Iterator[tuple[int, list[int]]]:
    """For each of the student's heads of keys and values one of the teacher's, and the heads of queries that share it.

    written: how much each of the teacher's heads writes.
    """
    groups = written.view(theirs.groups, -1)
    for group in _strongest(groups.sum(1), ours.groups):
        first = group * groups.shape[1]
        yield group, [first + head for head in _strongest(groups[group], ours.count // ours.groups)]


def _of_relations(
    parts: Mapping[str, Tensor], maps: Mapping[str, Tensor], widths: Widths, relations: RelationHeads
) -> dict[str, Tensor]:
    """The maps that keep the relations, whatever the attention heads are (MiniLMv2, section 3.1).

    Those of queries and keys fit each other, so that attention is kept too. Rotated ones stay as they are: their pairs
    of components belong together.
    """
    letters = relations.letters | ({"q", "k"} if relations.letters & {"q", "k"} else set())
    if is_rotary(widths.teacher):
        letters -= {"q", "k"}
    split = {letter: parts[letter].chunk(relations.count, dim=1) for letter in sorted(letters)}
    found = {letter: _of_relation_heads(heads, len(maps[letter])) for letter, heads in split.items()}
    if "q" in found:
        found["k"] = list(map(narrowing.aligned, found["k"], found["q"]))
        theirs, ours = widths.heads
        # A relation takes queries with the factor that the family's attention has left out (T5).
        factor = widths.factor * (theirs.width / ours.width) ** 0.5
        found["q"] = [factor * one for one in found["q"]]
    return {letter: _diagonal(*heads) for letter, heads in found.items()}


def _of_relation_heads(heads: Sequence[Tensor], width: int) -> list[Tensor]:
    narrow = width // len(heads)
    factor: float = (narrow / heads[0].shape[1]) ** 0.5  # relations are scaled by 1/√(head width)
    return [narrowing.relation_map(head, narrow, factor=factor) for head in heads]


def _diagonal(*blocks: Tensor) -> Tensor:
    found: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]  # it has no types
    return found


def _strongest(importance: Tensor, count: int) -> list[int]:
    """The most important in their order; all in turn again, if there are fewer than are wanted."""
    found: list[int] = importance.topk(min(count, len(importance))).indices.sort().values.tolist()
    return [found[number % len(found)] for number in range(count)]


def _block(matrix: Tensor, row: int, column: int, shape: Sequence[int]) -> Tensor:
    height, width = shape
    return matrix[row * height : (row + 1) * height, column * width : (column + 1) * width]
