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


def assert_same_gradients(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pair", PAIRS)
def test_loss_and_gradient_of_each_pair_are_the_references(pair: str) -> None:
    teacher, student = projections(12, 18, seed=1), trainable(projections(6, 18, seed=2))
    expected = reference.relation_loss(teacher, student, RAGGED, heads=3, weights={pair: 1.0})
    loss, parts = relation_loss(teacher, student, RAGGED, heads=3, weights={pair: 1.0})
    assert loss.item() > 0.1
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts, expected.detach()[None], rtol=1e-12, atol=0)
    assert_same_gradients(gradients(loss, student), gradients(expected, student))


@pytest.mark.parametrize("chunk_scores", [1, 4, 7, 25, 60, 1000])
def test_the_chunk_changes_neither_loss_nor_gradient(chunk_scores: int) -> None:
    weights = {"qk": 2.0, "vv": 0.5, "kq": 1.0}
    teacher, student = projections(8, 18, seed=1), trainable(projections(8, 18, seed=2))
    expected = reference.relation_loss(teacher, student, RAGGED, heads=4, weights=weights)
    loss, _ = relation_loss(teacher, student, RAGGED, heads=4, weights=weights, chunk_scores=chunk_scores)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert_same_gradients(gradients(loss, student), gradients(expected, student))


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_the_widths_may_differ(heads: int) -> None:
    teacher, student = projections(18, 7, seed=3), projections(6, 7, seed=4)
    spans = [(0, 4), (4, 3)]
    loss, _ = relation_loss(teacher, student, spans, heads=heads, weights=DEFAULT)
    torch.testing.assert_close(loss, reference.relation_loss(teacher, student, spans, heads=heads, weights=DEFAULT))


def test_the_parts_are_unweighted_and_in_the_order_of_the_weights() -> None:
    teacher, student = projections(6, 18, seed=1), projections(6, 18, seed=2)
    weights = {"vk": 3.0, "qq": 0.25}
    loss, parts = relation_loss(teacher, student, RAGGED, heads=3, weights=weights)
    for part, pair in zip(parts, weights, strict=True):
        torch.testing.assert_close(part, reference.relation_loss(teacher, student, RAGGED, heads=3, weights={pair: 1}))
    torch.testing.assert_close(loss, 3.0 * parts[0] + 0.25 * parts[1])


def test_loss_and_gradient_are_linear_in_the_weights() -> None:
    teacher, student = projections(6, 18, seed=1), trainable(projections(6, 18, seed=2))
    once, _ = relation_loss(teacher, student, RAGGED, heads=2, weights=DEFAULT)
    thrice, _ = relation_loss(teacher, student, RAGGED, heads=2, weights=dict.fromkeys(DEFAULT, 3.0))
    torch.testing.assert_close(thrice, 3 * once)
    assert_same_gradients(gradients(thrice, student), gradients(3 * once, student))


def test_the_gradient_is_that_of_finite_differences() -> None:
    teacher, student = projections(4, 9, seed=5), trainable(projections(6, 9, seed=6))
    weights, step = {"qk": 0.7, "vv": 1.0, "kv": 0.3}, 1e-6

    def loss(moved: Projections) -> Tensor:
        return relation_loss(teacher, moved, [(0, 4), (4, 1), (6, 3)], heads=2, weights=weights)[0]

    for letter, gradient in enumerate(gradients(loss(student), student)):
        assert gradient is not None
        for place in itertools.product(range(9), range(6)):
            ends = []
            for sign in (1, -1):
                moved = trainable(student)
                moved[letter].data[place] += sign * step
                ends.append(loss(moved).item())
            assert gradient[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-9)


def test_the_gradient_can_be_asked_for_once() -> None:
    teacher, student = projections(4, 5, seed=5), trainable(projections(4, 5, seed=6))
    loss, _ = relation_loss(teacher, student, [(0, 5)], heads=2, weights=DEFAULT)
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="once"):
        loss.backward()


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient() -> None:
    teacher = projections(6, 18, seed=1)
    student = trainable(teacher)
    loss, _ = relation_loss(teacher, student, RAGGED, heads=2, weights=DEFAULT)
    assert abs(loss.item()) < 1e-14
    assert all(gradient is not None and gradient.abs().max() < 1e-14 for gradient in gradients(loss, student))


