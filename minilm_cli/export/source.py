"""What is exported: the student of a run at a checkpoint, or the model of a folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.sample import SAMPLE
from minilm_cli.export.tokenizer_files import fit_tokenizer
from minilm_cli.models.checks import refuse_decoder
from minilm_cli.models.encoder import load_encoder
from minilm_cli.models.hub import load_tokenizer
from minilm_cli.models.sentence_head import Dense, Normalize, SentenceHead, read_head
from minilm_cli.models.state import refuse_mismatch, unshared_state
from minilm_cli.models.student import build_student
from minilm_cli.models.student_config import saved_config
from minilm_cli.runs.checkpoint import Checkpoint
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.lookup import pick_checkpoint
from minilm_cli.tokens.id_lists import converted_store, is_id_lists
from minilm_cli.tokens.mixture import Mixture
from minilm_cli.tokens.split import held_out, split_by, spread
from minilm_cli.tokens.store import TokenStore

logger = logging.getLogger(__name__)

#: Tokens of the longest text to compare with: the attention scores of a batch of longer ones need many gigabytes.
LONGEST_TEXT = 1024


@dataclass(frozen=True)
class Source:
    """A model, its tokenizer, and what is known of it."""

    model: PreTrainedModel
    """In fp32 and evaluation mode."""
    folder: Path
    """Of the tokenizer's files; the model's name if it is on the Hub."""
    head: SentenceHead | None
    """How it makes sentence embeddings, if that is known."""
    dtype: str = "float32"
    """Type of the exported weights."""
    run: RunFolder | None = None
    step: int | None = None
    """Of the run's checkpoint."""
    revision: str | None = None
    """Of a model on the Hub."""

    def new_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the folder, with what the model needs changed, never used before."""
        tokenizer = load_tokenizer(str(self.folder), revision=self.revision)
        fit_tokenizer(tokenizer, self.model)
        return tokenizer

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The same, loaded once."""
        return self.new_tokenizer()

    @property
    def takes_token_types(self) -> bool:
        """Whether the tokenizer gives, and the model uses, token types, which tell the two texts of a pair apart."""
        return "token_type_ids" in self.tokenizer.model_input_names

    @property
    def has_untrained_tail(self) -> bool:
        """Whether the last part of a run's student has random weights, so that its outputs mean little."""
        return self.run is not None and self.run.plan().student.has_random_tail

    @cached_property
    def longest(self) -> int | None:
        """Tokens of the longest text that it reads, or `None` if nothing limits it."""
        return longest_text(self.tokenizer, self.head)

    def texts(self, count: int) -> list[str]:
        """At most `count` texts: of the run's held-out sequences, then of others; of a sample if there is no run.

        They are cut to `LONGEST_TEXT` tokens.
        """
        mixture = self._mixture
        if self.run is None or mixture is None:
            return spread(SAMPLE.read_text(encoding="utf-8").splitlines(), count)
        indices = [*spread(self._held_out, count), *spread(range(len(mixture)), count)][:count]
        tokenizer = load_tokenizer(str(self.run.tokenizer))  # the data has the teacher's tokens
        return decoded(tokenizer, mixture, indices, min(self.run.plan().data.max_length, LONGEST_TEXT))

    @property
    def held_out_sequences(self) -> int:
        """Of the run; `texts` begins with them."""
        return len(self._held_out)

    @cached_property
    def _held_out(self) -> list[int]:
        if self.run is None or self._mixture is None:
            return []
        indices: list[int] = held_out(split_by(self.run.settings(), self._mixture)).tolist()
        return indices

    @cached_property
    def _mixture(self) -> Mixture | None:
        """The token stores of the run; `None` if there is no run, or they are elsewhere now."""
        if self.run is None:
            return None
        data = self.run.settings().data
        paths = [
            converted_store(self.run.tokens, number) if is_id_lists(path) else path
            for number, path in enumerate(data.paths, start=1)
        ]
        try:
            return Mixture([TokenStore(path) for path in paths], data.weights)
        except MinilmError:
            return None


