"""Maps from the teacher's wider spaces to the student's: the residual stream, attention heads, feed-forward units.

Each is a matrix (student's width, teacher's width), computed from what a sample of tokens gives there. A row of zeros
is a component without a counterpart in the teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor


def residual_map(moments: Tensor, width: int, *, seed: int) -> tuple[Tensor, float]:
    """The map of the residual stream, and the share of the second moments that it keeps.

    moments: second moments of the hidden states, (hidden, hidden). The map has orthonormal rows, which span the
    principal directions; within them it is a random rotation, so that no component dominates: a layer norm, which sees
    only mean and variance over the components, then does to the student about what it does to the teacher.
    """
    hidden = len(moments)
    if width == hidden:
        return torch.eye(hidden), 1.0
    sizes, directions = torch.linalg.eigh(moments.double())
    kept = min(width, hidden)
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(width, kept, generator=generator, dtype=torch.float64))
    share = sizes[-kept:].sum() / sizes.sum()
    return (turn @ directions[:, -kept:].T).float(), float(share)


def attention_maps(query: Tensor, key: Tensor, width: int, *, factor: float) -> tuple[Tensor, Tensor]:
    """Maps of a head's queries and keys, (tokens, head width), to `width`, whose products are nearest to the head's.

    Nearest over all pairs of the sample's tokens, by a singular value decomposition. What is the same for all keys
    changes no attention, so keys are centred. factor: what the products are multiplied by.
    """
    roots = [_root(query), _root(key - key.mean(0))]
    left, sizes, right = torch.linalg.svd(roots[0].T @ roots[1])
    kept = min(width, query.shape[1])
    weights = (sizes[:kept] * factor).sqrt()[:, None]
    return (
        _padded(weights * _times_inverse(left[:, :kept].T, roots[0]), width),
        _padded(weights * _times_inverse(right[:kept], roots[1]), width),
    )


def value_map(value: Tensor, output: Tensor, width: int) -> Tensor:
    """The map of a head's values, (tokens, head width), to `width` that keeps most of what the head adds.

    output: the part of the attention's output matrix that reads the head, (hidden, head width).
    """
    root = _root(value - value.mean(0))
    _, sizes, right = torch.linalg.svd(output.double() @ root, full_matrices=False)
    kept = min(width, value.shape[1])
    return _padded(sizes[:kept].sqrt()[:, None] * _times_inverse(right[:kept], root), width)


def relation_map(part: Tensor, width: int, *, factor: float) -> Tensor:
    """The map of a relation head to `width` that keeps most of the products of its vectors.

    part: queries, keys or values of the head, (tokens, head width). factor: what the products are multiplied by.
    """
    _, directions = torch.linalg.eigh(_moments(part))
    kept = min(width, part.shape[1])
    return _padded(directions[:, -kept:].T * factor**0.5, width)


def aligned(of_key: Tensor, of_query: Tensor) -> Tensor:
    """The map of a relation head's keys, turned to that of its queries: products of queries and keys are kept too.

    A rotation changes no products of keys with keys; the nearest solves an orthogonal Procrustes problem.
    """
    left, _, right = torch.linalg.svd(of_query @ of_key.T)
    turned: Tensor = left @ right @ of_key
    return turned


def rotary_map(teacher_width: int, width: int, *, neighbours: bool, factor: float) -> Tensor:
    """The map of a rotated head: for each of the student's pairs of components, the teacher's of nearest frequency.

    neighbours: whether the two components of a pair are next to each other (RoFormer), or half a head apart.
    """
    pairs = torch.round(torch.arange(width // 2) * teacher_width / width).long().clamp(max=teacher_width // 2 - 1)
    places = torch.stack([2 * pairs, 2 * pairs + 1], 1).flatten() if neighbours else _halves(pairs, teacher_width)
    scale: float = (factor * teacher_width / width) ** 0.5  # fewer components give smaller products
    return torch.eye(teacher_width)[places] * scale


def unit_map(activations: Tensor, output: Tensor, width: int) -> Tensor:
    """The map to the feed-forward units that write most, in their order.

    activations: (tokens, units). output: the matrix that reads them, (hidden, units).
    """
    importance = activations.square().mean(0).sqrt() * output.norm(dim=0)
    units = importance.topk(min(width, len(importance))).indices.sort().values
    return _padded(torch.eye(len(importance))[units], width)


def _halves(pairs: Tensor, width: int) -> Tensor:
    return torch.cat([pairs, pairs + width // 2])


def _moments(rows: Tensor) -> Tensor:
    rows = rows.double()
    return rows.T @ rows / len(rows)


def _root(rows: Tensor) -> Tensor:
    """A triangular root of the second moments."""
    moments = _moments(rows)
    moments.diagonal().add_(1e-6 * moments.diagonal().mean() + torch.finfo(torch.float32).tiny)
    root: Tensor = torch.linalg.cholesky(moments)
    return root


def _times_inverse(rows: Tensor, root: Tensor) -> Tensor:
    found: Tensor = torch.linalg.solve_triangular(root, rows, upper=False, left=False)
    return found


def _padded(rows: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, count - len(rows))).float()