def test_padding_changes_nothing_and_gets_no_gradient() -> None:
    teacher, student = projections(6, 18, seed=1), projections(6, 18, seed=2)
    padding = [9, 15]
    results = []
    for scale in (0.0, 1e6):
        other_teacher, other_student = (
            Projections(*(tensor.clone().index_fill_(0, torch.tensor(padding), scale) for tensor in model))
            for model in (teacher, student)
        )
        other_student = trainable(other_student)
        loss, _ = relation_loss(other_teacher, other_student, RAGGED, heads=2, weights=DEFAULT)
        results.append((loss, *gradients(loss, other_student)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert all((gradient[padding] == 0).all() for gradient in results[0][1:])


def test_one_token_attends_to_itself_alone_and_so_has_no_loss() -> None:
    teacher, student = projections(6, 3, seed=1), trainable(projections(6, 3, seed=2))
    loss, _ = relation_loss(teacher, student, [(0, 1), (2, 1)], heads=2, weights=DEFAULT)
    assert loss.item() == 0
    assert all(gradient is not None and not gradient.any() for gradient in gradients(loss, student))


def test_the_order_of_the_sequences_does_not_matter() -> None:
    teacher, student = projections(6, 18, seed=1), projections(6, 18, seed=2)
    loss, _ = relation_loss(teacher, student, RAGGED, heads=2, weights=DEFAULT)
    turned, _ = relation_loss(teacher, student, RAGGED[::-1], heads=2, weights=DEFAULT)
    torch.testing.assert_close(loss, turned, rtol=1e-13, atol=0)


def test_fp32_is_within_a_millionth_of_float64() -> None:
    spans = [(0, 40), (40, 17), (57, 64)]
    teacher = projections(48, 121, seed=1, dtype=torch.float32)
    student = trainable(projections(24, 121, seed=2, dtype=torch.float32))
    loss, _ = relation_loss(teacher, student, spans, heads=12, weights=DEFAULT)
    wide_teacher, wide_student = (Projections(*(tensor.detach().double() for tensor in m)) for m in (teacher, student))
    wide_student = trainable(wide_student)
    expected, _ = relation_loss(wide_teacher, wide_student, spans, heads=12, weights=DEFAULT)
    assert loss.dtype == torch.float32
    assert abs(loss.item() / expected.item() - 1) < 1e-6
    for found, wanted in zip(gradients(loss, student), gradients(expected, wide_student), strict=True):
        assert found is not None
        assert wanted is not None
        assert ((found - wanted).norm() / wanted.norm()).item() < 1e-6


def test_bf16_gives_a_loss_in_fp32_and_gradients_in_bf16() -> None:
    teacher = projections(12, 18, seed=1, dtype=torch.bfloat16)
    student = trainable(projections(6, 18, seed=2, dtype=torch.bfloat16))
    loss, parts = relation_loss(teacher, student, RAGGED, heads=3, weights=DEFAULT)
    found = gradients(loss, student)
    expected = reference.relation_loss(teacher, student, RAGGED, heads=3, weights=DEFAULT)
    assert loss.dtype == parts.dtype == torch.float32
    # The inputs are rounded, what is computed from them is not.
    assert math.isclose(loss.item(), expected.item(), rel_tol=1e-5)
    for ours, theirs in zip(found, gradients(expected, student), strict=True):
        assert ours is not None
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs)


def test_without_a_gradient_asked_for_the_loss_is_the_same() -> None:
    teacher, student = projections(6, 18, seed=1), projections(6, 18, seed=2)
    with_gradient, _ = relation_loss(teacher, trainable(student), RAGGED, heads=2, weights=DEFAULT)
    without, _ = relation_loss(teacher, student, RAGGED, heads=2, weights=DEFAULT)
    with torch.no_grad():
        forbidden, _ = relation_loss(teacher, trainable(student), RAGGED, heads=2, weights=DEFAULT)
    assert not without.requires_grad
    assert not forbidden.requires_grad
    assert with_gradient.item() == without.item() == forbidden.item()


def test_only_the_projections_that_need_a_gradient_get_one() -> None:
    teacher, student = projections(6, 18, seed=1), projections(6, 18, seed=2)
    some = Projections(student.query, student.key.clone().requires_grad_(), student.value)
    everything = trainable(student)
    loss, _ = relation_loss(teacher, some, RAGGED, heads=2, weights={"qk": 1.0})
    whole, _ = relation_loss(teacher, everything, RAGGED, heads=2, weights={"qk": 1.0})
    loss.backward()
    whole.backward()
    assert some.query.grad is None
    assert torch.equal(some.key.grad, everything.key.grad)
    assert everything.value.grad is None


def test_the_teacher_gets_no_gradient_and_the_inputs_stay_as_they_were() -> None:
    teacher, student = trainable(projections(6, 18, seed=1)), trainable(projections(6, 18, seed=2))
    before = [tensor.detach().clone() for tensor in (*teacher, *student)]
    relation_loss(teacher, student, RAGGED, heads=2, weights=DEFAULT)[0].backward()
    assert all(tensor.grad is None for tensor in teacher)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip((*teacher, *student), before, strict=True))


def test_tensors_that_are_not_contiguous_give_the_same() -> None:
    teacher, student = projections(6, 18, seed=1), projections(6, 18, seed=2)
    turned = Projections(*(tensor.T.contiguous().T for tensor in student))
    assert not turned.query.is_contiguous()
    straight, bent = trainable(student), trainable(turned)
    loss, _ = relation_loss(teacher, straight, RAGGED, heads=2, weights=DEFAULT)
    other, _ = relation_loss(teacher, bent, RAGGED, heads=2, weights=DEFAULT)
    torch.testing.assert_close(loss, other)
    assert_same_gradients(gradients(other, bent), gradients(loss, straight))


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
def test_any_shape_gives_the_references_loss_and_gradient(
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


def test_projections_that_no_relation_uses_may_be_of_any_width() -> None:
    generator = torch.Generator().manual_seed(0)
    query, narrow = (torch.randn(5, width, generator=generator) for width in (48, 20))
    loss, _ = relation_loss(
        Projections(query, narrow, narrow), Projections(query / 2, narrow, narrow), [(0, 5)], heads=12,
        weights={"qq": 1.0},
    )  # fmt: skip
    assert loss > 0
