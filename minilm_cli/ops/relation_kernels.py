"""What a program of the fused relation loss does, in Triton; `ops.fused_relations` starts them.

A program has some rows of one sequence and one relation head. It goes over the rows that they are related to in blocks,
and computes their scores again where it needs them, so that nothing of the size of the scores is stored. Exponentials
are those of base 2, and scores in its units. No program writes where another does: results are the same bits each time.
"""

from __future__ import annotations

import triton
import triton.language as tl

# fmt: off
#: Triton's interpreter multiplies the bits of bf16 numbers: there they are multiplied as fp32.
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _product(a, b):
    """Of two matrices of one type, in fp32."""
    if _INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a, b)


@triton.jit
def _nearest_bf16(x):
    """Numbers of fp32 rounded to those of bf16, still in fp32."""
    return ((x.to(tl.int32, bitcast=True) + 32768) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _weighted(weights, rows):
    """`weights` in fp32 @ `rows` in 16 bits: the sum of two products, of the nearest numbers of 16 bits and the rest.

    The first alone would be wrong by 0.2%.
    """
    if rows.dtype == tl.bfloat16:
        near = _nearest_bf16(weights)
        rest = _nearest_bf16(weights - near)
        return _product(near.to(tl.bfloat16), rows) + _product(rest.to(tl.bfloat16), rows)
    else:
        scaled = weights * 1024.0  # small ones are among fp16's least numbers, which have few bits
        near = scaled.to(tl.float16)
        rest = (scaled - near.to(tl.float32)).to(tl.float16)
        return (_product(near, rows) + _product(rest, rows)) / 1024.0


@triton.jit
def _load(tensor, stride, rows, real, head, WIDTH: tl.constexpr, PADDED: tl.constexpr, PARTLY: tl.constexpr):
    """Rows of a relation head, (rows, PADDED), 0 beyond its width. PARTLY: some of them are not `real`, and 0."""
    inner = tl.arange(0, PADDED)
    places = tensor + rows[:, None] * stride + head * WIDTH + inner[None, :]
    if PARTLY:
        return tl.load(places, mask=real[:, None] & (inner < WIDTH)[None, :], other=0.0)
    elif WIDTH == PADDED:
        return tl.load(places)
    else:
        return tl.load(places, mask=(inner < WIDTH)[None, :], other=0.0)


@triton.jit
def _tile(
    x_t, x_s, stride_xt, stride_xs, tile, head,
    WIDTH_T: tl.constexpr, WIDTH_S: tl.constexpr, PADDED_T: tl.constexpr, PADDED_S: tl.constexpr, ROWS: tl.constexpr,
):
    """Where the sequence of a tile begins, its length, the tile's rows in it, and these in teacher and student."""
    first, length = tl.load(tile).to(tl.int64), tl.load(tile + 1)
    rows = tl.load(tile + 2) + tl.arange(0, ROWS)
    of_t = _load(x_t, stride_xt, first + rows, rows < length, head, WIDTH_T, PADDED_T, True)
    of_s = _load(x_s, stride_xs, first + rows, rows < length, head, WIDTH_S, PADDED_S, True)
    return first, length, rows, of_t, of_s


@triton.jit
def _scores(
    x_t, x_s, y_t, y_s, stride_yt, stride_ys, first, begin, length, head,
    WIDTH_T: tl.constexpr, WIDTH_S: tl.constexpr, PADDED_T: tl.constexpr, PADDED_S: tl.constexpr,
    SCALE_T: tl.constexpr, SCALE_S: tl.constexpr, COLUMNS: tl.constexpr, PARTLY: tl.constexpr,
):
    """Scores of the rows and a block of columns, (rows, COLUMNS), in teacher and student; and the student's columns."""
    columns = begin + tl.arange(0, COLUMNS)
    of_t = _load(y_t, stride_yt, first + columns, columns < length, head, WIDTH_T, PADDED_T, PARTLY)
    of_s = _load(y_s, stride_ys, first + columns, columns < length, head, WIDTH_S, PADDED_S, PARTLY)
    return _product(x_t, tl.trans(of_t)) * SCALE_T, _product(x_s, tl.trans(of_s)) * SCALE_S, of_s


# --- Loss --------------------------------------------------------------------------------------------------------


@triton.jit
def _add_block(t, s, most_t, most_s, sum_t, sum_s, gap, begin, length, COLUMNS: tl.constexpr, PARTLY: tl.constexpr):
    """Bring up to date what is known of each row: its greatest score, Σ 2^(score − that) and Σ 2^(t − that) (t − s)."""
    apart = t - s
    if PARTLY:
        seen = (begin + tl.arange(0, COLUMNS) < length)[None, :]
        t, s = tl.where(seen, t, float("-inf")), tl.where(seen, s, float("-inf"))
    new_t, new_s = tl.maximum(most_t, tl.max(t, 1)), tl.maximum(most_s, tl.max(s, 1))
    p, shrink = tl.exp2(t - new_t[:, None]), tl.exp2(most_t - new_t)
    sum_s = sum_s * tl.exp2(most_s - new_s) + tl.sum(tl.exp2(s - new_s[:, None]), 1)
    return new_t, new_s, sum_t * shrink + tl.sum(p, 1), sum_s, gap * shrink + tl.sum(p * apart, 1)


@triton.jit(do_not_specialize=["positions", "stride_loss"])
def losses(
    x_t, x_s, y_t, y_s, stride_xt, stride_xs, stride_yt, stride_ys, tiles, log_t, log_s, loss, positions, stride_loss,
    HEADS: tl.constexpr, WIDTH_T: tl.constexpr, WIDTH_S: tl.constexpr, PADDED_T: tl.constexpr, PADDED_S: tl.constexpr,
    SCALE_T: tl.constexpr, SCALE_S: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """The share of a tile's rows in the loss, (heads, tiles), and each row's log₂ Σ 2^score, (heads, positions).

    A row's KL(t ‖ s) = Σ p (log p − log q), where log p = t − log Σ e^t: E[t − s] − log Σ e^t + log Σ e^s.
    """
    tile, head = tl.program_id(0), tl.program_id(1)
    first, length, rows, of_t, of_s = _tile(
        x_t, x_s, stride_xt, stride_xs, tiles + 3 * tile, head, WIDTH_T, WIDTH_S, PADDED_T, PADDED_S, ROWS
    )
    real = rows < length
    most_t, most_s = tl.full([ROWS], float("-inf"), tl.float32), tl.full([ROWS], float("-inf"), tl.float32)
    sum_t, sum_s = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    gap = tl.zeros([ROWS], tl.float32)
    whole = length // COLUMNS * COLUMNS
    for begin in range(0, whole, COLUMNS):
        t, s, _ = _scores(
            of_t, of_s, y_t, y_s, stride_yt, stride_ys, first, begin, length, head, WIDTH_T, WIDTH_S, PADDED_T,
            PADDED_S, SCALE_T, SCALE_S, COLUMNS, False,
        )
        most_t, most_s, sum_t, sum_s, gap = _add_block(
            t, s, most_t, most_s, sum_t, sum_s, gap, begin, length, COLUMNS, False
        )
    if whole < length:
        t, s, _ = _scores(
            of_t, of_s, y_t, y_s, stride_yt, stride_ys, first, whole, length, head, WIDTH_T, WIDTH_S, PADDED_T,
            PADDED_S, SCALE_T, SCALE_S, COLUMNS, True,
        )
        most_t, most_s, sum_t, sum_s, gap = _add_block(
            t, s, most_t, most_s, sum_t, sum_s, gap, whole, length, COLUMNS, True
        )
    found_t, found_s = most_t + tl.log2(sum_t), most_s + tl.log2(sum_s)
    tl.store(log_t + head * positions + first + rows, found_t, mask=real)
    tl.store(log_s + head * positions + first + rows, found_s, mask=real)
    divergence = tl.where(real, gap / sum_t - found_t + found_s, 0.0)
    share = tl.sum(divergence, 0) * _LN_2 / (HEADS * length.to(tl.float32))
    tl.store(loss + head * stride_loss + tile, share)


# --- Gradient ----------------------------------------------------------------------------------------------------


@triton.jit
def _score_gradient(
    t, s, own_t, own_s, log_t, log_s, begin, length,
    COLUMNS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, PARTLY: tl.constexpr,
):
    """What the scores' gradient is, softmax s − softmax t.

    OWN: normalised over the columns. OTHER: over the rows, as the columns are the queries; or both, added.
    """
    columns = begin + tl.arange(0, COLUMNS)
    if OWN:
        found = tl.exp2(s - own_s[:, None]) - tl.exp2(t - own_t[:, None])
        if PARTLY:
            found = tl.where((columns < length)[None, :], found, 0.0)
    if OTHER:
        # 2^(score − ∞) is 0.
        other_t = tl.load(log_t + columns, mask=columns < length, other=float("inf"))
        other_s = tl.load(log_s + columns, mask=columns < length, other=float("inf"))
        others = tl.exp2(s - other_s[None, :]) - tl.exp2(t - other_t[None, :])
        found = found + others if OWN else others
    return found


@triton.jit(do_not_specialize=["positions", "factor"])
def gradient(
    x_t, x_s, y_t, y_s, stride_xt, stride_xs, stride_yt, stride_ys, tiles, log_t, log_s, into, stride_into, positions,
    factor,
    WIDTH_T: tl.constexpr, WIDTH_S: tl.constexpr, PADDED_T: tl.constexpr, PADDED_S: tl.constexpr,
    SCALE_T: tl.constexpr, SCALE_S: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, OWN: tl.constexpr,
    OTHER: tl.constexpr, ADD: tl.constexpr,
):
    """The gradient of the loss, times `factor` × its sequence's length, with respect to a tile's rows of x_s.

    OWN: x are the queries and y the keys, which `log_t` and `log_s` belong to. OTHER: y are the queries, x the keys.
    ADD: to what `into` has, instead of writing over it.
    """
    tile, head = tl.program_id(0), tl.program_id(1)
    first, length, rows, of_t, of_s = _tile(
        x_t, x_s, stride_xt, stride_xs, tiles + 3 * tile, head, WIDTH_T, WIDTH_S, PADDED_T, PADDED_S, ROWS
    )
    real = rows < length
    log_t += head * positions + first
    log_s += head * positions + first
    own_t, own_s = tl.load(log_t + rows, mask=real, other=0.0), tl.load(log_s + rows, mask=real, other=0.0)
    found = tl.zeros([ROWS, PADDED_S], tl.float32)
    whole = length // COLUMNS * COLUMNS
    for begin in range(0, whole, COLUMNS):
        t, s, columns = _scores(
            of_t, of_s, y_t, y_s, stride_yt, stride_ys, first, begin, length, head, WIDTH_T, WIDTH_S, PADDED_T,
            PADDED_S, SCALE_T, SCALE_S, COLUMNS, False,
        )
        weights = _score_gradient(t, s, own_t, own_s, log_t, log_s, begin, length, COLUMNS, OWN, OTHER, False)
        found += _weighted(weights, columns)
    if whole < length:
        t, s, columns = _scores(
            of_t, of_s, y_t, y_s, stride_yt, stride_ys, first, whole, length, head, WIDTH_T, WIDTH_S, PADDED_T,
            PADDED_S, SCALE_T, SCALE_S, COLUMNS, True,
        )
        weights = _score_gradient(t, s, own_t, own_s, log_t, log_s, whole, length, COLUMNS, OWN, OTHER, True)
        found += _weighted(weights, columns)
    found = found * (factor / length.to(tl.float32))
    inner = tl.arange(0, PADDED_S)
    places = into + (first + rows)[:, None] * stride_into + head * WIDTH_S + inner[None, :]
    inside = real[:, None] & (inner < WIDTH_S)[None, :]
    if ADD:
        found += tl.load(places, mask=inside, other=0.0)
    tl.store(places, found.to(into.dtype.element_ty), mask=inside)
