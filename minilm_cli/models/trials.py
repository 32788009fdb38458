"""What a tapped model is like, found by trying it on a few tokens: how inputs are laid out, what the loss reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minilm_cli.models.checks import unreadable_attention
from minilm_cli.models.inputs import InputAdapter, Inputs, Layout
from minilm_cli.models.tap import Tap
from minilm_cli.ops.relations import Projections
from minilm_cli.tokens.store import TokenIds

#: Largest relative and absolute difference of projections that is rounding.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4


def refuse_unreadable(tap: Tap, side: str, where: str) -> None:
    """Raise `MinilmError` if what a tap returns cannot be the projections of layers: other shapes, or constant."""
    first, second = (_ids(tap, numbers) for numbers in ((1, 2, 3), (2, 3, 1)))
    with _tried(tap) as run:
        outputs = [run([ids]) for ids in (first, second)]
    for of_first, of_second in zip(*outputs, strict=True):
        query, key, value = of_first
        fits = all(len(part) == len(first) for part in of_first) and query.shape[1] % key.shape[1] == 0
        varies = all(not torch.equal(one, other) for one, other in zip(of_first, of_second, strict=True))
        if not (fits and varies and value.isfinite().all()):
            raise unreadable_attention(tap.family.name, side, where)


def layout(tap: Tap) -> Layout:
    """How sequences may be put together without a change to what the tap returns.

    Packed if `position_ids` alone tell a token's place. ESM also looks at the other tokens of the row, and attention
    outside the registry always does. In ConvBERT, padding changes the tokens next to it.
    """
    sequences = [_ids(tap, range(5)), _ids(tap, range(5, 8))]
    with _tried(tap) as run:
        alone = (chain(*run([sequence])) for sequence in sequences)
        expected = [torch.cat(parts) for parts in zip(*alone, strict=True)]
        own_row = not tap.in_registry or tap.family.needs_own_row(tap.model.config)
        if not own_row and _agree(lambda: chain(*run(sequences, Inputs.packed)), expected):
            return "packed"
        real = [*range(5), *range(5, 8)]
        padded = _agree(lambda: (part[real] for part in chain(*run(sequences))), expected)
    return "padded" if padded else "equal"


def packing_error(tap: Tap) -> float:
    """How far the projections of a packed row are from those of its sequences alone, relative to the latter.

    As the tap computes now, but not compiled: on its device, in the precision of the caller's autocast.
    """
    sequences = [_ids(tap, range(5)), _ids(tap, range(5, 8)), _ids(tap, range(8, 21))]
    with _tried(tap) as run, torch.compiler.set_stance("force_eager"):
        alone = [chain(*run([sequence])) for sequence in sequences]
        expected = [torch.cat(parts).float() for parts in zip(*alone, strict=True)]
        found = [part.float() for part in chain(*run(sequences, Inputs.packed))]
    return max(float((ours - right).norm() / right.norm()) for ours, right in zip(found, expected, strict=True))


def ignores_padding(model: PreTrainedModel) -> bool:
    """Whether a model's outputs are the same with padding and without it."""
    ids = np.arange(2, 7) % model.config.vocab_size
    adapt, sequences = InputAdapter(model), [ids[:2], ids]
    with torch.inference_mode():
        alone, beside = (model(**adapt(Inputs.padded(some)))[0][0, :2] for some in (sequences[:1], sequences))
    return torch.allclose(alone, beside, _RELATIVE, _ABSOLUTE)


def common_layout(*taps: Tap) -> Layout:
    """One that all of them support."""
    layouts = {layout(tap) for tap in taps}
    return "equal" if "equal" in layouts else "padded" if "padded" in layouts else "packed"


def untrained_parameters(tap: Tap, letters: Iterable[str]) -> list[str]:
    """Names of the model's parameters that the loss does not reach: they stay as they were initialised.

    The loss ends at the tapped projections whose `letters` (of q, k and v) the relations use. Everything after them
    gets no gradient: that layer's attention output, feed-forward part and norms, every later layer, and the pooler.
    """
    with _tried(tap) as run, torch.enable_grad():
        found = [dict(zip("qkv", of_layer, strict=True)) for of_layer in run([_ids(tap, range(4))])]
        total = torch.stack([parts[letter].float().sum() for parts in found for letter in letters]).sum()
        total.backward()  # type: ignore[no-untyped-call]  # it has no types
    names = [name for name, parameter in tap.model.named_parameters() if parameter.grad is None]
    tap.zero_grad(set_to_none=True)
    return names


def computes_in_bf16(tap: Tap) -> bool:
    """Whether a model with weights in fp32 can compute in bf16 (X-MOD's own code cannot)."""
    with _tried(tap) as run, torch.autocast("cpu", torch.bfloat16):
        try:
            run([_ids(tap, range(3))])
        except RuntimeError:
            return False
    return True


def widths(tap: Tap) -> list[dict[str, int]]:
    """The width of each tapped layer's queries, keys and values, by letter."""
    with _tried(tap) as run:
        found = run([_ids(tap, [1])])
    return [{letter: part.shape[1] for letter, part in zip("qkv", of_layer, strict=True)} for of_layer in found]


Run = Callable[..., tuple[Projections, ...]]


@contextmanager
def _tried(tap: Tap) -> Iterator[Run]:
    """A function that runs the tap without dropout and gradients on sequences, padded if not said otherwise."""
    device, was_training = next(tap.parameters()).device, tap.training

    def run(sequences: Sequence[TokenIds], arrange: Callable[..., Inputs] = Inputs.padded) -> tuple[Projections, ...]:
        return tap(arrange(sequences).to(device))  # type: ignore[no-any-return]  # nn.Module has no types

    tap.eval()
    try:
        with torch.no_grad():
            yield run
    finally:
        tap.train(was_training)


def _ids(tap: Tap, numbers: Iterable[int]) -> TokenIds:
    """Token ids, of a vocabulary that may be small, without that of padding if there are others."""
    config = tap.model.config
    usable = [number for number in range(min(config.vocab_size, 16)) if number != config.pad_token_id] or [0]
    return np.array([usable[number % len(usable)] for number in numbers])


def _agree(compute: Callable[[], Iterable[Tensor]], expected: Sequence[Tensor]) -> bool:
    try:
        found = list(compute())
    except (TypeError, ValueError, IndexError, RuntimeError):
        return False  # the family takes no position_ids, or not these
    return all(torch.allclose(ours, right, _RELATIVE, _ABSOLUTE) for ours, right in zip(found, expected, strict=True))