def decoded(tokenizer: PreTrainedTokenizerBase, data: Mixture, indices: Sequence[int], longest: int) -> list[str]:
    """The texts of these sequences, cut to `longest` tokens."""
    return [str(tokenizer.decode(data.sequence(index, longest), skip_special_tokens=True)) for index in indices]


def longest_text(tokenizer: PreTrainedTokenizerBase, head: SentenceHead | None) -> int | None:
    """Tokens that a tokenizer and a sentence head cut texts to, or `None` if neither does."""
    limits = [
        head and head.max_length,
        tokenizer.model_max_length if tokenizer.model_max_length < 2**31 else None,
    ]
    return min((limit for limit in limits if limit), default=None)


def source_of_run(run: RunFolder, chosen: Checkpoint) -> Source:
    """The student of a run with a checkpoint's weights; raises `MinilmError` for another student's."""
    model = build_student(saved_config(run.student_config_file), seed=0)
    weights = chosen.tensors("student")
    refuse_mismatch(weights, unshared_state(model))
    model.load_state_dict(weights, strict=False)
    return Source(model.train(False), run.student_tokenizer, head=None, run=run, step=chosen.step)


def source_of_checkpoint(run: RunFolder, wanted: str | int) -> Source:
    """The same of the checkpoint that is wanted; of another if a run that is training removes it meanwhile."""
    chosen = pick_checkpoint(run, wanted)
    try:
        return source_of_run(run, chosen)
    except RunError:
        if chosen.path.exists():
            raise
    return source_of_checkpoint(run, wanted)


def source_of_folder(folder: Path) -> Source:
    """The encoder of a folder as `save_pretrained` writes them; raises `MinilmError`.

    Warns if the folder has weights of a head for a task, which are left out.
    """
    source, left_out = source_of_name(str(folder))
    if left_out:
        logger.warning("%s: only the encoder is exported, without its head: %s", folder, ", ".join(left_out))
    return source


def source_of_name(name: str, revision: str | None = None) -> tuple[Source, list[str]]:
    """The encoder of a folder or of a name on the Hub, and the parts of a head for a task that are left out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for a pooler, if the model has none
        model, others = load_encoder("model", name, revision=revision)
    refuse_decoder(model.config, "model", name)
    left_out = sorted({key.partition(".")[0] for key in others})
    return Source(model.eval(), Path(name), head=None, revision=revision), left_out


def choose_head(source: Source, pooling: str | None) -> SentenceHead | None:
    """How sentence embeddings are made: as the model's files say, with the pooling if one is chosen; `None` if unknown.

    Leaves out a dense layer of the teacher that does not fit, with a warning. Raises `MinilmError`.
    """
    try:
        head = _known_head(source)
    except MinilmError:
        if pooling is None:
            raise
        head = None
    if pooling is not None:
        if head is not None and any(isinstance(layer, Dense) for layer in head.layers):
            logger.warning("--pooling leaves out the dense layer that makes the teacher's sentence embeddings.")
        return replace(head or SentenceHead(()), pooling=(pooling,), layers=(Normalize(),))
    if head is None:
        return None
    fitted = head.fitted(width := source.model.config.hidden_size)
    if fitted is not head:
        logger.warning(
            "The teacher's dense layer does not fit a model %d wide: sentence embeddings are made without it.",
            width,
        )
    return fitted


def _known_head(source: Source) -> SentenceHead | None:
    """How sentence embeddings are made, by the model's own files or those of its teacher; raises `MinilmError`."""
    if source.run is None:
        return read_head(str(source.folder), source.revision)
    kept = source.run.sentence_head
    if kept.is_dir():
        return read_head(str(kept))
    teacher = source.run.settings().teacher
    return read_head(teacher.name, teacher.revision)
