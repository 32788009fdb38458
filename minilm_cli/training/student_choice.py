"""Which student is trained: its configuration, the layers that learn, and the tokens that it keeps."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.inputs import unreadable
from minilm_cli.export.source import decoded
from minilm_cli.models.budget import student_within
from minilm_cli.models.hub import load_tokenizer, tokenizer_info
from minilm_cli.models.kept_vocabulary import KeptVocabulary, count_kept
from minilm_cli.models.student_config import student_config
from minilm_cli.models.trimmed_tokenizer import can_trim
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.plan import VocabularyFacts
from minilm_cli.runs.plan_facts import short_name
from minilm_cli.settings.distill import DistillSettings, StudentSettings
from minilm_cli.tokens.mixture import Mixture
from minilm_cli.tokens.split import held_out, split_by, spread
from minilm_cli.tokens.store import TokenStore
from minilm_cli.training.layer_pairs import LayerPairs, layer_pairs

logger = logging.getLogger(__name__)

#: The share of the data's tokens that a student keeps at least, where its size decides how many it keeps.
_KEPT_AT_LEAST = 0.99

#: Held-out texts that both tokenizers are compared on, and tokens that they are cut to.
_TEXTS_COMPARED, _LONGEST_COMPARED = 1000, 512

#: Values of `student.keep_vocab` that are no file.
_WORDS = ("auto", "all", "tokens")


Counts = npt.NDArray[np.float64]
"""How often the data has each of the teacher's ids."""


@dataclass(frozen=True)
class Student:
    """What a student is, before it has weights."""

    source: str
    """The name of its configuration: a file, a folder or a preset."""
    config: PreTrainedConfig
    layers: LayerPairs
    tokenizer: PreTrainedTokenizerBase
    vocabulary: KeptVocabulary | None = None
    """`None` if it has all of the teacher's tokens."""
    facts: VocabularyFacts | None = None
    """Of the vocabulary."""


