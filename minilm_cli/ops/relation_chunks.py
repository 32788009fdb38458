"""The relation loss in plain torch, in chunks of scores that stay in the cache: memory does not grow with the batch.

Padding is left out, but for a little between sequences of nearly one length, and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import torch
from torch import Tensor

from minilm_cli.ops.length_groups import Group, groups
from minilm_cli.ops.relations import ByLetter, Relations

#: Scores in the chunks of all cores together, of which four are held in fp32: 16 MB, which fit in the last-level cache
#: of most CPUs; and the least that makes good use of one core.
CHUNK_SCORES, LEAST_CHUNK_SCORES = 2**20, 2**17

#: The share of a GPU's memory that they take there.
GPU_CHUNK_SHARE = 1 / 32

#: How many scores may be computed for each real one when sequences of different lengths are batched together.
RAGGEDNESS = 1.2

#: Added to the score of a padded key: its probability is 0, and its scores are equal in teacher and student.
_HIDDEN = -1e30


def default_chunk_scores(device: torch.device) -> int:
    """Scores in a chunk that suits the device."""
    if device.type != "cuda":
        return max(LEAST_CHUNK_SCORES, CHUNK_SCORES // torch.get_num_threads())
    return int(torch.cuda.get_device_properties(device).total_memory * GPU_CHUNK_SHARE) // (4 * 4)


def losses_and_gradients(
    relations: Relations, teacher: ByLetter, student: ByLetter, gradients: ByLetter, dtype: torch.dtype
) -> Tensor:
    """The promise of `ops.relations.Backend`; on a CPU every core computes some of the heads.

    A core computes its heads from the first product to the last. So none waits for the others at the end of each small
    operation, and none reads what another has just written, which takes three times as long without a shared cache.
    """
    device = student["q"].device
    cores = min(torch.get_num_threads(), relations.heads) if device.type == "cpu" else 1
    buffers = _buffers(cores, relations.chunk_scores, dtype, device)
    bounds = [relations.heads * core // cores for core in range(cores + 1)]

    def share(core: int) -> Tensor:
        first, last = bounds[core], bounds[core + 1]

        def own(tensors: ByLetter) -> ByLetter:
            widths = {letter: tensor.shape[1] // relations.heads for letter, tensor in tensors.items()}
            return {letter: tensors[letter][:, first * width : last * width] for letter, width in widths.items()}

        with torch.inference_mode():  # a setting of each thread
            return _of_heads(relations, last - first, own(teacher), own(student), own(gradients), buffers[core])

    shares = map(share, range(cores)) if cores == 1 else _threads(cores).map(share, range(cores))
    return torch.stack(list(shares)).sum(0)


@lru_cache(maxsize=1)
def _buffers(cores: int, chunk_scores: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Two pairs of chunks for each core, reused: memory that is freshly mapped is slow to write to."""
    with torch.inference_mode(False):
        return torch.empty((cores, 2, 2 * chunk_scores), dtype=dtype, device=device)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Threads whose operations take one core each."""
    return ThreadPoolExecutor(count, "relations", initializer=torch.set_num_threads, initargs=(1,))


def _of_heads(
    relations: Relations, heads: int, teacher: ByLetter, student: ByLetter, gradients: ByLetter, buffers: Tensor
) -> Tensor:
    """The share of some heads in each relation's loss; writes their part of the gradients."""
    letters = relations.letters
    parts = buffers.new_zeros(len(relations.weights))
    # The heads of a group take up to half as much memory as the scores of a chunk.
    most = buffers.numel() / 2 / sum(teacher[letter].shape[1] + 2 * student[letter].shape[1] for letter in letters)
    for group in groups(relations.spans, parts.device, most=most, raggedness=RAGGEDNESS):
        split = _Heads(group, heads, relations.heads, buffers.dtype)
        teacher_heads = {letter: split.split(teacher[letter]) for letter in letters}
        student_heads = {letter: split.split(student[letter]) for letter in letters}
        gradient_heads = {letter: torch.zeros_like(student_heads[letter]) for letter in gradients}
        for number, (pair, weight) in enumerate(relations.weights.items()):
            left, right = pair[0], pair[1]
            parts[number] += _relation(
                split,
                (teacher_heads[left], teacher_heads[right]),
                (student_heads[left], student_heads[right]),
                (gradient_heads.get(left), gradient_heads.get(right)),
                buffers,
                weight,
            )
        for letter, gradient in gradient_heads.items():
            split.join(gradient, gradients[letter])
    return parts


