"""Compares an export, loaded and used as its users do, with the model that it was made of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from minilm_cli.base.errors import RunError
from minilm_cli.export.consumers import Array, Batches, Outputs, Text, Texts, columns, encode_elsewhere
from minilm_cli.export.source import LONGEST_TEXT, Source
from minilm_cli.models.trials import ignores_padding

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

Run = Callable[[str, Path, Batches, int | None], list[list[Outputs]]]
"""`encode_here` or `encode_elsewhere`."""

#: Largest difference that is rounding in fp32, as a share of the largest value.
TOLERANCE = 1e-4

#: How many times the rounding of a 16-bit type, as torch has it, an export in that type may differ.
_TIMES = 3

#: Held-out texts that are compared value by value, and those whose nearest neighbours are.
_FEW, _MANY = 8, 256

#: Texts of a batch where there are many.
_BATCH = 8

#: Characters of a text in a message.
_SHOWN = 60

#: Neighbours among which the nearest of fp32 must be.
_NEAREST = 10


def verify(source: Source, folder: Path, consumer: str, run: Run = encode_elsewhere, *, pairs: bool = True) -> float:
    """Compare token ids, hidden states and sentence embeddings, of texts alone and together in a padded batch.

    pairs: compare those of pairs of texts too.
    Returns the largest difference as a share of the largest value; raises `RunError` if it is more than rounding.
    """
    awkward = awkward_texts(source)
    groups: list[Texts] = [awkward + source.texts(_FEW)]
    if pairs:  # they have token types, and special tokens between them; the second is cut
        groups.append([("a", "the other, longer text"), (awkward[-1], "a")])
    samples: list[Text] = [text for group in groups for text in group]
    # Only sentence-transformers reads that texts are to be made lower case.
    prepare = source.head.prepare if source.head is not None and consumer == "sentence-transformers" else str
    expected = [encode(source, source.model, prepare(text) if isinstance(text, str) else text) for text in samples]
    allowed = _allowed(source, samples, expected)
    batches = run(consumer, folder, [*groups, *([text] for text in samples)], source.longest)
    together = [found for batch in batches[: len(groups)] for found in batch]
    alone = [found for [found] in batches[len(groups) :]]
    worst, where = 0.0, ""
    ways = [("alone", alone)]
    if ignores_padding(source.model):
        ways.append(("in a padded batch", together))
    else:
        logger.warning(
            "In %s models, padding changes the outputs: encode texts one at a time, or texts of one length.",
            source.model.config.model_type,
        )
    for number, text in enumerate(samples):
        for found, how in ((outputs[number], how) for how, outputs in ways):
            text_shown = f"The text, {how}: {shown(text)}"
            if not np.array_equal(expected[number].ids, found.ids):
                raise RunError(f"the exported tokenizer gives other tokens. {text_shown}", where=str(folder))
            difference = _difference(expected[number], found)
            if difference > worst:
                worst, where = difference, text_shown
    if worst > allowed:
        raise RunError(
            f"the export does not compute what the model computes: its outputs differ by {worst:.2g} of the largest,"
            f" and {allowed:.2g} would be rounding. {where}",
            where=str(folder),
        )
    return worst


@dataclass(frozen=True)
class Kept:
    """What a quantised model keeps of the embeddings in fp32."""

    cosine: float
    """Mean cosine of the embeddings of a text."""
    lowest_cosine: float
    recall: float
    """Share of texts whose nearest neighbour in fp32 is among the ten nearest."""
    neighbours: float
    """Share of the ten nearest in fp32 that are still among the ten nearest."""
    texts: int
    held_out: int
    """How many of them were held out of a run's training."""