def check_student(settings: DistillSettings, teacher: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """A short name of the student; raises `MinilmError` for what is wrong whatever the data is."""
    student = settings.student
    if (file := token_file(student)) is not None:
        _listed(file, tokenizer)
    if student.max_mb is not None:
        return f"{student.max_mb:g}mb"
    if student.max_params is not None:
        return f"{student.max_params / 1e6:g}m"
    assert student.config is not None, "settings have a configuration or a budget"
    config = student_config(student.config, teacher, tokenizer, trimmed=student.keep_vocab not in ("auto", "all"))
    layer_pairs(settings, teacher, config)
    return short_name(config)


def choose_student(
    settings: DistillSettings,
    teacher: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    stores: Sequence[TokenStore],
) -> Student:
    """The student that the settings name; the tokens of the stores are counted if it is not to keep all of them.

    Raises `MinilmError` if there is no such student.
    """
    student, counts = settings.student, None
    automatic = student.keep_vocab == "auto" and student.budget is not None and can_trim(tokenizer)
    if student.keep_vocab in ("auto", "all") and not automatic:
        source, vocabulary = _source(student, teacher, tokenizer), None
    else:
        logger.info("Counting the tokens of the data.")
        counts = _count(stores, settings.data.weights, teacher.vocab_size)
        source, vocabulary = _source_and_tokens(student, teacher, tokenizer, counts)
    config = student_config(source, teacher, tokenizer, trimmed=vocabulary is not None)
    chosen = Student(source, config, layer_pairs(settings, teacher, config), tokenizer)
    if vocabulary is None or counts is None:
        return chosen
    vocabulary.trim_config(config)
    facts = _facts(vocabulary, tokenizer, counts, _held_out_texts(settings, tokenizer, stores))
    return replace(chosen, tokenizer=vocabulary.tokenizer, vocabulary=vocabulary, facts=facts)


def _source_and_tokens(
    student: StudentSettings, teacher: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, counts: Counts
) -> tuple[str, KeptVocabulary | None]:
    """The name of the configuration, and the tokens to keep; `None` for all."""
    keep = partial(KeptVocabulary.chosen, tokenizer, teacher.vocab_size)
    if student.keep_vocab != "auto":
        vocabulary = keep(*_preferred(student, tokenizer, counts))
        return _source(student, teacher, tokenizer, tokens=len(vocabulary)), vocabulary
    assert student.budget is not None, "without a budget, all tokens are kept"
    fewest, most = count_kept(tokenizer, _making(_KEPT_AT_LEAST, counts)), teacher.vocab_size
    source, tokens = student_within(*student.budget, teacher, tokenizer, fewest_tokens=fewest, most_tokens=most)
    return source, None if tokens == most else keep(_by_frequency(counts), tokens)


def _source(
    student: StudentSettings,
    teacher: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int | None = None,
) -> str:
    """The name of the configuration, which a budget decides for so many tokens, all of them by default."""
    if student.budget is None:
        assert student.config is not None, "settings have a configuration or a budget"
        return student.config
    fixed = teacher.vocab_size if tokens is None else tokens
    return student_within(*student.budget, teacher, tokenizer, fewest_tokens=fixed, most_tokens=fixed)[0]


def resolved_tokens(settings: StudentSettings, student: Student) -> str | int:
    """`student.keep_vocab` with `auto` resolved, and an absolute path."""
    if settings.keep_vocab == "auto":
        return "all" if student.vocabulary is None else len(student.vocabulary)
    file = token_file(settings)
    return settings.keep_vocab if file is None else str(file.absolute())


def token_file(student: StudentSettings) -> Path | None:
    """The file of tokens, or the folder of a tokenizer, that `student.keep_vocab` names."""
    wanted = student.keep_vocab
    return Path(wanted) if isinstance(wanted, str) and wanted not in _WORDS else None


def _held_out_texts(
    settings: DistillSettings, tokenizer: PreTrainedTokenizerBase, stores: Sequence[TokenStore]
) -> list[str]:
    """Some of the held-out texts, of all if none is held out; whole or their begin."""
    data = Mixture(stores, settings.data.weights)
    indices = held_out(split_by(settings, data)).tolist() or range(len(data))
    return decoded(tokenizer, data, spread(indices, _TEXTS_COMPARED), _LONGEST_COMPARED)


def _facts(
    vocabulary: KeptVocabulary, tokenizer: PreTrainedTokenizerBase, counts: Counts, texts: Sequence[str]
) -> VocabularyFacts:
    """What is kept; raises `MinilmError` if both tokenizers split one of these texts differently."""
    split_up, unknown = vocabulary.shares(counts)
    return VocabularyFacts(
        tokens=len(vocabulary),
        teacher_tokens=len(tokenizer),
        vocabulary_sha256=str(tokenizer_info(vocabulary.tokenizer).vocabulary_sha256),
        share_split=split_up,
        share_unknown=unknown,
        texts_compared=vocabulary.compare(tokenizer, texts),
    )


# --- Tokens ------------------------------------------------------------------------------------------------------


def _count(stores: Sequence[TokenStore], weights: Sequence[float] | None, size: int) -> Counts:
    """How often the data has each id; of stores with weights, as often as training would see it."""
    total: Counts = np.zeros(size)
    mixture = Mixture(stores, weights)
    for store, share in zip(stores, mixture.shares, strict=True):
        counts = store.token_counts()
        total[: len(counts)] += counts * (share * len(mixture) / len(store))
    return total


def _by_frequency(counts: Counts) -> list[int]:
    """All ids, the most frequent first, and those that the data lacks in their order."""
    order: list[int] = np.argsort(-counts, kind="stable").tolist()
    return order


def _making(share: float, counts: Counts) -> list[int]:
    """The most frequent ids, as many as make this share of the data."""
    order = _by_frequency(counts)
    return order[: int(np.searchsorted(np.cumsum(counts[order]), share * counts.sum())) + 1]


def _preferred(
    student: StudentSettings, tokenizer: PreTrainedTokenizerBase, counts: Counts
) -> tuple[Sequence[int], int | None]:
    """The ids to keep, the most wanted first, and the most tokens in all."""
    if (file := token_file(student)) is not None:
        return _listed(file, tokenizer), None
    if isinstance(student.keep_vocab, int):
        return _by_frequency(counts), student.keep_vocab
    often: list[int] = np.flatnonzero(counts >= student.keep_count).tolist()
    if not often:
        raise MinilmError(
            f"student.keep_count: the data has no token {student.keep_count:,} times",
            hint=f"The most frequent one occurs {counts.max():,.0f} times.",
        )
    return often, None


def _listed(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of the tokens in a file or a tokenizer's folder; raises `MinilmError` if the teacher lacks one."""
    if path.is_dir():
        run = RunFolder(path)
        kept = load_tokenizer(str(run.student_tokenizer if run.plan_file.is_file() else path)).get_vocab()
        tokens = sorted(kept, key=kept.__getitem__)
    else:
        tokens = _lines(path)
    ids = tokenizer.get_vocab()
    if unknown := [token for token in tokens if token not in ids]:
        near = difflib.get_close_matches(unknown[0], ids, n=1)
        others = f", nor {len(unknown) - 1:,} others" if len(unknown) > 1 else ""
        raise MinilmError(
            f"{unknown[0]!r} is no token of the teacher's{others}",
            where=str(path),
            hint="Name a folder whose tokenizer was trimmed from the teacher's."
            if path.is_dir()
            else f"Did you mean {near[0]!r}?"
            if near
            else "Write one token on each line, as the teacher's tokenizer does.",
        )
    return [ids[token] for token in tokens]


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        near = difflib.get_close_matches(str(path), _WORDS, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Name a file with a token on each line."
        raise MinilmError(f"student.keep_vocab: there is no such file: {path}", hint=hint) from None
    except UnicodeDecodeError:
        raise MinilmError("this list of tokens is not UTF-8 text", where=str(path)) from None
    except OSError as error:
        raise unreadable(error, str(path)) from None
    tokens = [token for line in lines if (token := line.removesuffix("\r"))]
    if not tokens:
        raise MinilmError("this list of tokens is empty", where=str(path), hint="Write one token on each line.")
    return tokens
