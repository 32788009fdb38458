from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.utils._python_dispatch import TorchDispatchMode

from minilm_cli.ops import attention
from minilm_cli.ops.attention import (
    Packing,
    _attend_by_flash,
    _attend_in_groups,
    _attend_in_runs,
    _attend_with_dropout,
    _Chunk,
    _has_flash,
    _Plan,
    _visible,
    attend_packed,
    attend_padded,
)
from minilm_cli.ops.dropout import Masks

CPU = torch.device("cpu")
WIDTH = 8
SEED = 5
RAGGED = (7, 7, 7, 1, 1, 12, 3, 5, 5, 7)
ROWS = [RAGGED, (1,), (6, 6), (4, 9)]
#: The last is padded to ten times its length: most of its padded queries see no key at all through a window of 3.
UNLIKE = (20,) * 9 + (2,)
FULL = {"is_causal": False}
MASKINGS = [
    FULL,
    {"is_causal": False, "sliding_window": 3},
    {"is_causal": False, "sliding_window": 1},
    {"is_causal": False, "sliding_window": 12},
    {"is_causal": True},
    {"is_causal": True, "sliding_window": 3},
]
each_masking = pytest.mark.parametrize("masking", MASKINGS, ids=str)
#: A chunk of 3 heads' sequences of length 7: one head, two heads, two sequences, everything.
each_chunk = pytest.mark.parametrize("chunk_scores", [1, 110, 330, 2**18])
#: What bf16 rounds off: the output alone, where scores are computed in fp32; more where torch's kernels do.
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2**-7, 2**-6)}


@pytest.fixture
def one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "drawn_seed", lambda: SEED)


def projections(
    lengths: Sequence[int],
    *,
    heads: int = 3,
    kv_heads: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    trained: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as transformers gives them: (1, heads, positions, width), the heads side by side."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(1, sum(lengths), count, WIDTH, generator=generator).to(dtype).requires_grad_(trained)
        for count in (heads, kv_heads or heads, kv_heads or heads)
    )
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def module(groups: int = 1) -> nn.Module:
    found = nn.Module()
    found.num_key_value_groups = groups
    return found


def packing(lengths: Sequence[int], device: torch.device = CPU) -> Packing:
    return Packing(tuple(lengths), device)