@dataclass(frozen=True)
class _Heads:
    """Splits the tensors of a group into relation heads, and joins their gradients.

    The shorter sequences of a group are padded with zeros. A padded key is hidden from both softmaxes; a padded query
    has the same scores, zeros, in teacher and student, and so neither loss nor gradient.
    """

    group: Group
    heads: int
    all_heads: int
    dtype: torch.dtype

    @cached_property
    def hidden(self) -> Tensor | None:
        """Added to the scores of each key, (sequences × heads, 1, longest); `None` if no key is padding."""
        real = self.group.real
        return None if real is None else torch.where(real, 0.0, _HIDDEN).repeat_interleave(self.heads, 0)[:, None, :]

    @cached_property
    def coefficients(self) -> Tensor:
        """1 / (heads × length), which makes a sum over heads and rows a mean; (sequences × heads,)."""
        return (1 / (self.all_heads * self.group.lengths.to(self.dtype))).repeat_interleave(self.heads)

    def split(self, tensor: Tensor) -> Tensor:
        """(positions, width) into relation heads (MiniLMv2, section 3.2): (sequences × heads, head width, longest).

        With the narrow side first, matrix products are several times faster than the other way round. Each side of a
        scaled product takes half of its scale, head width^(-1/4).
        """
        found = self.group.gather(tensor)
        found = found.view(*found.shape[:2], self.heads, -1).permute(0, 2, 3, 1)
        split = torch.empty(found.shape, dtype=self.dtype, device=found.device).copy_(found)
        if self.group.real is not None:
            split.masked_fill_(~self.group.real[:, None, None, :], 0)
        return split.flatten(0, 1).mul_(found.shape[2] ** -0.25)

    def join(self, gradient: Tensor, into: Tensor) -> None:
        """Write the gradient of what `split` returned into `into`, (positions + 1, width), as that of its input."""
        _, width, longest = gradient.shape
        scaled = gradient * (self.coefficients * width**-0.25)[:, None, None]
        joined = scaled.view(-1, self.heads, width, longest).permute(0, 3, 1, 2)
        self.group.scatter(joined, into.view(into.shape[0], self.heads, width))


def _chunks(count: int, length: int, chunk_scores: int) -> Iterator[tuple[slice, slice]]:
    """Heads and query rows of each chunk: as many heads as fit, or some rows of one, since rows are independent."""
    rows = min(length, max(1, chunk_scores // length))
    together = min(count, max(1, chunk_scores // (rows * length)))
    for begin in range(0, count, together):
        for first in range(0, length, rows):
            yield slice(begin, min(begin + together, count)), slice(first, min(first + rows, length))


def _relation(
    split: _Heads,
    teacher: tuple[Tensor, Tensor],
    student: tuple[Tensor, Tensor],
    gradients: tuple[Tensor | None, Tensor | None],
    buffers: Tensor,
    weight: float,
) -> Tensor:
    """Sum over the group's sequences of one relation's KL divergence, the mean over heads and rows.

    Adds `weight` × its gradient, without `split.coefficients`, to `gradients`. All tensors are as `_Heads.split`
    returns them; `buffers` are two pairs of chunks of scores.
    """
    count, _, length = student[0].shape
    divergence = student[0].new_zeros(count)
    for some, here in _chunks(count, length, buffers.shape[1] // 2):
        shape = (some.stop - some.start, here.stop - here.start, length)
        # Teacher and student side by side, so that each operation serves both.
        scores, p = (buffer[: 2 * math.prod(shape)].view(2, *shape) for buffer in buffers)
        torch.bmm(teacher[0][some, :, here].transpose(1, 2), teacher[1][some], out=scores[0])
        torch.bmm(student[0][some, :, here].transpose(1, 2), student[1][some], out=scores[1])
        if split.hidden is not None:
            scores.add_(split.hidden[some])
        torch.softmax(scores, dim=-1, out=p)
        # KL = Σ p_t (log p_t - log p_s), where log p = score - logsumexp. The logsumexp of a row comes from its
        # softmax, without an `exp`: score - log p at the likeliest key.
        of_teacher, of_student = scores.amax(dim=-1).sub_(p.amax(dim=-1).log_())
        teacher_p, student_p = p
        expected = scores[0].sub_(scores[1]).mul_(teacher_p).sum((1, 2))
        divergence[some] += expected.sub_(of_teacher.sub_(of_student).sum(-1))
        score_gradient = student_p.sub_(teacher_p)
        if gradients[0] is not None:
            gradients[0][some, :, here].baddbmm_(student[1][some], score_gradient.transpose(1, 2), alpha=weight)
        if gradients[1] is not None:
            gradients[1][some].baddbmm_(student[0][some, :, here], score_gradient, alpha=weight)
    return torch.dot(divergence, split.coefficients)
