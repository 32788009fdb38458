from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minilm_cli.ops.relation_loss import relation_loss
from minilm_cli.ops.relations import Projections

from . import reference

PAIRS = ["".join(pair) for pair in itertools.product("qkv", repeat=2)]
DEFAULT = {"qq": 1.0, "kk": 1.0, "vv": 1.0}
RAGGED = [(0, 5), (5, 1), (6, 3), (10, 5), (16, 2)]  # position 9 and 15 are padding


def projections(width: int, positions: int, *, seed: int, dtype: torch.dtype = torch.float64) -> Projections:
    generator = torch.Generator().manual_seed(seed)
    tensors = torch.randn(3, positions, width, generator=generator, dtype=torch.float64)
    return Projections(*(tensor.to(dtype, copy=True) for tensor in tensors))


def trainable(given: Projections) -> Projections:
    return Projections(*(tensor.detach().clone().requires_grad_() for tensor in given))


def gradients(loss: Tensor, student: Projections) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, student, allow_unused=True))


def assert_same_gradients(actual_gradients: list[Tensor | None], expected: list[Tensor | None]) -> None:
    torch.testing.assert_close(actual_gradients, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pair", PAIRS)
def test_each_relation_matches_the_reference(pair: str) -> None:
    teacher, student = projections(12, 18, seed=1), trainable(projections(6, 18, seed=2))
    expected = reference.relation_loss(teacher, student, RAGGED, heads=3, weights={pair: 1.0})
    loss, parts = relation_loss(teacher, student, RAGGED, heads=3, weights={pair: 1.0})
    assert loss.item() > 0.1
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts, expected.detach()[None], rtol=1e-12, atol=0)
    assert_same_gradients(gradients(loss, student), gradients(expected, student))


def test_parts_are_unweighted_and_ordered_like_the_weights() -> None:
    teacher, student = projections(6, 18, seed=1), projections(6, 18, seed=2)
    weights = {"vk": 3.0, "qq": 0.25}
    loss, parts = relation_loss(teacher, student, RAGGED, heads=3, weights=weights)
    for part, pair in zip(parts, weights, strict=True):
        torch.testing.assert_close(part, reference.relation_loss(teacher, student, RAGGED, heads=3, weights={pair: 1}))
    torch.testing.assert_close(loss, 3.0 * parts[0] + 0.25 * parts[1])


def test_second_backward_is_refused() -> None:
    teacher, student = projections(4, 5, seed=5), trainable(projections(4, 5, seed=6))
    loss, _ = relation_loss(teacher, student, [(0, 5)], heads=2, weights=DEFAULT)
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="once"):
        loss.backward()


def test_student_equal_to_its_teacher_has_zero_loss_and_gradient() -> None:
    teacher = projections(6, 18, seed=1)
    student = trainable(teacher)
    loss, _ = relation_loss(teacher, student, RAGGED, heads=2, weights=DEFAULT)
    assert abs(loss.item()) < 1e-14
    assert all(gradient is not None and gradient.abs().max() < 1e-14 for gradient in gradients(loss, student))


def test_fp32_is_close_to_float64() -> None:
    spans = [(0, 40), (40, 17), (57, 64)]
    teacher = projections(48, 121, seed=1, dtype=torch.float32)
    student = trainable(projections(24, 121, seed=2, dtype=torch.float32))
    loss, _ = relation_loss(teacher, student, spans, heads=12, weights=DEFAULT)
    wide_teacher, wide_student = (Projections(*(tensor.detach().double() for tensor in m)) for m in (teacher, student))
    wide_student = trainable(wide_student)
    expected, _ = relation_loss(wide_teacher, wide_student, spans, heads=12, weights=DEFAULT)
    assert loss.dtype == torch.float32
    assert abs(loss.item() / expected.item() - 1) < 1e-6
    for gradient, exact in zip(gradients(loss, student), gradients(expected, wide_student), strict=True):
        assert gradient is not None
        assert exact is not None
        assert ((gradient - exact).norm() / exact.norm()).item() < 1e-6


def test_bf16_gives_an_fp32_loss_and_bf16_gradients() -> None:
    teacher = projections(12, 18, seed=1, dtype=torch.bfloat16)
    student = trainable(projections(6, 18, seed=2, dtype=torch.bfloat16))
    loss, parts = relation_loss(teacher, student, RAGGED, heads=3, weights=DEFAULT)
    actual_gradients = gradients(loss, student)
    expected = reference.relation_loss(teacher, student, RAGGED, heads=3, weights=DEFAULT)
    assert loss.dtype == parts.dtype == torch.float32
    # Only the inputs are rounded to bf16; the computation is in fp32.
    assert math.isclose(loss.item(), expected.item(), rel_tol=1e-5)
    torch.testing.assert_close(actual_gradients, gradients(expected, student))  # both in bf16, like the student