def in_runs(lengths: Sequence[int], *tensors: Tensor, **options: Any) -> Tensor:
    return _attend_in_runs(packing(lengths), module(tensors[0].shape[1] // tensors[1].shape[1]), *tensors, **options)


def in_groups(lengths: Sequence[int], *tensors: Tensor, **options: Any) -> Tensor:
    return _attend_in_groups(packing(lengths), module(tensors[0].shape[1] // tensors[1].shape[1]), *tensors, **options)


def with_dropout(lengths: Sequence[int], *tensors: Tensor, dropout: float = 0.3, **options: Any) -> Tensor:
    def visible(chunk: _Chunk) -> Tensor | None:
        return _visible(chunk.length, CPU, **options)

    return _attend_with_dropout(packing(lengths).runs, visible, *tensors, dropout=dropout, **options)


def with_no_dropout_to_speak_of(lengths: Sequence[int], *tensors: Tensor, **options: Any) -> Tensor:
    return with_dropout(lengths, *tensors, dropout=1e-9, **options)


each_path = pytest.mark.parametrize("attend", [in_runs, in_groups, with_no_dropout_to_speak_of])
each_grouped_path = pytest.mark.parametrize("attend", [in_runs, in_groups])


def sees(query: int, key: int, *, is_causal: bool, sliding_window: int | None = None) -> bool:
    return (key <= query or not is_causal) and (sliding_window is None or abs(query - key) < sliding_window)


def slices(lengths: Sequence[int]) -> Iterator[slice]:
    for begin, end in itertools.pairwise(itertools.accumulate(lengths, initial=0)):
        yield slice(begin, end)


def reference(
    lengths: Sequence[int],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    factors: Sequence[Tensor] | None = None,
    scaling: float | None = None,
    **masking: Any,
) -> Tensor:
    """softmax(Q Kᵀ · scale) V of one sequence after the other in float64; `factors` are those of dropout."""
    several = query.shape[1] // key.shape[1]
    q, k, v = (tensor[0].double() for tensor in (query, key, value))
    k, v = k.repeat_interleave(several, 0), v.repeat_interleave(several, 0)
    outputs = []
    for number, here in enumerate(slices(lengths)):
        places = range(lengths[number])
        visible = torch.tensor([[sees(row, column, **masking) for column in places] for row in places])
        scores = torch.einsum("hqw,hkw->hqk", q[:, here], k[:, here]) * (scaling or WIDTH**-0.5)
        probabilities = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        if factors is not None:
            probabilities = probabilities * factors[number]
        outputs.append(torch.einsum("hqk,hkw->qhw", probabilities, v[:, here]))
    return torch.cat(outputs)[None]


def chunks(lengths: Sequence[int], heads: int) -> list[_Chunk]:
    return list(_Plan(tuple(packing(lengths).runs), 1.0, 0.1, SEED, lambda _: None).chunks(heads))


def drawn_factors(lengths: Sequence[int], heads: int, dropout: float) -> list[Tensor]:
    """What the probabilities of each sequence are multiplied with, (heads, length, length), drawn chunk by chunk."""
    numbers = {here.start: number for number, here in enumerate(slices(lengths))}
    factors = [torch.full((heads, length, length), torch.nan, dtype=torch.float64) for length in lengths]
    masks = Masks(SEED, dropout)
    for chunk in chunks(lengths, heads):
        starts = range(chunk.positions.start, chunk.positions.stop, chunk.length)
        count = chunk.heads.stop - chunk.heads.start
        mask = masks.fill(torch.empty(count * len(starts), chunk.length, chunk.length))
        for place, start in enumerate(starts):
            of_heads = mask.view(count, len(starts), chunk.length, chunk.length)[:, place]
            factors[numbers[start]][chunk.heads] = of_heads.double() * masks.scale
    return factors


def gradients(output: Tensor, tensors: Sequence[Tensor], outer: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, tensors, outer.to(output.dtype))


def outer_of(lengths: Sequence[int], heads: int = 3) -> Tensor:
    """A gradient of the output."""
    return torch.randn(1, sum(lengths), heads, WIDTH, generator=torch.Generator().manual_seed(9))


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert found.dtype == dtype
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=atol)


@each_path
@each_masking
@pytest.mark.parametrize("lengths", ROWS, ids=str)
def test_each_path_is_the_reference(attend: Callable[..., Tensor], masking: dict[str, Any], lengths: list[int]) -> None:
    tensors = projections(lengths)
    found = attend(lengths, *tensors, scaling=0.3, **masking)
    assert found.shape == (1, sum(lengths), 3, WIDTH)
    assert_near(found, reference(lengths, *tensors, scaling=0.3, **masking))


@each_path
@each_masking
def test_each_path_is_near_the_reference_in_bf16(attend: Callable[..., Tensor], masking: dict[str, Any]) -> None:
    tensors = projections(RAGGED, dtype=torch.bfloat16)
    assert_near(attend(RAGGED, *tensors, **masking), reference(RAGGED, *tensors, **masking), torch.bfloat16)


@each_grouped_path
@each_masking
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_keys_and_values_may_have_fewer_heads(
    attend: Callable[..., Tensor], masking: dict[str, Any], kv_heads: int
) -> None:
    tensors = projections(RAGGED, heads=4, kv_heads=kv_heads)
    assert_near(attend(RAGGED, *tensors, **masking), reference(RAGGED, *tensors, **masking))


@each_path
def test_without_a_scale_it_is_that_of_the_width(attend: Callable[..., Tensor]) -> None:
    tensors = projections(RAGGED)
    found = attend(RAGGED, *tensors, is_causal=False)
    assert torch.equal(found, attend(RAGGED, *tensors, scaling=None, is_causal=False))
    assert_near(found, reference(RAGGED, *tensors, scaling=WIDTH**-0.5, is_causal=False))


@each_path
@each_masking
@pytest.mark.parametrize("lengths", [RAGGED, UNLIKE], ids=str)
def test_the_gradients_of_each_path_are_the_references(
    attend: Callable[..., Tensor], masking: dict[str, Any], lengths: list[int]
) -> None:
    tensors, outer = projections(lengths, trained=True), outer_of(lengths)
    found = gradients(attend(lengths, *tensors, **masking), tensors, outer)
    for ours, theirs in zip(found, gradients(reference(lengths, *tensors, **masking), tensors, outer), strict=True):
        assert_near(ours, theirs)


@each_path
def test_a_sequence_knows_nothing_of_the_others(attend: Callable[..., Tensor]) -> None:
    tensors = projections(RAGGED)
    before = attend(RAGGED, *tensors, **FULL)
    changed = list(slices(RAGGED))[4]
    for tensor in tensors:
        tensor[:, :, changed] = 1e3
    after = attend(RAGGED, *tensors, **FULL)
    same = torch.ones(sum(RAGGED), dtype=torch.bool)
    same[changed] = False
    assert torch.equal(after[:, same], before[:, same])
    assert not torch.equal(after[:, changed], before[:, changed])


@each_path
def test_large_scores_stay_finite(attend: Callable[..., Tensor]) -> None:
    tensors = tuple(tensor * 100 for tensor in projections(RAGGED, trained=True))
    output = attend(RAGGED, *tensors, **FULL)
    assert output.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(output, tensors, outer_of(RAGGED)))


def test_in_groups_sequences_of_unlike_lengths_go_together() -> None:
    assert any(group.real is not None for group in packing(RAGGED).groups)
    assert [len(group.lengths) for group in packing(UNLIKE).groups] == [len(UNLIKE)]


def test_a_packing_knows_its_runs_and_where_each_sequence_begins() -> None:
    found = packing(RAGGED)
    assert found.runs == [(3, 7), (2, 1), (1, 12), (1, 3), (2, 5), (1, 7)]
    assert found.offsets.tolist() == [0, 7, 14, 21, 22, 23, 35, 38, 43, 48, 55]
    assert found.offsets.dtype == torch.int32
    starts = [start for group in found.groups for start in group.rows[:, 0].tolist()]
    assert sorted(starts) == found.offsets[:-1].tolist()


def test_what_follows_from_a_packing_is_found_once() -> None:
    found = packing(RAGGED)
    assert found.runs is found.runs
    assert found.offsets is found.offsets
    assert found.groups is found.groups


@each_chunk
@pytest.mark.parametrize("heads", [1, 3, 4])
def test_chunks_hold_every_head_of_every_sequence_once(
    monkeypatch: pytest.MonkeyPatch, chunk_scores: int, heads: int
) -> None:
    monkeypatch.setattr(attention, "CHUNK_SCORES", chunk_scores)
    seen = torch.zeros(heads, sum(RAGGED))
    lengths = {here.start: here.stop - here.start for here in slices(RAGGED)}
    for chunk in chunks(RAGGED, heads):
        part = seen[chunk.heads, chunk.positions]
        part += 1
        starts = range(chunk.positions.start, chunk.positions.stop, chunk.length)
        assert [lengths[start] for start in starts] == [chunk.length] * len(starts)
        pairs = part.shape[0] * len(starts)
        assert pairs == 1 or pairs * chunk.length**2 <= chunk_scores
    assert (seen == 1).all()


@pytest.mark.parametrize(
    ("chunk_scores", "expected"),
    [
        (1, [(0, 1, 0, 7), (1, 2, 0, 7), (2, 3, 0, 7), (0, 1, 7, 14), (1, 2, 7, 14), (2, 3, 7, 14), (0, 1, 14, 21)]),
        (2 * 7**2, [(0, 2, 0, 7), (2, 3, 0, 7), (0, 2, 7, 14), (2, 3, 7, 14), (0, 2, 14, 21), (2, 3, 14, 21)]),
        (6 * 7**2 - 1, [(0, 3, 0, 7), (0, 3, 7, 14), (0, 3, 14, 21)]),
        (6 * 7**2, [(0, 3, 0, 14), (0, 3, 14, 21)]),
        (9 * 7**2, [(0, 3, 0, 21)]),
    ],
)
def test_a_chunk_holds_as_many_sequences_as_fit_and_else_as_many_heads(
    monkeypatch: pytest.MonkeyPatch, chunk_scores: int, expected: list[tuple[int, ...]]
) -> None:
    monkeypatch.setattr(attention, "CHUNK_SCORES", chunk_scores)
    found = [(c.heads.start, c.heads.stop, c.positions.start, c.positions.stop) for c in chunks((7, 7, 7), 3)]
    assert found[: len(expected)] == expected
    assert len(found) == len(expected) or chunk_scores == 1


@each_masking
@each_chunk
@pytest.mark.usefixtures("one_seed")
def test_with_dropout_output_and_gradients_are_those_of_the_same_masks(
    monkeypatch: pytest.MonkeyPatch, masking: dict[str, Any], chunk_scores: int
) -> None:
    monkeypatch.setattr(attention, "CHUNK_SCORES", chunk_scores)
    tensors, outer = projections(RAGGED, trained=True), outer_of(RAGGED)
    factors = drawn_factors(RAGGED, 3, 0.3)
    assert all(factor.isfinite().all() for factor in factors)
    expected = reference(RAGGED, *tensors, factors=factors, scaling=0.4, **masking)
    found = with_dropout(RAGGED, *tensors, scaling=0.4, **masking)
    assert_near(found, expected)
    for ours, theirs in zip(gradients(found, tensors, outer), gradients(expected, tensors, outer), strict=True):
        assert_near(ours, theirs)


@pytest.mark.parametrize("dropout", [0.01, 0.5, 0.9])
@pytest.mark.usefixtures("one_seed")
def test_any_share_may_be_dropped(dropout: float) -> None:
    tensors, outer = projections(RAGGED, trained=True), outer_of(RAGGED)
    expected = reference(RAGGED, *tensors, factors=drawn_factors(RAGGED, 3, dropout), **FULL)
    found = with_dropout(RAGGED, *tensors, dropout=dropout)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(gradients(found, tensors, outer), gradients(expected, tensors, outer), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@each_masking
@pytest.mark.usefixtures("one_seed")
def test_with_dropout_bf16_is_rounded_in_what_goes_in_and_out_alone(masking: dict[str, Any]) -> None:
    tensors, outer = projections(RAGGED, dtype=torch.bfloat16, trained=True), outer_of(RAGGED).bfloat16()
    wide = tuple(tensor.detach().double().requires_grad_() for tensor in tensors)
    expected = reference(RAGGED, *wide, factors=drawn_factors(RAGGED, 3, 0.3), **masking)
    found = with_dropout(RAGGED, *tensors, **masking)
    torch.testing.assert_close(found, expected.bfloat16(), rtol=2**-7, atol=0)
    for ours, theirs in zip(gradients(found, tensors, outer), gradients(expected, wide, outer), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - theirs).norm() < 2**-8 * outer.norm()


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    heads=st.integers(1, 4),
    chunk_scores=st.integers(1, 300),
    masking=st.sampled_from(MASKINGS),
)
def test_any_row_with_dropout_is_the_references(
    lengths: list[int], heads: int, chunk_scores: int, masking: dict[str, Any]
) -> None:
    tensors, outer = projections(lengths, heads=heads, trained=True), outer_of(lengths, heads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "CHUNK_SCORES", chunk_scores)
        patch.setattr(attention, "drawn_seed", lambda: SEED)
        expected = reference(lengths, *tensors, factors=drawn_factors(lengths, heads, 0.3), **masking)
        found = with_dropout(lengths, *tensors, **masking)
        assert_near(found, expected)
        for ours, theirs in zip(gradients(found, tensors, outer), gradients(expected, tensors, outer), strict=True):
            assert_near(ours, theirs)


@pytest.mark.usefixtures("one_seed")
def test_the_tensors_may_be_contiguous_or_not() -> None:
    bent = projections(RAGGED, trained=True)
    straight = tuple(tensor.contiguous() for tensor in bent)
    assert not bent[0].is_contiguous()
    found, expected = with_dropout(RAGGED, *bent), with_dropout(RAGGED, *straight)
    torch.testing.assert_close(found, expected)
    outer = outer_of(RAGGED)
    turned = outer.transpose(1, 3).contiguous().transpose(1, 3)
    for ours, theirs in zip(gradients(found, bent, turned), gradients(expected, straight, outer), strict=True):
        torch.testing.assert_close(ours, theirs)


@each_chunk
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_changes_neither_what_went_in_nor_what_came_out(
    monkeypatch: pytest.MonkeyPatch, chunk_scores: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(attention, "CHUNK_SCORES", chunk_scores)
    tensors = tuple(tensor.contiguous().detach() for tensor in projections(RAGGED, dtype=dtype))
    for layout in (tensors, projections(RAGGED, dtype=dtype)):
        leaves = tuple(tensor.requires_grad_() for tensor in layout)
        outer = outer_of(RAGGED).to(dtype)
        output = with_dropout(RAGGED, *leaves)
        everything = (*leaves, output, outer)
        before = [tensor.detach().clone() for tensor in everything]
        first = torch.autograd.grad(output, leaves, outer, retain_graph=True)
        second = torch.autograd.grad(output, leaves, outer, retain_graph=True)
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(everything, before, strict=True))
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_the_gradient_may_be_one_number_seen_many_times() -> None:
    tensors = projections(RAGGED, trained=True)
    output = with_dropout(RAGGED, *tensors)
    summed = torch.autograd.grad(output.sum(), tensors, retain_graph=True)
    for ours, theirs in zip(summed, gradients(output, tensors, torch.ones_like(output)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("one_seed")
def test_without_a_gradient_asked_for_the_output_is_the_same() -> None:
    trained = with_dropout(RAGGED, *projections(RAGGED, trained=True))
    plain = with_dropout(RAGGED, *projections(RAGGED))
    with torch.no_grad():
        forbidden = with_dropout(RAGGED, *projections(RAGGED, trained=True))
    assert trained.requires_grad
    assert not plain.requires_grad
    assert not forbidden.requires_grad
    assert torch.equal(trained, plain)
    assert torch.equal(trained, forbidden)


@pytest.mark.usefixtures("one_seed")
def test_one_of_the_three_may_be_trained_alone() -> None:
    everything = projections(RAGGED, trained=True)
    outer = outer_of(RAGGED)
    expected = gradients(with_dropout(RAGGED, *everything), everything, outer)
    for number in range(3):
        alone = projections(RAGGED)
        alone[number].requires_grad_()
        (found,) = gradients(with_dropout(RAGGED, *alone), [alone[number]], outer)
        torch.testing.assert_close(found, expected[number])


@pytest.mark.parametrize("masking", [FULL, {"is_causal": True, "sliding_window": 3}], ids=str)
def test_the_mean_over_many_seeds_is_attention_without_dropout(
    monkeypatch: pytest.MonkeyPatch, masking: dict[str, Any]
) -> None:
    lengths, draws = (6, 6, 2), 500
    tensors, seeds = projections(lengths, heads=2), iter(range(draws))
    monkeypatch.setattr(attention, "drawn_seed", lambda: next(seeds))
    found = torch.stack([with_dropout(lengths, *tensors, **masking) for _ in range(draws)]).double()
    error = (found.mean(0) - reference(lengths, *tensors, **masking)).abs()
    assert found.std(0).max() > 0.1
    assert (error < 5 * found.std(0) / draws**0.5 + 1e-6).all()


class _Made(TorchDispatchMode):
    """How many numbers the largest of all tensors has that are made meanwhile."""

    largest = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.largest = max(self.largest, found.numel())
        return found


@each_masking
def test_no_scores_are_kept_for_backward(masking: dict[str, Any]) -> None:
    lengths = (40, 40, 40)
    tensors = projections(lengths, trained=True)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = with_dropout(lengths, *tensors, **masking)
    assert [tensor.numel() for tensor in saved] == [tensors[0].numel()] * 4
    node = output.grad_fn
    while node is not None and not hasattr(node, "plan"):
        node = node.next_functions[0][0]
    assert node is not None
    assert list(vars(node)) == ["plan"]
    assert not any(isinstance(found, Tensor) for found in vars(node.plan).values())


def test_no_more_scores_than_a_chunk_are_there_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, most = (40, 40, 40), 2 * 40**2
    monkeypatch.setattr(attention, "CHUNK_SCORES", most)
    tensors = projections(lengths, trained=True)
    with _Made() as made:
        output = with_dropout(lengths, *tensors, **FULL)
        torch.autograd.grad(output.sum(), tensors)
    assert made.largest == most


def test_torchs_seed_decides_what_is_dropped() -> None:
    tensors = projections(RAGGED)
    torch.manual_seed(1)
    first, second = with_dropout(RAGGED, *tensors), with_dropout(RAGGED, *tensors)
    torch.manual_seed(1)
    assert torch.equal(with_dropout(RAGGED, *tensors), first)
    assert torch.equal(with_dropout(RAGGED, *tensors), second)
    torch.manual_seed(2)
    assert not torch.equal(with_dropout(RAGGED, *tensors), first)
    assert not torch.equal(first, second)


@pytest.mark.usefixtures("one_seed")
def test_scores_are_fp32_under_autocast_too() -> None:
    tensors, outer = projections(RAGGED, dtype=torch.bfloat16, trained=True), outer_of(RAGGED)
    expected = with_dropout(RAGGED, *tensors, scaling=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_dropout(RAGGED, *tensors, scaling=1.0)
    assert torch.equal(found, expected)
    for ours, theirs in zip(gradients(found, tensors, outer), gradients(expected, tensors, outer), strict=True):
        assert torch.equal(ours, theirs)


@each_path
@pytest.mark.parametrize("narrow", [(False, False, True), (True, True, False)])
def test_under_autocast_queries_and_keys_may_be_of_another_type_than_values(
    attend: Callable[..., Tensor], narrow: tuple[bool, ...]
) -> None:
    types = [torch.bfloat16 if is_narrow else torch.float32 for is_narrow in narrow]
    tensors = [tensor.to(dtype) for tensor, dtype in zip(projections(RAGGED), types, strict=True)]
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(RAGGED, *tensors, **FULL)
    torch.testing.assert_close(found.double(), reference(RAGGED, *tensors, **FULL), rtol=0.03, atol=0.03)


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """What torch's documentation says of `varlen_attn`; tensors are (positions, heads, width)."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == cu_seq_q.diff().max()
    assert max_k == cu_seq_k.diff().max()
    assert enable_gqa or query.shape[1] == key.shape[1]
    several = query.shape[1] // key.shape[1]
    left, right = (torch.inf if size < 0 else size for size in window_size)
    output = torch.full_like(query, torch.nan)
    for begin, end in itertools.pairwise(cu_seq_q.tolist()):
        q, k, v = (tensor[begin:end].transpose(0, 1) for tensor in (query, key, value))
        places = torch.arange(end - begin)
        ahead = places[None, :] - places[:, None]
        scores = q @ k.repeat_interleave(several, 0).transpose(1, 2) * (q.shape[2] ** -0.5 if scale is None else scale)
        hidden = (ahead < -left) | (ahead > right)
        found = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v.repeat_interleave(several, 0)
        output[begin:end] = found.transpose(0, 1)
    return output


@each_masking
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_flash_attention_is_asked_for_what_the_others_compute(
    monkeypatch: pytest.MonkeyPatch, masking: dict[str, Any], kv_heads: int
) -> None:
    monkeypatch.setattr(attention, "varlen_attn", plain_varlen)
    for lengths, scaling in itertools.product(ROWS, (None, 0.3)):
        tensors = projections(lengths, heads=4, kv_heads=kv_heads)
        found = _attend_by_flash(packing(lengths), *tensors, scaling=scaling, **masking)
        torch.testing.assert_close(found, in_runs(lengths, *tensors, scaling=scaling, **masking))


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_torchs_flash_attention_takes_what_it_is_given(monkeypatch: pytest.MonkeyPatch, kv_heads: int) -> None:
    calls = []

    def noted(*arguments: Any, **options: Any) -> Any:
        calls.append(inspect.signature(varlen_attn).bind(*arguments, **options).arguments)
        return varlen_attn(*arguments, **options)

    monkeypatch.setattr(attention, "varlen_attn", noted)
    tensors = (tensor.to("meta") for tensor in projections(RAGGED, heads=4, kv_heads=kv_heads, dtype=torch.bfloat16))
    found = _attend_by_flash(packing(RAGGED), *tensors, scaling=0.3, is_causal=True, sliding_window=4)
    assert found.shape == (1, sum(RAGGED), 4, WIDTH)
    (call,) = calls
    assert call["window_size"] == (3, 0)
    assert call["max_q"] == call["max_k"] == max(RAGGED)
    assert call["enable_gqa"] == (kv_heads != 4)


def flash(
    monkeypatch: pytest.MonkeyPatch,
    *,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    width: int = 64,
    capability: tuple[int, int] = (8, 0),
    **options: Any,
) -> bool:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    query = SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(1, 4, 10, width))
    return _has_flash(query, options)  # type: ignore[arg-type]  # a GPU's tensor, on a machine that has none


@pytest.mark.parametrize(
    "usual",
    [{}, {"dropout": 0.0}, {"dtype": torch.float16}, {"width": 256}, {"width": 8}, {"capability": (9, 0)}],
    ids=str,
)
def test_flash_attention_serves_16_bits_on_a_new_gpu(monkeypatch: pytest.MonkeyPatch, usual: dict[str, Any]) -> None:
    assert flash(monkeypatch, **usual)


@pytest.mark.parametrize(
    "unusual",
    [
        {"device": "cpu"},
        {"device": "mps"},
        {"dtype": torch.float32},
        {"dropout": 0.1},
        {"width": 264},
        {"width": 20},
        {"capability": (7, 5)},
    ],
    ids=str,
)
def test_flash_attention_serves_nothing_else(monkeypatch: pytest.MonkeyPatch, unusual: dict[str, Any]) -> None:
    assert not flash(monkeypatch, **unusual)


def test_a_cpu_is_not_asked_for_its_capability() -> None:
    assert not _has_flash(projections((4,), dtype=torch.bfloat16)[0], {})


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the paths that are taken."""
    names: list[str] = []
    for name in ("_attend_in_runs", "_attend_in_groups", "_attend_with_dropout", "_attend_by_flash"):
        monkeypatch.setattr(attention, name, lambda *_, name=name, **__: names.append(name))
    return names


@pytest.mark.parametrize(
    ("options", "kv_heads", "path"),
    [
        ({}, 4, "_attend_in_runs"),
        ({"dropout": 0.0}, 4, "_attend_in_runs"),
        ({"dropout": 0.1}, 4, "_attend_with_dropout"),
        ({"dropout": 0.999}, 4, "_attend_with_dropout"),
        ({"dropout": 1.0}, 4, "_attend_in_runs"),
        ({"dropout": 0.1}, 2, "_attend_in_runs"),
    ],
)
def test_a_cpu_has_a_path_of_its_own_for_dropout_alone(
    taken: list[str], options: dict[str, float], kv_heads: int, path: str
) -> None:
    attend_packed(packing(RAGGED), module(), *projections(RAGGED, heads=4, kv_heads=kv_heads), **options)
    assert taken == [path]


@pytest.mark.parametrize(("has_flash", "path"), [(True, "_attend_by_flash"), (False, "_attend_in_groups")])
def test_other_devices_take_flash_attention_or_groups(
    monkeypatch: pytest.MonkeyPatch, taken: list[str], has_flash: bool, path: str
) -> None:
    monkeypatch.setattr(attention, "_has_flash", lambda *_: has_flash)
    tensors = (tensor.to("meta") for tensor in projections(RAGGED))
    attend_packed(packing(RAGGED, torch.device("meta")), module(), *tensors, dropout=0.1)
    assert taken == [path]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.usefixtures("one_seed")
def test_a_packed_row_on_a_cpu_is_the_references(dropout: float) -> None:
    tensors = projections(RAGGED)
    found = attend_packed(packing(RAGGED), module(), *tensors, dropout=dropout, scaling=0.3, is_causal=False)
    factors = drawn_factors(RAGGED, 3, dropout)
    assert_near(found, reference(RAGGED, *tensors, factors=factors, scaling=0.3, is_causal=False))


def test_a_packed_row_of_which_everything_is_dropped_is_zero() -> None:
    found = attend_packed(packing(RAGGED), module(), *projections(RAGGED), dropout=1.0, is_causal=False)
    assert torch.equal(found, torch.zeros(1, sum(RAGGED), 3, WIDTH))


# --- Padded batches ----------------------------------------------------------------------------------------------

PADDED = (5, 5, 3, 1)


def padded(*, trained: bool = False, heads: int = 3) -> tuple[tuple[Tensor, ...], Tensor]:
    """Queries, keys and values, (sequences, heads, longest, width), and which keys are no padding, as SDPA wants it."""
    generator = torch.Generator().manual_seed(1)
    shape = (len(PADDED), max(PADDED), heads, WIDTH)
    tensors = tuple(torch.randn(shape, generator=generator).requires_grad_(trained) for _ in range(3))
    real = torch.arange(max(PADDED)) < torch.tensor(PADDED)[:, None]
    return tensors, real[:, None, None, :].expand(-1, 1, max(PADDED), -1)


@pytest.mark.usefixtures("one_seed")
@pytest.mark.parametrize("chunk_scores", [1, 60, 2**18])
def test_a_padded_batch_with_dropout_is_what_each_sequence_is_by_itself(
    monkeypatch: pytest.MonkeyPatch, chunk_scores: int
) -> None:
    monkeypatch.setattr(attention, "CHUNK_SCORES", chunk_scores)
    dropout = 2.0**-16  # 16 bits a place: all but surely nothing is dropped
    tensors, mask = padded(trained=True)
    transposed = [tensor.transpose(1, 2) for tensor in tensors]
    found, _ = attend_padded(module(), *transposed, mask, dropout=dropout, is_causal=False)
    loss = sum(found[number, :length].square().sum() for number, length in enumerate(PADDED))
    ours = torch.autograd.grad(loss, tensors)
    expected = torch.nn.functional.scaled_dot_product_attention(*transposed, attn_mask=mask).transpose(1, 2)
    for number, length in enumerate(PADDED):
        torch.testing.assert_close(found[number, :length], expected[number, :length], rtol=1e-4, atol=1e-4)
    theirs = torch.autograd.grad(sum(expected[n, :length].square().sum() for n, length in enumerate(PADDED)), tensors)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("one_seed")
def test_a_full_batch_is_what_it_is_in_a_packed_row() -> None:
    tensors, _ = padded()
    count, length = len(PADDED), max(PADDED)
    found, _ = attend_padded(module(), *(t.transpose(1, 2) for t in tensors), None, dropout=0.3, is_causal=False)
    row = [t.reshape(1, count * length, 3, WIDTH).transpose(1, 2) for t in tensors]
    assert torch.equal(found.flatten(0, 1)[None], with_dropout((length,) * count, *row, dropout=0.3, is_causal=False))


@pytest.mark.parametrize(
    ("options", "bias"),
    [({}, False), ({"dropout": 0.1, "sliding_window": 2}, False), ({"dropout": 0.1, "is_causal": True}, False),
     ({"dropout": 0.1}, True)],
)  # fmt: skip
def test_what_ours_does_not_serve_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], bias: bool
) -> None:
    called = []
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *_, **__: called.append(True) or (None, None))
    tensors, mask = padded()
    mask = torch.where(mask, 0.0, -1e9) if bias else mask
    attend_padded(module(), *(tensor.transpose(1, 2) for tensor in tensors), mask, **options)
    assert called
