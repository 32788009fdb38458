from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.tap import Tap
from minilm_cli.ops.relation_loss import relation_loss
from minilm_cli.ops.relations import Projections
from minilm_cli.training.objective import RelationObjective, relation_heads, used_widths
from tests.families import FAMILIES

from . import reference

SPANS, HEADS, WEIGHTS = [(0, 5), (7, 3)], 3, {"qq": 1.0, "kv": 0.5}


def projections(width: int, seed: int, *, trained: bool = False, dtype: torch.dtype = torch.float64) -> Projections:
    generator = torch.Generator().manual_seed(seed)
    tensors = (torch.randn(10, width, generator=generator, dtype=torch.float64) for _ in range(3))
    return Projections(*(tensor.to(dtype).requires_grad_(trained) for tensor in tensors))


def gradients(sides: list[Projections]) -> list[Tensor | None]:
    return [tensor.grad for side in sides for tensor in side]


def test_loss_and_gradient_are_the_means_over_the_pairs_of_layers() -> None:
    teacher = [projections(6, seed) for seed in (1, 2)]
    student, plain = ([projections(9, seed, trained=True) for seed in (3, 4)] for _ in range(2))
    loss, parts = RelationObjective(WEIGHTS, HEADS)(teacher, student, SPANS)
    loss.backward()
    pairs = list(zip(teacher, plain, strict=True))
    each = [reference.relation_loss(*pair, SPANS, heads=HEADS, weights=WEIGHTS) for pair in pairs]
    expected = (each[0] + each[1]) / 2
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(student), gradients(plain))
    for part, relation in zip(parts, WEIGHTS, strict=True):
        alone = [reference.relation_loss(*pair, SPANS, heads=HEADS, weights={relation: 1.0}) for pair in pairs]
        torch.testing.assert_close(part, (alone[0] + alone[1]).detach() / 2)


def test_one_pair_has_the_very_loss_and_gradient_of_its_relations() -> None:
    teacher = projections(6, 1, dtype=torch.float32)
    ours, plain = (projections(9, 2, trained=True, dtype=torch.float32) for _ in range(2))
    found = RelationObjective(WEIGHTS, HEADS)([teacher], [ours], SPANS)
    expected = relation_loss(teacher, plain, SPANS, heads=HEADS, weights=WEIGHTS)
    torch.autograd.backward(found[0] / 7)
    torch.autograd.backward(expected[0] / 7)
    torch.testing.assert_close([*found, *gradients([ours])], [*expected, *gradients([plain])], rtol=0, atol=0)


def test_widths_are_those_of_every_tapped_layer() -> None:
    [bert] = [family for family in FAMILIES if family.name == "bert"]
    model = bert.model()
    model.encoder.layer[1].attention.self.value = torch.nn.Linear(24, 48)
    model.encoder.layer[1].attention.output.dense = torch.nn.Linear(48, 24)
    assert used_widths(Tap(model, [1]), {"vv": 1.0}) == {24}
    assert used_widths(Tap(model, [1, 2]), {"vv": 1.0}) == {24, 48}
    with pytest.raises(MinilmError, match="qv pairs q, 24 wide, with v, 48 wide"):
        used_widths(Tap(model, [1, 2]), {"qq": 1.0, "qv": 1.0})


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