def compare_quantised(source: Source, folder: Path, consumer: str) -> Kept:
    """Compare the embeddings of a quantised model with those of the model in fp32; raises `RunError`."""
    texts = [*awkward_texts(source), *judged_texts(source)]
    batches = [texts[begin : begin + _BATCH] for begin in range(0, len(texts), _BATCH)]
    quantised = [outputs for batch in encode_elsewhere(consumer, folder, batches, source.longest) for outputs in batch]
    first = _embeddings([encode(source, source.model, text) for text in texts])
    second = _embeddings(quantised)
    if wrong := [text for text, found in zip(texts, second, strict=True) if not np.isfinite(found).all()]:
        raise RunError(
            f"quantised, the model does not compute finite numbers. The text: {shown(wrong[0])}", where=str(folder)
        )
    cosines = (first * second).sum(1)
    nearest, found = (_neighbours(embeddings) for embeddings in (first, second))
    return Kept(
        cosine=float(cosines.mean()),
        lowest_cosine=float(cosines.min()),
        recall=float(np.mean([before[0] in now for before, now in zip(nearest, found, strict=True)])),
        neighbours=float(np.mean([np.isin(before, now).mean() for before, now in zip(nearest, found, strict=True)])),
        texts=len(texts),
        held_out=len(_judged(range(min(source.held_out_sequences, _MANY + _MANY // 2)))),
    )


def judged_texts(source: Source) -> list[str]:
    """Texts that a quantised model is judged on."""
    return _judged(source.texts(_MANY + _MANY // 2))


def calibration_texts(source: Source) -> list[str]:
    """Others, half as many, that ranges of activations are measured on; the same if there are no three texts."""
    texts = source.texts(_MANY + _MANY // 2)
    return texts[2::3] or texts


def _judged(texts: Sequence[Item]) -> list[Item]:
    """Two of each three."""
    return [text for number, text in enumerate(texts, start=1) if number % 3]


def awkward_texts(source: Source) -> list[str]:
    """Texts that programs often get wrong; the empty one only if the tokenizer adds special tokens.

    The longest has more tokens than the model reads, or `LONGEST_TEXT` if the model reads more.
    """
    limit = min(source.longest or LONGEST_TEXT, LONGEST_TEXT)
    long = " ".join(source.texts(64))
    longest = long * (1 + 8 * limit // max(1, len(long)))
    if source.longest is None or source.longest > limit:
        ids = source.tokenizer(longest, truncation=True, max_length=limit, add_special_tokens=False)["input_ids"]
        longest = str(source.tokenizer.decode(ids))
    texts = ["", "a", "😀🙈 👩‍👩‍👧", "Ünïcödé, 漢字\tand  spaces\n", longest]
    return [text for text in texts if source.tokenizer(text, truncation=True, max_length=64)["input_ids"]]


def encode(source: Source, model: PreTrainedModel, text: Text) -> Outputs:
    """What the model computes for a text or a pair, without padding; the sentence embedding in fp32."""
    longest = source.longest
    inputs = source.tokenizer(*columns([text]), truncation=longest is not None, max_length=longest, return_tensors="pt")
    with torch.inference_mode():
        states = model(**inputs).last_hidden_state.float()
        embedding = None if source.head is None else source.head(states, inputs["attention_mask"])[0].numpy()
    return Outputs(inputs["input_ids"][0].numpy(), states[0].numpy(), embedding)


def shown(text: Text) -> str:
    """A text, or both of a pair, in a message."""
    if not isinstance(text, str):
        return " and ".join(map(shown, text))
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def _allowed(source: Source, texts: Sequence[Text], expected: Sequence[Outputs]) -> float:
    """The largest difference that is rounding: in a 16-bit type, a multiple of what torch itself loses in it."""
    if source.dtype == "float32":
        return TOLERANCE
    rounded = deepcopy(source.model).to(getattr(torch, source.dtype))
    losses = [_difference(exact, encode(source, rounded, text)) for text, exact in zip(texts, expected, strict=True)]
    if not np.isfinite(max(losses)):
        raise RunError(
            f"the model does not compute finite numbers in {source.dtype}", hint="Export it with --dtype float32."
        )
    return max(TOLERANCE, _TIMES * max(losses))


def _difference(expected: Outputs, found: Outputs) -> float:
    """The largest difference of states and embeddings, as a share of the largest value."""
    if (expected.embedding is None) != (found.embedding is None):
        return np.inf  # one of them has no sentence embedding
    pairs = [(expected.states, found.states)]
    if expected.embedding is not None and found.embedding is not None:
        pairs.append((expected.embedding, found.embedding))
    # A value that is not a number counts as infinitely far: `max` would ignore it.
    shares = [np.nan_to_num(np.abs(ours - theirs).max() / np.abs(ours).max(), nan=np.inf) for ours, theirs in pairs]
    return float(max(shares))


def _embeddings(outputs: Sequence[Outputs]) -> Array:
    """Unit vectors, (texts, width): the sentence embeddings, or the mean states where there are none."""
    found = [each.states.mean(0) if each.embedding is None else each.embedding for each in outputs]
    stacked = np.stack(found).astype(np.float64)
    unit: Array = stacked / np.linalg.norm(stacked, axis=1, keepdims=True)
    return unit


def _neighbours(embeddings: Array) -> Array:
    """The indices of the nearest other texts of each, (texts, 10), nearest first."""
    similarities = embeddings @ embeddings.T
    np.fill_diagonal(similarities, -np.inf)
    order: Array = np.argsort(-similarities, axis=1, kind="stable")[:, :_NEAREST]
    return order
