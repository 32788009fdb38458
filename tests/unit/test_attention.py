from __future__ import annotations

import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
#: The last is padded to ten times its length: with a window of 3, most of its padded queries see no key.
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
#: bf16 rounds only the output if scores are computed in fp32; the kernels of torch round more.
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2**-7, 2**-6)}


@pytest.fixture
def fixed_seed(monkeypatch: pytest.MonkeyPatch) -> None:
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
    """Queries, keys and values as transformers gives them: (1, heads, positions, width), a view of adjacent heads."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(1, sum(lengths), count, WIDTH, generator=generator).to(dtype).requires_grad_(trained)
        for count in (heads, kv_heads or heads, kv_heads or heads)
    )
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def module(groups: int = 1) -> nn.Module:
    result = nn.Module()
    result.num_key_value_groups = groups
    return result


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


def with_tiny_dropout(lengths: Sequence[int], *tensors: Tensor, **options: Any) -> Tensor:
    return with_dropout(lengths, *tensors, dropout=1e-9, **options)


each_path = pytest.mark.parametrize("attend", [in_runs, in_groups, with_tiny_dropout])
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
    """softmax(Q Kᵀ · scale) V of each sequence in float64; `factors` are those of dropout."""
    repeats = query.shape[1] // key.shape[1]
    q, k, v = (tensor[0].double() for tensor in (query, key, value))
    k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
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
    """The dropout factors of each sequence, (heads, length, length), drawn chunk by chunk."""
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


def gradients(output: Tensor, tensors: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, tensors, gradient.to(output.dtype))


def assert_same_gradients(
    result: Tensor, expected: Tensor, tensors: Sequence[Tensor], gradient: Tensor, **tolerance: float
) -> None:
    torch.testing.assert_close(
        gradients(result, tensors, gradient), gradients(expected, tensors, gradient), **tolerance
    )


def output_gradient(lengths: Sequence[int], heads: int = 3) -> Tensor:
    """A gradient of the output."""
    return torch.randn(1, sum(lengths), heads, WIDTH, generator=torch.Generator().manual_seed(9))


def assert_near(result: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert result.dtype == dtype
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(result.double(), expected.double(), rtol=rtol, atol=atol)


@each_path
@each_masking
@pytest.mark.parametrize("lengths", ROWS, ids=str)
def test_each_path_matches_the_reference(
    attend: Callable[..., Tensor], masking: dict[str, Any], lengths: list[int]
) -> None:
    tensors = projections(lengths)
    result = attend(lengths, *tensors, scaling=0.3, **masking)
    assert result.shape == (1, sum(lengths), 3, WIDTH)
    assert_near(result, reference(lengths, *tensors, scaling=0.3, **masking))


@each_path
@each_masking
def test_each_path_is_close_to_the_reference_in_bf16(attend: Callable[..., Tensor], masking: dict[str, Any]) -> None:
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
@each_masking
@pytest.mark.parametrize("lengths", [RAGGED, UNLIKE], ids=str)
def test_gradients_of_each_path_match_the_reference(
    attend: Callable[..., Tensor], masking: dict[str, Any], lengths: list[int]
) -> None:
    tensors, gradient = projections(lengths, trained=True), output_gradient(lengths)
    result = gradients(attend(lengths, *tensors, **masking), tensors, gradient)
    expected = gradients(reference(lengths, *tensors, **masking), tensors, gradient)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@each_path
def test_large_scores_stay_finite(attend: Callable[..., Tensor]) -> None:
    tensors = tuple(tensor * 100 for tensor in projections(RAGGED, trained=True))
    output = attend(RAGGED, *tensors, **FULL)
    assert output.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(output, tensors, output_gradient(RAGGED)))


def test_groups_hold_sequences_of_different_lengths() -> None:
    assert any(group.real is not None for group in packing(RAGGED).groups)
    assert [len(group.lengths) for group in packing(UNLIKE).groups] == [len(UNLIKE)]


def test_packing_has_runs_groups_and_offsets() -> None:
    result = packing(RAGGED)
    assert result.runs == [(3, 7), (2, 1), (1, 12), (1, 3), (2, 5), (1, 7)]
    assert result.offsets.tolist() == [0, 7, 14, 21, 22, 23, 35, 38, 43, 48, 55]
    assert result.offsets.dtype == torch.int32
    starts = [start for group in result.groups for start in group.rows[:, 0].tolist()]
    assert sorted(starts) == result.offsets[:-1].tolist()
    assert all(getattr(result, name) is getattr(result, name) for name in ("runs", "offsets", "groups"))  # cached


def test_places_of_groups_are_those_of_positions_reversed() -> None:
    result = packing(RAGGED)
    assert result.rows[result.places].tolist() == list(range(sum(RAGGED)))
    assert result.real[result.places].all()
    assert int(result.real.sum()) == sum(RAGGED) < len(result.rows)


class Operators(TorchDispatchMode):
    """Counts the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(function)] += 1
        return function(*args, **kwargs or {})