def test_loss_is_the_same_without_gradients() -> None:
    teacher, student = projections(6, 18, seed=1), projections(6, 18, seed=2)
    with_gradient, _ = relation_loss(teacher, trainable(student), RAGGED, heads=2, weights=DEFAULT)
    without, _ = relation_loss(teacher, student, RAGGED, heads=2, weights=DEFAULT)
    with torch.no_grad():
        under_no_grad, _ = relation_loss(teacher, trainable(student), RAGGED, heads=2, weights=DEFAULT)
    assert not without.requires_grad
    assert not under_no_grad.requires_grad
    assert with_gradient.item() == without.item() == under_no_grad.item()


def test_only_projections_that_require_gradients_get_one() -> None:
    teacher, student = projections(6, 18, seed=1), projections(6, 18, seed=2)
    partial = Projections(student.query, student.key.clone().requires_grad_(), student.value)
    full = trainable(student)
    loss, _ = relation_loss(teacher, partial, RAGGED, heads=2, weights={"qk": 1.0})
    full_loss, _ = relation_loss(teacher, full, RAGGED, heads=2, weights={"qk": 1.0})
    loss.backward()
    full_loss.backward()
    assert partial.query.grad is None
    assert torch.equal(partial.key.grad, full.key.grad)
    assert full.value.grad is None


def test_teacher_gets_no_gradient_and_inputs_are_unchanged() -> None:
    teacher, student = trainable(projections(6, 18, seed=1)), trainable(projections(6, 18, seed=2))
    before = [tensor.detach().clone() for tensor in (*teacher, *student)]
    relation_loss(teacher, student, RAGGED, heads=2, weights=DEFAULT)[0].backward()
    assert all(tensor.grad is None for tensor in teacher)
    torch.testing.assert_close([*teacher, *student], before, rtol=0, atol=0)


def test_noncontiguous_tensors_give_the_same() -> None:
    teacher, student = projections(6, 18, seed=1), projections(6, 18, seed=2)
    transposed = Projections(*(tensor.T.contiguous().T for tensor in student))
    assert not transposed.query.is_contiguous()
    contiguous, noncontiguous = trainable(student), trainable(transposed)
    loss, _ = relation_loss(teacher, contiguous, RAGGED, heads=2, weights=DEFAULT)
    other, _ = relation_loss(teacher, noncontiguous, RAGGED, heads=2, weights=DEFAULT)
    torch.testing.assert_close(loss, other)
    assert_same_gradients(gradients(other, noncontiguous), gradients(loss, contiguous))


def test_large_scores_stay_finite() -> None:
    teacher, student = (
        Projections(*(tensor.float() * 1e3 for tensor in projections(6, 18, seed=seed))) for seed in (1, 2)
    )
    student = trainable(student)
    loss, _ = relation_loss(teacher, student, RAGGED, heads=2, weights=DEFAULT)
    assert torch.isfinite(loss)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients(loss, student))


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    gaps=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    heads=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pairs=st.lists(st.sampled_from(PAIRS), min_size=1, max_size=3, unique=True),
    chunk_scores=st.integers(1, 200),
    seed=st.integers(0, 2**16),
)
def test_any_shape_matches_the_reference(
    lengths: list[int],
    gaps: list[int],
    heads: int,
    widths: tuple[int, int],
    pairs: list[str],
    chunk_scores: int,
    seed: int,
) -> None:
    spans, end = [], 0
    for gap, length in zip(gaps, lengths, strict=False):
        spans.append((end + gap, length))
        end += gap + length
    weights = {pair: 0.5 + number for number, pair in enumerate(pairs)}
    teacher = projections(heads * widths[0], end, seed=seed)
    student = trainable(projections(heads * widths[1], end, seed=seed + 1))
    loss, _ = relation_loss(teacher, student, spans, heads=heads, weights=weights, chunk_scores=chunk_scores)
    expected = reference.relation_loss(teacher, student, spans, heads=heads, weights=weights)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    assert_same_gradients(gradients(loss, student), gradients(expected, student))


def test_unused_projections_may_have_any_width() -> None:
    generator = torch.Generator().manual_seed(0)
    query, narrow = (torch.randn(5, width, generator=generator) for width in (48, 20))
    loss, _ = relation_loss(
        Projections(query, narrow, narrow), Projections(query / 2, narrow, narrow), [(0, 5)], heads=12,
        weights={"qq": 1.0},
    )  # fmt: skip
    assert loss > 0
