"""Which layers of a model are meant."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from minilm_cli.base.errors import MinilmError


def resolve_layer(layer: int, layers: int, *, setting: str) -> int:
    """A 1-based layer from one that may count from the last; raises `MinilmError` if there is no such layer."""
    number = layer if layer > 0 else layers + 1 + layer
    if not 1 <= number <= layers:
        raise MinilmError(f"{setting}: there is no layer {layer} in a model of {layers}")
    return number


def resolve_layers(wanted: int | Sequence[int], layers: int, *, setting: str) -> tuple[int, ...]:
    """One or several layers as 1-based numbers; raises `MinilmError` if one is missing or they do not rise."""
    several = [wanted] if isinstance(wanted, int) else wanted
    numbers = tuple(resolve_layer(layer, layers, setting=setting) for layer in several)
    if any(later <= earlier for earlier, later in pairwise(numbers)):
        given = ",".join(map(str, several))
        raise MinilmError(
            f"{setting}: {given} does not rise, in a model of {layers} layers",
            hint="Give each layer once, the lowest first, such as 6,12.",
        )
    return numbers


def evenly_spaced(layers: int, of: int) -> list[int]:
    """`layers` 1-based layers out of `of`, evenly spaced, ending with the last: 3 of 6 are 2, 4 and 6."""
    return [max(1, round(number * of / layers)) for number in range(1, layers + 1)]


def spaced_by_pairs(layers: Sequence[int], of: Sequence[int]) -> list[int]:
    """For each layer up to the last of `layers` one up to the last of `of`, so that each pair falls together.

    Both rise; the layers between two pairs are evenly spaced between them. With 3, 6 and 6, 18, they are 2, 4, 6, 10,
    14 and 18.
    """
    chosen: list[int] = []
    for (start, begin), (end, stop) in pairwise([(0, 0), *zip(layers, of, strict=True)]):
        chosen += [begin + number for number in evenly_spaced(end - start, stop - begin)]
    return chosen
