"""Which backend computes a relation loss: the fused kernels on GPUs that can run them, plain torch elsewhere."""

from __future__ import annotations

import logging
import os
from functools import cache

import torch

from minilm_cli.base.errors import MinilmError
from minilm_cli.ops import relation_chunks
from minilm_cli.ops.relations import Backend, ByLetter, Relations

logger = logging.getLogger(__name__)

#: An environment variable: `off` leaves the kernels out, `on` makes it an error if they cannot be used.
VARIABLE = "MINILM_RELATION_KERNEL"

#: The least compute capability: that of GPUs which multiply bf16.
_CAPABILITY = (8, 0)

#: The widest relation heads whose blocks fit in registers.
_WIDEST = 64

#: Largest difference of a loss, and of a gradient that is rounded to bf16, relative to the largest there is.
_LOSS_ROUNDING, _GRADIENT_ROUNDING = 1e-4, 2**-7


def choose_backend(relations: Relations, teacher: ByLetter, student: ByLetter) -> Backend:
    """The backend for these projections.

    Raises `MinilmError` if the environment asks for the kernels and they cannot be used.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in ("auto", "on", "off"):
        raise MinilmError(f"{VARIABLE} must be on or off, not {wanted!r}", hint="Unset it to have the choice made.")
    plain = relation_chunks.losses_and_gradients
    if wanted == "off":
        return plain
    fused: Backend | str = _unusable(relations, teacher, student)
    if not fused:
        kinds = [(side[relations.letters[0]].dtype, _width(side, relations)) for side in (teacher, student)]
        fused = _fused(student[relations.letters[0]].device, *kinds)
    if isinstance(fused, str) and wanted == "on":
        raise MinilmError(f"{VARIABLE} is on, but the fused kernels cannot be used: {fused}", hint="Unset it.")
    return plain if isinstance(fused, str) else fused


def _width(side: ByLetter, relations: Relations) -> int:
    """Of the widest relation head."""
    return max(side[letter].shape[1] for letter in relations.letters) // relations.heads


def _unusable(relations: Relations, teacher: ByLetter, student: ByLetter) -> str:
    """Why these projections need plain torch; empty if they do not."""
    device = student[relations.letters[0]].device
    if device.type != "cuda":
        return f"the device is {device}"
    if torch.cuda.get_device_capability(device) < _CAPABILITY:
        return "the GPU does not multiply bf16"
    for side in (teacher, student):
        tensors = [side[letter] for letter in relations.letters]
        kinds = {tensor.dtype for tensor in tensors}
        if len(kinds) > 1 or not kinds <= {torch.bfloat16, torch.float16}:
            return f"the projections are {', '.join(sorted(map(str, kinds)))}"
        if (width := _width(side, relations)) > _WIDEST:
            return f"relation heads are {width} wide, more than {_WIDEST}"
    return ""


_Kind = tuple[torch.dtype, int]
"""Type of a model's projections, and width of a relation head."""


@cache
def _fused(device: torch.device, teacher: _Kind, student: _Kind) -> Backend | str:
    """The fused kernels, if they agree with plain torch there; else the reason, of which a warning tells."""
    try:
        from minilm_cli.ops import fused_relations
    except ImportError:
        return "Triton is not installed (pip install triton)"
    try:
        if agrees(fused_relations.losses_and_gradients, device, teacher, student):
            return fused_relations.losses_and_gradients
        what = "they give other results than plain torch"
    except torch.OutOfMemoryError:
        raise  # nothing is wrong with them
    except Exception as error:  # noqa: BLE001  # Triton raises anything, for example without a C compiler
        what = str(error).strip().partition("\n")[0] or type(error).__name__
    logger.warning("The relation loss is computed without the fused kernels, which is slower: %s", what)
    return what


def agrees(backend: Backend, device: torch.device, teacher: _Kind, student: _Kind) -> bool:
    """Whether a backend gives what plain torch gives, for a few sequences of different lengths."""
    lengths, heads = (1, 5, 33, 70), 2
    spans = tuple((sum(lengths[:number]), length) for number, length in enumerate(lengths))
    relations = Relations(spans, heads, {"qq": 1.0, "kv": 0.5}, max(lengths) ** 2)
    random = torch.Generator().manual_seed(0)

    def side(dtype: torch.dtype, width: int) -> ByLetter:
        shape = (sum(lengths), heads * width)
        return {letter: torch.randn(shape, generator=random).to(device, dtype) for letter in "qkv"}

    tensors = side(*teacher), side(*student)
    found = []
    for compute in (backend, relation_chunks.losses_and_gradients):
        gradients = {
            letter: tensor.new_zeros(len(tensor) + 1, tensor.shape[1]) for letter, tensor in tensors[1].items()
        }
        losses = compute(relations, *tensors, gradients, torch.float32)
        found.append((losses, *(gradient[:-1].float() for gradient in gradients.values())))
    differences = [float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in zip(*found, strict=True)]
    return differences[0] < _LOSS_ROUNDING and max(differences[1:]) < _GRADIENT_ROUNDING
