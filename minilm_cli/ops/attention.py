"""Attention within each sequence of a packed row, or of a padded batch.

On a CPU, sequences of the same length are computed together, as views of the row. With dropout, for which torch has no
fused CPU kernel, probabilities are computed in chunks, dropped, and computed again in the backward pass. On other
devices, FlashAttention's kernel for sequences of varying length takes the row at once; cases that it does not support
(fp32, older GPUs) are computed in groups of similar length, padded and masked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from minilm_cli.ops import flash_dropout
from minilm_cli.ops.dropout import Masks, drawn_seed
from minilm_cli.ops.length_groups import Group, groups, moved

#: Scores in one chunk of attention with dropout on a CPU: a few buffers of that size fit in its caches.
CHUNK_SCORES = 2**18

#: How many scores may be computed for each real one when sequences of different lengths are batched on a GPU.
RAGGEDNESS = 1.25

#: What FlashAttention's kernels need: NVIDIA's Ampere or later, and heads up to this width.
_FLASH_CAPABILITY, _FLASH_WIDTH = (8, 0), 256


class Packing:
    """The layout of sequences in a packed row; anything derived from it is computed once for all layers of a pass."""

    def __init__(self, lengths: tuple[int, ...], device: torch.device) -> None:
        """`lengths` of the sequences, in their order."""
        self.lengths, self.device = lengths, device
        self.longest = max(lengths)
        self.offsets = moved(torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32), device)
        """Where each sequence begins, and where the last ends."""

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """(count, length) of successive sequences of one length."""
        return [(len(list(same)), length) for length, same in itertools.groupby(self.lengths)]

    @cached_property
    def groups(self) -> list[Group]:
        """The sequences in groups of similar length."""
        starts = itertools.accumulate(self.lengths, initial=0)
        spans = list(zip(starts, self.lengths, strict=False))
        return list(groups(spans, self.device, most=float("inf"), raggedness=RAGGEDNESS))

    @cached_property
    def rows(self) -> Tensor:
        """The position at each place of the groups, whose places follow each other."""
        return torch.cat([group.rows.flatten() for group in self.groups])

    @cached_property
    def real(self) -> Tensor:
        """Which places of the groups are not padding."""
        of_groups = (
            torch.ones_like(group.rows, dtype=torch.bool) if group.real is None else group.real for group in self.groups
        )
        return torch.cat([real.flatten() for real in of_groups])

    @cached_property
    def places(self) -> Tensor:
        """The place in the groups of each position."""
        positions = sum(self.lengths)
        return torch.where(self.real, self.rows, positions).argsort()[:positions]


def attend_packed(
    packing: Packing, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any
) -> Tensor:
    """Attention as transformers' function for SDPA computes it, within each sequence of a packed row.

    query, key, value: (1, heads, positions, width); key and value may have fewer heads.
    options: those that transformers passes to an attention function. Returns (1, positions, heads, width). Raises
    `ValueError` if they have a bias for the positions, which is that of a row with one sequence.
    """
    if options.get("position_bias") is not None:
        raise ValueError("position_bias is not supported in a packed row")
    if _takes_flash(query, key, value, **options):
        return _attend_by_flash(packing, query, key, value, **options)
    if query.device.type == "cpu":
        # Keys and values with fewer heads are left to torch; no family with dropout has them.
        if 0 < options.get("dropout", 0.0) < 1 and query.shape[1] == key.shape[1]:

            def visible(chunk: _Chunk) -> Tensor | None:
                return _visible(chunk.length, query.device, **options)

            return _attend_with_dropout(packing.runs, visible, query, key, value, **options)
        return _attend_in_runs(packing, module, query, key, value, **options)
    return _attend_in_groups(packing, module, query, key, value, **options)


def _visible(
    length: int, device: torch.device, *, sliding_window: int | None = None, is_causal: bool = False, **_: Any
) -> Tensor | None:
    """Which keys each query sees, (length, length); `None` if all do."""
    if not is_causal and (sliding_window is None or length <= sliding_window):
        return None
    places = torch.arange(length, device=device)
    distance = places[:, None] - places[None, :]
    window = length if sliding_window is None else sliding_window
    return (distance.abs() < window) & (distance >= 0) if is_causal else distance.abs() < window


def _attend_in_runs(
    packing: Packing, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any
) -> Tensor:
    """Sequences of the same length as one batch, a view of the row: nothing is padded, masked or copied."""
    outputs, begin = [], 0
    for count, length in packing.runs:
        some = slice(begin, begin + count * length)
        q, k, v = (
            tensor[0, :, some].view(-1, count, length, tensor.shape[3]).transpose(0, 1)
            for tensor in (query, key, value)
        )
        windowed = options.get("sliding_window") is not None
        mask = _visible(length, query.device, **options) if windowed else None
        found, _ = sdpa_attention_forward(module, q, k, v, mask, **options)
        outputs.append(found.flatten(0, 1))
        begin += count * length
    return torch.cat(outputs)[None]


def can_be_traced(packing: Packing | None, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> bool:
    """Whether torch.compile can take attention into its graph: it has no loop over the lengths of sequences.

    packing: `None` for a padded batch.
    """
    if packing is None:
        return query.device.type != "cpu"
    return _takes_flash(query, key, value, **options)


def _takes_flash(query: Tensor, key: Tensor, value: Tensor, *, dropout: float = 0.0, **_: Any) -> bool:
    """Whether FlashAttention takes a packed row. No family with dropout has fewer heads of keys and values."""
    if not _has_flash(value.device, value.dtype, value.shape[3]):
        return False
    return not dropout or (query.shape[1] == key.shape[1] and _drops_out_by_flash(value.device, value.dtype))


# A compiled model takes the answers of both into its graph, as constants.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch has no types for it
def _has_flash(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether FlashAttention supports this: 16-bit numbers, a GPU that is new enough."""
    return (
        device.type == "cuda"
        and dtype in {torch.bfloat16, torch.float16}
        and width % 8 == 0
        and width <= _FLASH_WIDTH
        and torch.cuda.get_device_capability(device) >= _FLASH_CAPABILITY
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch has no types for it
def _drops_out_by_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether FlashAttention with dropout can be used."""
    return flash_dropout.works(device, dtype)


def _attend_by_flash(packing: Packing, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    causal, window = bool(options.get("is_causal")), options.get("sliding_window")
    before = -1 if window is None else window - 1
    seen = (before, 0 if causal else before)
    longest = packing.longest
    # Rotated queries and keys may be fp32, which the kernel does not take and which is not needed.
    q, k, v = (tensor[0].transpose(0, 1).to(value.dtype) for tensor in (query, key, value))
    if dropout := options.get("dropout"):
        found = flash_dropout.flash_with_dropout(
            q, k, v, packing.offsets, longest, dropout, scale=options.get("scaling"), window=seen
        )
        return found[None]
    output = varlen_attn(
        q,
        k,
        v,
        packing.offsets,
        packing.offsets,
        longest,
        longest,
        scale=options.get("scaling"),
        window_size=seen,
        enable_gqa=bool(query.shape[1] != key.shape[1]),
    )
    assert isinstance(output, Tensor)
    return output[None]


def _attend_in_groups(
    packing: Packing, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any
) -> Tensor:
    """Sequences of similar length as one batch, padded, the padding hidden by a mask."""
    rows = [
        _Gathered.apply(tensor[0].transpose(0, 1), packing.rows, packing.places, None)  # type: ignore[no-untyped-call]
        for tensor in (query, key, value)
    ]
    sizes, outputs = [group.rows.numel() for group in packing.groups], []
    for group, *parts in zip(packing.groups, *(tensor.split(sizes) for tensor in rows), strict=True):
        mask = _visible(group.rows.shape[1], query.device, **options)
        if group.real is not None:
            real = group.real[:, None, None, :]
            mask = real if mask is None else mask & real
        q, k, v = (part.unflatten(0, group.rows.shape).transpose(1, 2) for part in parts)
        found, _ = sdpa_attention_forward(module, q, k, v, mask, **options)
        outputs.append(found.flatten(0, 1))
    output: Tensor = _Gathered.apply(torch.cat(outputs), packing.places, packing.rows, packing.real)  # type: ignore[no-untyped-call]
    return output[None]


class _Gathered(torch.autograd.Function):
    """`tensor[index]`, whose gradient is gathered too, by the reverse index: nothing is sorted or added up for it.

    real: which elements of `tensor` are in the index; the others have no gradient. An element that is in it more than
    once is a sequence's last token, and what repeats it is padding, whose gradient is 0.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, index: Tensor, reverse: Tensor, real: Tensor | None) -> Tensor:
        ctx.reverse, ctx.real = reverse, real
        return tensor[index]

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        found = outer[0][ctx.reverse]
        return found if ctx.real is None else torch.where(ctx.real[:, None, None], found, 0), None, None, None


def attend_padded(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers' function for SDPA computes it, of a padded batch: (batch, tokens, heads, width).

    With dropout on a CPU, and a mask that hides only padding, probabilities are not kept either.
    """
    batch, heads, length, width = query.shape
    if (
        query.device.type != "cpu"
        or not 0 < options.get("dropout", 0.0) < 1
        or query.shape != key.shape
        or (mask is not None and (mask.dtype != torch.bool or mask.shape[0] != batch))  # relative positions
        or options.get("is_causal")
        or options.get("sliding_window") is not None
        or options.get("position_bias") is not None
    ):
        output: tuple[Tensor, Tensor | None] = sdpa_attention_forward(module, query, key, value, mask, **options)
        return output
    row = [tensor.transpose(0, 1).reshape(1, heads, batch * length, width) for tensor in (query, key, value)]

    def visible(chunk: _Chunk) -> Tensor | None:
        if mask is None:
            return None
        heads_in_chunk = chunk.heads.stop - chunk.heads.start
        return mask[chunk.positions.start // length : chunk.positions.stop // length, 0].repeat(heads_in_chunk, 1, 1)

    found = _attend_with_dropout([(batch, length)], visible, *row, **options)
    return found.view(batch, length, heads, width), None


def _attend_with_dropout(
    runs: Sequence[tuple[int, int]],
    visible: Callable[[_Chunk], Tensor | None],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    **options: Any,
) -> Tensor:
    scaling = options.get("scaling")
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    plan = _Plan(tuple(runs), scale, options["dropout"], drawn_seed(), visible)
    with torch.autocast(query.device.type, enabled=False):  # its products are fp32 in both passes
        output: Tensor = _Attention.apply(plan, query[0], key[0], value[0])  # type: ignore[no-untyped-call]  # torch has no types here
    return output[None]


@dataclass(frozen=True)
class _Plan:
    runs: tuple[tuple[int, int], ...]
    scale: float
    dropout: float
    seed: int
    visible: Callable[[_Chunk], Tensor | None]
    """Which keys each query of a chunk sees, (…, length); `None` if all do."""

    def chunks(self, heads: int) -> Iterator[_Chunk]:
        """Whole heads of whole sequences of one length, as many as a chunk holds, at least one."""
        begin = 0
        for count, length in self.runs:
            together = max(1, CHUNK_SCORES // (heads * length**2))
            some_heads = max(1, min(heads, CHUNK_SCORES // length**2))
            end = begin + count * length
            for first in range(begin, end, together * length):
                here = slice(first, min(first + together * length, end))
                for head in range(0, heads, some_heads):
                    yield _Chunk(slice(head, min(head + some_heads, heads)), here, length)
            begin = end


@dataclass(frozen=True)
class _Chunk:
    heads: slice
    positions: slice
    length: int

    def take(self, tensor: Tensor) -> Tensor:
        """Of (heads, positions, width) the chunk's, in fp32, (heads × sequences, length, width)."""
        there = tensor[self.heads, self.positions]
        taken = torch.empty(there.shape, dtype=torch.float32, device=there.device).copy_(there)
        return taken.view(-1, self.length, tensor.shape[2])

    def put(self, found: Tensor, into: Tensor) -> None:
        """Write a result for the tensor that `take` returned into (heads, positions, width)."""
        there = into[self.heads, self.positions]
        there.copy_(found.view(there.shape))


class _Attention(torch.autograd.Function):
    """Attention with dropout; tensors (heads, positions, width) in, (positions, heads, width) out, scores in fp32."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads, positions, width = query.shape
        output = query.new_empty(positions, heads, width).transpose(0, 1)
        masks = Masks(plan.seed, plan.dropout)
        for chunk in plan.chunks(heads):
            q, k, v = (chunk.take(tensor) for tensor in (query, key, value))
            p, keep = _probabilities(plan, chunk, q, k, masks)
            chunk.put(torch.bmm(p.mul_(keep), v).mul_(masks.scale), output)
        ctx.plan = plan
        ctx.save_for_backward(query, key, value, output)
        return output.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        query, key, value, output = ctx.saved_tensors
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        masks = Masks(plan.seed, plan.dropout)
        for chunk in plan.chunks(query.shape[0]):
            q, k, v, o, g = (chunk.take(tensor) for tensor in (query, key, value, output, outer[0].transpose(0, 1)))
            p, keep = _probabilities(plan, chunk, q, k, masks)
            # Σ over keys of p × its gradient is, for each query, the output times the output's gradient.
            share = o.mul_(g).sum(-1, keepdim=True)
            g.mul_(masks.scale)
            score_gradient = torch.bmm(g, v.transpose(1, 2)).mul_(keep).sub_(share).mul_(p)
            chunk.put(torch.bmm(score_gradient, k).mul_(plan.scale), gradients[0])
            chunk.put(torch.bmm(score_gradient.transpose(1, 2), q).mul_(plan.scale), gradients[1])
            chunk.put(torch.bmm(p.mul_(keep).transpose(1, 2), g), gradients[2])
        return None, *gradients


def _probabilities(plan: _Plan, chunk: _Chunk, query: Tensor, key: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
    """Softmax over the keys, and which probabilities dropout keeps, both (heads × sequences, length, length)."""
    scores = torch.bmm(query, key.transpose(1, 2)).mul_(plan.scale)
    if (mask := plan.visible(chunk)) is not None:
        scores.masked_fill_(~mask, -torch.inf)
    return torch.softmax(scores, dim=-1, out=scores), masks.fill(torch.empty_like(scores))