def test_groups_are_gathered_at_once_in_both_passes() -> None:
    tensors = [tensor.requires_grad_() for tensor in projections(RAGGED)]
    with Operators() as operators:
        in_groups(RAGGED, *tensors).sum().backward()
    assert len(packing(RAGGED).groups) > 2
    assert operators.counts["aten.index.Tensor"] == 2 * 4  # queries, keys, values and output
    assert not [name for name in operators.counts if "index_put" in name or "scatter" in name]


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
def test_chunk_holds_as_many_sequences_or_heads_as_fit(
    monkeypatch: pytest.MonkeyPatch, chunk_scores: int, expected: list[tuple[int, ...]]
) -> None:
    monkeypatch.setattr(attention, "CHUNK_SCORES", chunk_scores)
    result = [(c.heads.start, c.heads.stop, c.positions.start, c.positions.stop) for c in chunks((7, 7, 7), 3)]
    assert result[: len(expected)] == expected
    assert len(result) == len(expected) or chunk_scores == 1


@each_masking
@each_chunk
@pytest.mark.usefixtures("fixed_seed")
def test_dropout_matches_the_reference_with_the_same_masks(
    monkeypatch: pytest.MonkeyPatch, masking: dict[str, Any], chunk_scores: int
) -> None:
    monkeypatch.setattr(attention, "CHUNK_SCORES", chunk_scores)
    tensors, gradient = projections(RAGGED, trained=True), output_gradient(RAGGED)
    factors = drawn_factors(RAGGED, 3, 0.3)
    assert all(factor.isfinite().all() for factor in factors)
    expected = reference(RAGGED, *tensors, factors=factors, scaling=0.4, **masking)
    result = with_dropout(RAGGED, *tensors, scaling=0.4, **masking)
    assert_near(result, expected)
    assert_same_gradients(result, expected, tensors, gradient, rtol=1e-5, atol=1e-5)


