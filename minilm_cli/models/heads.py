"""The number of relation heads, and which layer a number means."""

from __future__ import annotations

from math import gcd

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.families import _LARGE_WIDTH


def resolve_layer(layer: int, layers: int, *, setting: str) -> int:
    """A 1-based layer from one that may count from the last; raises `MinilmError` if there is no such layer."""
    number = layer if layer > 0 else layers + 1 + layer
    if not 1 <= number <= layers:
        raise MinilmError(f"{setting}: there is no layer {layer} in a model of {layers}")
    return number


def relation_heads(wanted: int | str, teacher_widths: set[int], student_widths: set[int]) -> int:
    """The number of relation heads (MiniLMv2, section 4.1: 48, or 64 for a 1024-wide teacher).

    The widths are those of the projections in use; heads divide every one. `auto` takes the divisor nearest to the
    paper's number. Raises `MinilmError` if a wanted number does not divide.
    """
    common = gcd(*teacher_widths, *student_widths)
    if wanted != "auto":
        if common % int(wanted):
            sides = (("teacher", teacher_widths), ("student", student_widths))
            side, width = next((s, w) for s, widths in sides for w in sorted(widths) if w % int(wanted))
            near = min(_divisors(common), key=lambda divisor: (abs(divisor - int(wanted)), -divisor))
            raise MinilmError(
                f"relations.heads: {wanted} does not divide the {side}'s width of {width}",
                hint=f"The nearest number that divides teacher and student is {near}.",
            )
        return int(wanted)
    target = 64 if _LARGE_WIDTH in teacher_widths else 48
    return min(_divisors(common), key=lambda divisor: (abs(divisor - target), -divisor))


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
