"""Which layers of a model are meant."""

from __future__ import annotations

from minilm_cli.base.errors import MinilmError


def resolve_layer(layer: int, layers: int, *, setting: str) -> int:
    """A 1-based layer from one that may count from the last; raises `MinilmError` if there is no such layer."""
    number = layer if layer > 0 else layers + 1 + layer
    if not 1 <= number <= layers:
        raise MinilmError(f"{setting}: there is no layer {layer} in a model of {layers}")
    return number


def evenly_spaced(layers: int, of: int) -> list[int]:
    """`layers` 1-based layers out of `of`, evenly spaced, ending with the last: 3 of 6 are 2, 4 and 6."""
    return [max(1, round(number * of / layers)) for number in range(1, layers + 1)]
