from __future__ import annotations

import pytest

from minilm_cli.base.errors import MinilmError
from minilm_cli.training.objective import relation_heads


@pytest.mark.parametrize(
    ("teacher", "student", "heads"),
    [
        ({768}, {384}, 48),
        ({768}, {768}, 48),
        ({1024}, {384}, 64),
        ({1024}, {1024}, 64),
        ({48}, {24}, 6),
        ({768}, {312}, 24),
        ({768}, {100}, 4),
        ({7}, {5}, 1),
        ({768, 256}, {384, 128}, 32),
        ({80}, {40}, 10),
        ({768}, {96}, 24),
        ({1024}, {64}, 16),
        ({3}, {3}, 1),
    ],
)
def test_auto_takes_the_heads_of_the_paper_or_the_nearest_divisor_with_heads_four_wide(
    teacher: set[int], student: set[int], heads: int
) -> None:
    assert relation_heads("auto", teacher, student) == heads


@pytest.mark.parametrize("heads", [1, 2, 12, 48, 384])
def test_heads_that_divide_both_widths_are_accepted(heads: int) -> None:
    assert relation_heads(heads, {768}, {384}) == heads


@pytest.mark.parametrize(
    ("heads", "teacher", "student", "message", "hint"),
    [
        (
            50,
            {768},
            {384},
            "relations.heads: 50 does not divide the teacher's width of 768",
            "Valid numbers near it: 48 and 64.",
        ),
        (
            256,
            {768},
            {384},
            "relations.heads: 256 does not divide the student's width of 384",
            "Valid numbers near it: 192 and 384.",
        ),
        (
            1000,
            {768},
            {384},
            "relations.heads: 1000 does not divide the teacher's width of 768",
            "The nearest valid number is 384.",
        ),
        (
            64,
            {1024, 512},
            {96},
            "relations.heads: 64 does not divide the student's width of 96",
            "The nearest valid number is 32.",
        ),
    ],
)
def test_other_heads_are_refused_with_the_divisors_next_to_them(
    heads: int, teacher: set[int], student: set[int], message: str, hint: str
) -> None:
    with pytest.raises(MinilmError, match=message) as caught:
        relation_heads(heads, teacher, student)
    assert caught.value.hint == hint
