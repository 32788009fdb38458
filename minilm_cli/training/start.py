"""The student's initial weights: random, from the teacher's layers, or those of another model."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from minilm_cli.base.errors import MinilmError
from minilm_cli.export.source import source_of_checkpoint, source_of_folder, source_of_name
from minilm_cli.models.initialise import init_from_model, init_from_teacher
from minilm_cli.models.inputs import Inputs
from minilm_cli.models.layer_maps import RelationHeads
from minilm_cli.models.layers import spaced_by_pairs
from minilm_cli.models.tap import Tap
from minilm_cli.models.vocabulary import refuse_other_tokens
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.lookup import find_model
from minilm_cli.runs.plan import RelationFacts, StartFacts
from minilm_cli.runs.plan_facts import public_name
from minilm_cli.runs.plan_text import start
from minilm_cli.training.batches import BatchStream

#: The starts that are no model's name.
STARTS = ("random", "teacher")

#: Tokens that a smaller student is fitted to, times the teacher's width: 16,384 for 384, and fewer for a wide teacher,
#: whose pass takes longer. Four times as many lower the first loss by a few per cent.
_TOKENS_TIMES_WIDTH = 16_384 * 384

#: Sequences are cut to so many tokens for that: their attention is held in memory together.
_LONGEST = 128


def check_start(init: str) -> None:
    """Raise `MinilmError` if `student.init` names no model, as far as that is seen without loading it."""
    if init in STARTS:
        return
    if Path(init).is_dir():
        find_model(Path(init))
    elif near := difflib.get_close_matches(init, STARTS, n=1):
        raise MinilmError(f"--init: there is no model {init!r}", hint=f"Did you mean {near[0]}?")


def start_from_teacher(student: Tap, teacher: Tap, relations: RelationFacts, stream: BatchStream) -> StartFacts:
    """Start from the teacher's layers, fitted to training sequences if widths differ; raises `MinilmError`."""
    letters = frozenset(letter for pair in relations.weights for letter in pair)
    kept = init_from_teacher(
        student.model,
        student.layers,
        teacher.model,
        teacher.layers,
        sample=_sample(stream, _TOKENS_TIMES_WIDTH // teacher.model.config.hidden_size),
        relations=RelationHeads(relations.heads, letters),
    )
    layers = spaced_by_pairs(student.layers, teacher.layers)
    return StartFacts(init_from_teacher_layers=layers, init_share_kept=kept)


def _sample(stream: BatchStream, tokens: int) -> Inputs:
    """Training sequences, cut so that few are padded far: one long sequence would widen the rows of all."""
    lengths = [len(sequence) for sequence in stream.sample(tokens, _LONGEST)]
    return Inputs.padded([*stream.sample(tokens, int(np.percentile(lengths, 90)))])


def start_from_model(student: Tap, name: str, tokenizer: PreTrainedTokenizerBase) -> StartFacts:
    """Start from a run's last checkpoint, or from the model of a folder or of a name on the Hub.

    Raises `MinilmError` if it is not of the student's configuration, or reads other tokens than the teacher.
    """
    found = find_model(Path(name)) if Path(name).is_dir() else None
    if isinstance(found, RunFolder):
        source = source_of_checkpoint(found, "last")
    else:
        source = source_of_name(name)[0] if found is None else source_of_folder(found)
    init_from_model(student.model, source.model, name)
    refuse_other_tokens(tokenizer, source.folder, hint=f"Keep the tokens of that model: --keep-vocab {name}")
    if not isinstance(found, RunFolder):
        return StartFacts(init_from=public_name(name))
    before = found.plan()
    made = f"{found.path.name}, step {source.step:,}: learnt from {before.teacher.name}, from {start(before.student)}"
    return StartFacts(
        init_from=found.path.name,
        init_lineage=[*before.student.init_lineage, made],
        init_random_tail=before.student.has_random_tail,
    )