@each_masking
@pytest.mark.usefixtures("fixed_seed")
def test_dropout_in_bf16_rounds_only_inputs_and_outputs(masking: dict[str, Any]) -> None:
    tensors, gradient = projections(RAGGED, dtype=torch.bfloat16, trained=True), output_gradient(RAGGED).bfloat16()
    wide = tuple(tensor.detach().double().requires_grad_() for tensor in tensors)
    expected = reference(RAGGED, *wide, factors=drawn_factors(RAGGED, 3, 0.3), **masking)
    result = with_dropout(RAGGED, *tensors, **masking)
    torch.testing.assert_close(result, expected.bfloat16(), rtol=2**-7, atol=0)
    for ours, theirs in zip(gradients(result, tensors, gradient), gradients(expected, wide, gradient), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - theirs).norm() < 2**-8 * gradient.norm()


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    heads=st.integers(1, 4),
    chunk_scores=st.integers(1, 300),
    masking=st.sampled_from(MASKINGS),
    dropout=st.sampled_from([0.01, 0.3, 0.5, 0.9]),
)
def test_dropout_matches_the_reference_for_any_lengths_and_probability(
    lengths: list[int], heads: int, chunk_scores: int, masking: dict[str, Any], dropout: float
) -> None:
    tensors, gradient = projections(lengths, heads=heads, trained=True), output_gradient(lengths, heads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "CHUNK_SCORES", chunk_scores)
        patch.setattr(attention, "drawn_seed", lambda: SEED)
        expected = reference(lengths, *tensors, factors=drawn_factors(lengths, heads, dropout), **masking)
        result = with_dropout(lengths, *tensors, dropout=dropout, **masking)
        torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)
        assert_same_gradients(result, expected, tensors, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("fixed_seed")
def test_tensors_may_be_contiguous_or_not() -> None:
    noncontiguous = projections(RAGGED, trained=True)
    contiguous = tuple(tensor.contiguous() for tensor in noncontiguous)
    assert not noncontiguous[0].is_contiguous()
    result, expected = with_dropout(RAGGED, *noncontiguous), with_dropout(RAGGED, *contiguous)
    torch.testing.assert_close(result, expected)
    gradient = output_gradient(RAGGED)
    transposed = gradient.transpose(1, 3).contiguous().transpose(1, 3)
    torch.testing.assert_close(gradients(result, noncontiguous, transposed), gradients(expected, contiguous, gradient))


@each_chunk
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_changes_neither_inputs_nor_outputs(
    monkeypatch: pytest.MonkeyPatch, chunk_scores: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(attention, "CHUNK_SCORES", chunk_scores)
    tensors = tuple(tensor.contiguous().detach() for tensor in projections(RAGGED, dtype=dtype))
    for layout in (tensors, projections(RAGGED, dtype=dtype)):
        leaves = tuple(tensor.requires_grad_() for tensor in layout)
        gradient = output_gradient(RAGGED).to(dtype)
        output = with_dropout(RAGGED, *leaves)
        before = [tensor.detach().clone() for tensor in (*leaves, output, gradient)]
        first = torch.autograd.grad(output, leaves, gradient, retain_graph=True)
        second = torch.autograd.grad(output, leaves, gradient, retain_graph=True)
        torch.testing.assert_close([*leaves, output, gradient], before, rtol=0, atol=0)
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_gradient_may_be_an_expanded_number() -> None:
    tensors = projections(RAGGED, trained=True)
    output = with_dropout(RAGGED, *tensors)
    summed = torch.autograd.grad(output.sum(), tensors, retain_graph=True)
    torch.testing.assert_close(summed, gradients(output, tensors, torch.ones_like(output)))


@pytest.mark.usefixtures("fixed_seed")
def test_output_is_the_same_without_gradients() -> None:
    trained = with_dropout(RAGGED, *projections(RAGGED, trained=True))
    plain = with_dropout(RAGGED, *projections(RAGGED))
    with torch.no_grad():
        under_no_grad = with_dropout(RAGGED, *projections(RAGGED, trained=True))
    assert trained.requires_grad
    assert not plain.requires_grad
    assert not under_no_grad.requires_grad
    assert torch.equal(trained, plain)
    assert torch.equal(trained, under_no_grad)


@pytest.mark.usefixtures("fixed_seed")
def test_one_projection_may_be_trained_alone() -> None:
    tensors_used = projections(RAGGED, trained=True)
    gradient = output_gradient(RAGGED)
    expected = gradients(with_dropout(RAGGED, *tensors_used), tensors_used, gradient)
    for number in range(3):
        alone = projections(RAGGED)
        alone[number].requires_grad_()
        (result,) = gradients(with_dropout(RAGGED, *alone), [alone[number]], gradient)
        torch.testing.assert_close(result, expected[number])


class TensorSizes(TorchDispatchMode):
    """Records the size of the largest tensor that is created."""

    largest = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@each_masking
def test_no_scores_are_saved_for_backward(masking: dict[str, Any]) -> None:
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
    assert not any(isinstance(result, Tensor) for result in vars(node.plan).values())


def test_only_the_scores_of_one_chunk_exist_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, most = (40, 40, 40), 2 * 40**2
    monkeypatch.setattr(attention, "CHUNK_SCORES", most)
    tensors = projections(lengths, trained=True)
    with TensorSizes() as sizes:
        output = with_dropout(lengths, *tensors, **FULL)
        torch.autograd.grad(output.sum(), tensors)
    assert sizes.largest == most


def test_dropout_depends_on_the_seed_of_torch() -> None:
    tensors = projections(RAGGED)
    torch.manual_seed(1)
    first, second = with_dropout(RAGGED, *tensors), with_dropout(RAGGED, *tensors)
    torch.manual_seed(1)
    assert torch.equal(with_dropout(RAGGED, *tensors), first)
    assert torch.equal(with_dropout(RAGGED, *tensors), second)
    torch.manual_seed(2)
    assert not torch.equal(with_dropout(RAGGED, *tensors), first)
    assert not torch.equal(first, second)


@pytest.mark.usefixtures("fixed_seed")
def test_scores_are_fp32_under_autocast() -> None:
    tensors, gradient = projections(RAGGED, dtype=torch.bfloat16, trained=True), output_gradient(RAGGED)
    expected = with_dropout(RAGGED, *tensors, scaling=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        result = with_dropout(RAGGED, *tensors, scaling=1.0)
    assert torch.equal(result, expected)
    assert_same_gradients(result, expected, tensors, gradient, rtol=0, atol=0)


@each_path
@pytest.mark.parametrize("narrow", [(False, False, True), (True, True, False)])
def test_values_may_have_another_dtype_under_autocast(attend: Callable[..., Tensor], narrow: tuple[bool, ...]) -> None:
    types = [torch.bfloat16 if is_narrow else torch.float32 for is_narrow in narrow]
    tensors = [tensor.to(dtype) for tensor, dtype in zip(projections(RAGGED), types, strict=True)]
    with torch.autocast("cpu", torch.bfloat16):
        result = attend(RAGGED, *tensors, **FULL)
    torch.testing.assert_close(result.double(), reference(RAGGED, *tensors, **FULL), rtol=0.03, atol=0.03)


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
    """`varlen_attn` as the documentation of torch describes it; tensors are (positions, heads, width)."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == cu_seq_q.diff().max()
    assert max_k == cu_seq_k.diff().max()
    assert enable_gqa or query.shape[1] == key.shape[1]
    repeats = query.shape[1] // key.shape[1]
    left, right = (torch.inf if size < 0 else size for size in window_size)
    output = torch.full_like(query, torch.nan)
    for begin, end in itertools.pairwise(cu_seq_q.tolist()):
        q, k, v = (tensor[begin:end].transpose(0, 1) for tensor in (query, key, value))
        places = torch.arange(end - begin)
        ahead = places[None, :] - places[:, None]
        scores = q @ k.repeat_interleave(repeats, 0).transpose(1, 2) * (q.shape[2] ** -0.5 if scale is None else scale)
        hidden = (ahead < -left) | (ahead > right)
        result = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v.repeat_interleave(repeats, 0)
        output[begin:end] = result.transpose(0, 1)
    return output


@each_masking
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_flash_attention_computes_the_same_as_other_paths(
    monkeypatch: pytest.MonkeyPatch, masking: dict[str, Any], kv_heads: int
) -> None:
    monkeypatch.setattr(attention, "varlen_attn", plain_varlen)
    for lengths, scaling in itertools.product(ROWS, (None, 0.3)):
        tensors = projections(lengths, heads=4, kv_heads=kv_heads)
        result = _attend_by_flash(packing(lengths), *tensors, scaling=scaling, **masking)
        torch.testing.assert_close(result, in_runs(lengths, *tensors, scaling=scaling, **masking))


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_arguments_fit_the_flash_attention_of_torch(monkeypatch: pytest.MonkeyPatch, kv_heads: int) -> None:
    calls = []

    def record(*arguments: Any, **options: Any) -> Any:
        calls.append(inspect.signature(varlen_attn).bind(*arguments, **options).arguments)
        return varlen_attn(*arguments, **options)

    monkeypatch.setattr(attention, "varlen_attn", record)
    tensors = (tensor.to("meta") for tensor in projections(RAGGED, heads=4, kv_heads=kv_heads, dtype=torch.bfloat16))
    result = _attend_by_flash(packing(RAGGED), *tensors, scaling=0.3, is_causal=True, sliding_window=4)
    assert result.shape == (1, sum(RAGGED), 4, WIDTH)
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
) -> bool:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    return bool(_has_flash(torch.device(device), dtype, width))


@pytest.mark.parametrize(
    ("options", "supported"),
    [
        ({}, True),
        ({"dtype": torch.float16}, True),
        ({"width": 256}, True),
        ({"width": 8}, True),
        ({"capability": (9, 0)}, True),
        ({"device": "cpu"}, False),
        ({"device": "mps"}, False),
        ({"dtype": torch.float32}, False),
        ({"width": 264}, False),
        ({"width": 20}, False),
        ({"capability": (7, 5)}, False),
    ],
    ids=str,
)
def test_flash_attention_needs_16_bits_and_a_recent_gpu(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], supported: bool
) -> None:
    assert flash(monkeypatch, **options) == supported


@pytest.fixture
def paths_taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions that are called."""
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
def test_cpu_path_depends_on_dropout(
    paths_taken: list[str], options: dict[str, float], kv_heads: int, path: str
) -> None:
    attend_packed(packing(RAGGED), module(), *projections(RAGGED, heads=4, kv_heads=kv_heads), **options)
    assert paths_taken == [path]


@pytest.mark.parametrize(
    ("has_flash", "drops_out", "path"),
    [
        (True, True, "_attend_by_flash"),
        (True, False, "_attend_in_groups"),
        (False, True, "_attend_in_groups"),
    ],
)
def test_other_devices_use_flash_attention_or_groups(
    monkeypatch: pytest.MonkeyPatch, paths_taken: list[str], has_flash: bool, drops_out: bool, path: str
) -> None:
    monkeypatch.setattr(attention, "_has_flash", lambda *_: has_flash)
    monkeypatch.setattr(attention, "_drops_out_by_flash", lambda *_: drops_out)
    tensors = (tensor.to("meta") for tensor in projections(RAGGED))
    attend_packed(packing(RAGGED, torch.device("meta")), module(), *tensors, dropout=0.1)
    assert paths_taken == [path]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.usefixtures("fixed_seed")
def test_packed_row_on_a_cpu_matches_the_reference(dropout: float) -> None:
    tensors = projections(RAGGED)
    result = attend_packed(packing(RAGGED), module(), *tensors, dropout=dropout, scaling=0.3, is_causal=False)
    factors = drawn_factors(RAGGED, 3, dropout)
    assert_near(result, reference(RAGGED, *tensors, factors=factors, scaling=0.3, is_causal=False))


def test_dropout_of_1_gives_zeros() -> None:
    result = attend_packed(packing(RAGGED), module(), *projections(RAGGED), dropout=1.0, is_causal=False)
    assert torch.equal(result, torch.zeros(1, sum(RAGGED), 3, WIDTH))


PADDED = (5, 5, 3, 1)


def padded(*, trained: bool = False, heads: int = 3) -> tuple[tuple[Tensor, ...], Tensor]:
    """Queries, keys and values, (sequences, longest, heads, width), and the mask of real keys as SDPA takes it."""
    generator = torch.Generator().manual_seed(1)
    shape = (len(PADDED), max(PADDED), heads, WIDTH)
    tensors = tuple(torch.randn(shape, generator=generator).requires_grad_(trained) for _ in range(3))
    real = torch.arange(max(PADDED)) < torch.tensor(PADDED)[:, None]
    return tensors, real[:, None, None, :].expand(-1, 1, max(PADDED), -1)


@pytest.mark.usefixtures("fixed_seed")
@pytest.mark.parametrize("chunk_scores", [1, 60, 2**18])
def test_padded_batch_with_dropout_matches_torch(monkeypatch: pytest.MonkeyPatch, chunk_scores: int) -> None:
    monkeypatch.setattr(attention, "CHUNK_SCORES", chunk_scores)
    dropout = 2.0**-16  # dropout has 16 bits: almost surely nothing is dropped
    tensors, mask = padded(trained=True)
    transposed = [tensor.transpose(1, 2) for tensor in tensors]
    result, _ = attend_padded(module(), *transposed, mask, dropout=dropout, is_causal=False)
    loss = sum(result[number, :length].square().sum() for number, length in enumerate(PADDED))
    ours = torch.autograd.grad(loss, tensors)
    expected = torch.nn.functional.scaled_dot_product_attention(*transposed, attn_mask=mask).transpose(1, 2)
    for number, length in enumerate(PADDED):
        torch.testing.assert_close(result[number, :length], expected[number, :length], rtol=1e-4, atol=1e-4)
    theirs = torch.autograd.grad(sum(expected[n, :length].square().sum() for n, length in enumerate(PADDED)), tensors)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("fixed_seed")
def test_batch_without_padding_equals_a_packed_row() -> None:
    tensors, _ = padded()
    count, length = len(PADDED), max(PADDED)
    result, _ = attend_padded(module(), *(t.transpose(1, 2) for t in tensors), None, dropout=0.3, is_causal=False)
    row = [t.reshape(1, count * length, 3, WIDTH).transpose(1, 2) for t in tensors]
    assert torch.equal(result.flatten(0, 1)[None], with_dropout((length,) * count, *row, dropout=0.3, is_causal=False))


@pytest.mark.parametrize(
    ("options", "bias"),
    [({}, False), ({"dropout": 0.1, "sliding_window": 2}, False), ({"dropout": 0.1, "is_causal": True}, False),
     ({"dropout": 0.1}, True)],
)  # fmt: skip
def test_unsupported_cases_use_torch(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], bias: bool) -> None:
    called = []
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *_, **__: called.append(True) or (None, None))
    tensors, mask = padded()
    mask = torch.where(mask, 0.0, -1e9) if bias else mask
    attend_padded(module(), *(tensor.transpose(1, 2) for tensor in tensors), mask, **options)
    assert called
