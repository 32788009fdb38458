"""Tokenise inputs into a token store or a file of token-id lists: readers, workers and a writer put together. No torch.

The output depends on the inputs and settings alone: not on the number of workers, the batch size, or interruptions.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Tokenizer

from minilm_cli.base.atomic import staged
from minilm_cli.base.checksums import sha256_of_text
from minilm_cli.base.errors import MinilmError
from minilm_cli.base.overwrite import refuse_existing
from minilm_cli.base.progress import Progress
from minilm_cli.corpus.encoder import Recipe, special_tokens
from minilm_cli.corpus.lines import BEGINNING
from minilm_cli.corpus.packing import Counts, Sequencer, Units
from minilm_cli.corpus.resume import Position, Unfinished, unfinished
from minilm_cli.corpus.sources import Batch, Source, find_sources
from minilm_cli.corpus.tokenizer_pool import encoders
from minilm_cli.models.hub import load_tokenizer, tokenizer_info
from minilm_cli.settings.tokenize import TokenizeSettings
from minilm_cli.tokens.id_lists import IdListWriter, is_id_lists
from minilm_cli.tokens.store import Indices, TokenIds, TokenizerInfo, TokenStoreWriter, id_dtype

logger = logging.getLogger(__name__)

#: Bytes of input that are worth the second or so that starting a worker takes.
WORTH_A_WORKER = 2**20


@dataclass
class TokenizeReport:
    """The outcome of `tokenize`."""

    path: Path
    lines: int
    counts: Counts
    """Lines, or their sentences, that were skipped, cut and so on."""
    sequences: int
    tokens: int
    length_histogram: Indices
    tokens_per_second: float

    def percentile(self, share: float) -> int:
        """The length in tokens that `share` (0 to 1) of the sequences do not exceed."""
        return int(np.searchsorted(np.cumsum(self.length_histogram), share * self.sequences))


def tokenize(settings: TokenizeSettings, progress: Progress) -> TokenizeReport:
    """Tokenise text into a token store, or a `.jsonl.gz` file of token-id lists.

    Raises `MinilmError`, with file and line, for wrong input or settings. If it is interrupted, complete shards of a
    store are kept, to be `continued`, unless standard input is among the inputs; nothing else is kept.
    """
    sources = find_sources(settings.inputs, settings.text_field)
    _check_output(settings, sources)
    tokenizer, info = _load_tokenizer(settings)
    sequencer = _sequencer(settings, tokenizer)
    recipe = Recipe(
        tokenizer.to_str(),
        id_dtype(info.vocabulary_size).name,
        errors=settings.errors,
        sentences=settings.language if settings.split_sentences else None,
        documents=settings.pack and not settings.join_rows,
    )
    total = _total(sources)
    workers = settings.workers if total is None else min(settings.workers, math.ceil(total / WORTH_A_WORKER))
    with _output(settings, info, recipe, sources) as output, encoders(recipe, workers, output.scratch) as encode:
        encoded = encode(_batches(sources, settings.batch_size, output.position))
        lines = _write(encoded, sequencer, output, progress, total)
        if not output.tokens:
            raise _no_text(settings.inputs, lines, sequencer.counts)
        tokens_per_second = output.tokens_per_second
    _warn_if_nothing_is_packed(settings, sources, sequencer.counts, int(output.length_histogram.sum()))
    return TokenizeReport(
        path=settings.output,
        lines=lines,
        counts=sequencer.counts,
        sequences=int(output.length_histogram.sum()),
        tokens=output.tokens,
        length_histogram=output.length_histogram,
        tokens_per_second=tokens_per_second,
    )


def _check_output(settings: TokenizeSettings, sources: Sequence[Source]) -> None:
    """Raise `MinilmError` for an output that is not allowed or cannot be continued, before anything is loaded."""
    output, folder = settings.output, not is_id_lists(settings.output)
    if settings.continued and not settings.force and (output / "manifest.json").exists():
        raise MinilmError(
            "this store is complete", where=str(output), hint="To continue the store that replaces it, add --force."
        )
    if folder and output.suffix.lower() in (".jsonl", ".gz", ".json"):
        raise MinilmError(
            "a folder of this name would be mistaken for a file",
            where=str(output),
            hint="Name a token store without a suffix, a file of token-id lists with .jsonl.gz.",
        )
    files = [source.name for source in sources if source.size is not None]
    refuse_existing(output, *files, settings.tokenizer_name, force=settings.force, folder=folder)
    if settings.continued and not (folder and all(source.identity for source in sources)):
        what = "a store made from standard input" if folder else "a file of token-id lists"
        raise MinilmError(f"--continue: {what} cannot be continued", hint="Start again without --continue.")


def _load_tokenizer(settings: TokenizeSettings) -> tuple[Tokenizer, TokenizerInfo]:
    """The fast tokenizer that transformers loads for this name, and its entry in the manifest."""
    loaded = load_tokenizer(
        settings.tokenizer_name, revision=settings.revision, trust_remote_code=settings.trust_remote_code
    )
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise MinilmError("this tokenizer has no fast version (tokenizer.json)", where=settings.tokenizer_name)
    # A tokenizer's file may turn these on.
    backend.no_padding()
    backend.no_truncation()
    return backend, tokenizer_info(loaded, settings.tokenizer_name, settings.revision)


def _sequencer(settings: TokenizeSettings, tokenizer: Tokenizer) -> Sequencer:
    special = special_tokens(tokenizer)
    if settings.max_length <= len(special):
        raise MinilmError(
            f"--max-length {settings.max_length} leaves no room for text: there are {len(special)} special tokens"
        )
    return Sequencer(special, settings.max_length, settings.overflow, settings.pack)


def _warn_if_nothing_is_packed(
    settings: TokenizeSettings, sources: Sequence[Source], counts: Counts, sequences: int
) -> None:
    has_records = any(source.field is not None for source in sources)
    if settings.pack and not settings.join_rows and has_records and sequences >= counts.units - counts.blank:
        logger.warning("--pack joined no lines: each row or JSON object is a document. --join-rows joins them.")


def _no_text(inputs: Sequence[str], lines: int, counts: Counts) -> MinilmError:
    return MinilmError(
        f"there is no text in {', '.join(inputs)}: no line has a token",
        hint=f"Of {lines} lines, {counts.blank} are blank and {counts.dropped} were dropped as too long."
        if lines
        else None,
    )


# --- Reading -----------------------------------------------------------------------------------------------------
#: The index of an input, the bytes of the inputs before it, and some of its lines.
_Origin = tuple[int, int, Batch]


def _total(sources: Sequence[Source]) -> int | None:
    """The bytes of all inputs, if each has a size."""
    sizes = [source.size for source in sources if source.size is not None]
    return sum(sizes) if len(sizes) == len(sources) else None


def _batches(sources: Sequence[Source], count: int, start: Position) -> Iterator[tuple[_Origin, Batch]]:
    """The lines of the inputs from `start` on, at most `count` at a time; no batch spans two inputs."""
    place = start.place
    before = sum(source.size or 0 for source in sources[: start.source])
    for number, source in enumerate(sources[start.source :], start.source):
        for batch in source.batches(count, place):
            yield (number, before, batch), batch
        place = BEGINNING
        before += source.size or 0


# --- Writing -----------------------------------------------------------------------------------------------------
def _write(
    encoded: Iterator[tuple[_Origin, Units]],
    sequencer: Sequencer,
    output: _Output,
    progress: Progress,
    total: int | None,
) -> int:
    """Make sequences of all batches and write them; returns the number of lines since the beginning."""
    lines, sequences = output.position.lines, output.position.sequences
    if output.position.sequencer is not None:
        sequencer.restore(output.position.sequencer)
    try:
        for number, ((source, bytes_before, batch), units) in enumerate(encoded):
            bytes_read = bytes_before + batch.bytes_read
            if number == 0:  # what was read before an interruption took no time now
                progress.start("Tokenising", total, done=bytes_read if output.already else 0, unit="bytes")
            snapshot, sequences_before = sequencer.snapshot(), sequences
            if batch.place.is_beginning:  # the previous input has ended
                sequences += output.add(*sequencer.end())
            sequences += output.add(*sequencer.add(units))
            if output.work is not None and output.work.is_due:
                before = Position(source=source, place=batch.place, lines=lines, sequences=sequences_before)
                output.work.save(before.model_copy(update={"sequencer": snapshot()}))
            lines += len(batch.lines) - (batch.place.skipped > 0)  # those that begin here
            shown = {"tokens": output.tokens, "tokens_per_second": output.tokens_per_second}
            progress.update(bytes_read, shown)
        output.add(*sequencer.end())
    finally:
        progress.stop()
    return lines


class _Output:
    """A writer, and how much it has written."""

    def __init__(self, writer: TokenStoreWriter | IdListWriter, scratch: Path, work: Unfinished | None = None) -> None:
        self._writer = writer
        self.scratch = scratch
        """A folder for temporary files."""
        self.work = work
        """What is kept after an interruption; `None` if nothing is."""
        self.position = work.position if work is not None else Position()
        """Where to start."""
        self.tokens = int(writer.length_histogram @ np.arange(len(writer.length_histogram)))
        """Tokens written."""
        self.already = self.tokens
        """Tokens that were written before an interruption."""
        self._began = time.monotonic()
        # A shard ends anywhere in a batch: these sequences come again, but are written already.
        self._again = int(writer.length_histogram.sum()) - self.position.sequences

    @property
    def length_histogram(self) -> Indices:
        """`length_histogram[n]` sequences have n tokens."""
        return self._writer.length_histogram

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens that were written since the start of this process."""
        return (self.tokens - self.already) / max(time.monotonic() - self._began, 1e-9)

    def add(self, ids: TokenIds, lengths: Indices) -> int:
        """Write the sequences that are not written yet; returns the number of all."""
        again, self._again = self._again, max(self._again - len(lengths), 0)
        new = ids[int(lengths[:again].sum()) :]
        self._writer.add(new, lengths[again:])
        self.tokens += len(new)
        return len(lengths)


@contextmanager
def _output(
    settings: TokenizeSettings, info: TokenizerInfo, recipe: Recipe, sources: Sequence[Source]
) -> Iterator[_Output]:
    """The store or file that the output's name asks for; it gets its name when the block ends normally."""
    if is_id_lists(settings.output):
        with (
            staged(settings.output, force=settings.force, folder=False) as built,
            closing(IdListWriter(built)) as lists,
        ):
            yield _Output(lists, built.parent)
        return
    made_with = {
        "checksum of the tokenizer": sha256_of_text(recipe.tokenizer)[:16],
        "version of tokenizers": tokenizers.__version__,
        "--max-length": settings.max_length,
        "--overflow": settings.overflow,
        "--pack": settings.pack,
        "--join-rows": settings.pack and settings.join_rows,
        "--split-sentences": settings.split_sentences,
        "--language": recipe.sentences,
        "version of sentencex": version("sentencex") if recipe.sentences else None,
        "--text-field": settings.text_field or "text",
        "--errors": settings.errors,
    }
    with unfinished(
        settings.output,
        info,
        settings.max_length,
        made_with=made_with,
        inputs=[source.identity for source in sources],
        continued=settings.continued,
        force=settings.force,
    ) as work:
        yield _Output(work.writer, work.path, work)
