"""Text to tokens: readers, tokenising workers and a writer put together. No torch.

What is written depends on the inputs alone: not on the number of workers, nor on the batch size, nor on how often
the work was interrupted and gone on with.
"""

from __future__ import annotations

import hashlib
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

from minilm_cli.base.atomic import room_for, staged
from minilm_cli.base.errors import MinilmError
from minilm_cli.base.overwrite import refuse_existing
from minilm_cli.base.progress import Progress
from minilm_cli.corpus.encoder import Recipe, encoders, special_tokens
from minilm_cli.corpus.id_lists import IdListWriter, is_id_lists
from minilm_cli.corpus.lines import BEGINNING, Place
from minilm_cli.corpus.packing import Counts, Sequencer
from minilm_cli.corpus.resume import Standing, Unfinished, unfinished
from minilm_cli.corpus.sources import Lines, Source, find_sources
from minilm_cli.models.hub import load_tokenizer, tokenizer_info
from minilm_cli.settings.tokenize import TokenizeSettings
from minilm_cli.tokens.store import Indices, TokenIds, TokenizerInfo, TokenStoreWriter, id_dtype

#: Bytes of input that make up for the second or so that starting a worker takes.
WORTH_A_WORKER = 2**20


@dataclass
class TokenizeReport:
    """The outcome of `tokenize`."""

    path: Path
    lines: int
    counts: Counts
    """What became of the lines, or of their sentences."""
    sequences: int
    tokens: int
    length_histogram: Indices
    tokens_per_second: float

    def percentile(self, share: float) -> int:
        """The length in tokens that `share` (0 to 1) of the sequences do not exceed."""
        return int(np.searchsorted(np.cumsum(self.length_histogram), share * self.sequences))


def tokenize(settings: TokenizeSettings, progress: Progress) -> TokenizeReport:
    """Tokenise text into a token store, or a `.jsonl.gz` file of token-id lists.

    Raises `MinilmError` for input or settings that are wrong, naming file and line. Of a store that is interrupted the
    whole shards are kept, to be `continued`, unless standard input is among what it is made from; nothing else is left.
    """
    sources = find_sources(settings.inputs, settings.text_field)
    _check(settings, sources)
    tokenizer, info = _load_tokenizer(settings)
    special = special_tokens(tokenizer)
    if settings.max_length <= len(special):
        raise MinilmError(f"--max-length {settings.max_length} leaves no room beside the tokenizer's special tokens")
    sequencer = Sequencer(special, settings.max_length, settings.overflow, settings.pack)
    recipe = Recipe(
        tokenizer.to_str(),
        id_dtype(info.vocabulary_size).name,
        errors=settings.errors,
        sentences=settings.language if settings.split_sentences else None,
    )
    total = _total(sources)
    workers = settings.workers if total is None else min(settings.workers, math.ceil(total / WORTH_A_WORKER))
    with encoders(recipe, workers) as encode, _output(settings, info, recipe, sources) as output:
        lines, made = output.standing.lines, output.standing.sequences
        if output.standing.sequencer is not None:
            sequencer.restore(output.standing.sequencer)
        try:
            for number, (batch, units) in enumerate(encode(_batches(sources, settings.batch_size, output.standing))):
                if number == 0:  # what was done before an interruption took no time now
                    progress.start("Tokenising", total, done=batch.behind if output.already else 0, unit="bytes")
                before, made_before = sequencer.keep(), made
                if batch.place.is_beginning:  # and the input before has ended
                    made += output.add(*sequencer.end())
                made += output.add(*sequencer.add(units))
                if output.work is not None and output.work.is_due:
                    output.work.save(
                        Standing(
                            source=batch.source,
                            place=batch.place,
                            lines=lines,
                            sequences=made_before,
                            sequencer=before(),
                        )
                    )
                lines += batch.lines
                shown = {"tokens": output.tokens, "tokens_per_second": output.tokens_per_second}
                progress.update(batch.behind, shown)
            output.add(*sequencer.end())
        finally:
            progress.stop()
        if not output.tokens:
            blank, dropped = sequencer.counts.blank, sequencer.counts.dropped
            raise MinilmError(
                f"there is no text in {', '.join(settings.inputs)}: not one line has a token",
                hint=f"Of {lines} lines {blank} are blank and {dropped} were dropped as too long." if lines else None,
            )
        tokens_per_second = output.tokens_per_second
    histogram = output.length_histogram
    return TokenizeReport(
        path=settings.output,
        lines=lines,
        counts=sequencer.counts,
        sequences=int(histogram.sum()),
        tokens=output.tokens,
        length_histogram=histogram,
        tokens_per_second=tokens_per_second,
    )


def _check(settings: TokenizeSettings, sources: Sequence[Source]) -> None:
    """Raise `MinilmError` for an output that may not be, or cannot be gone on with, before anything is loaded."""
    output, folder = settings.output, not is_id_lists(settings.output)
    if settings.continued and not settings.force and (output / "manifest.json").exists():
        raise MinilmError(
            "this store is whole", where=str(output), hint="To go on with what is to replace it, add --force."
        )
    if folder and output.suffix.lower() in (".jsonl", ".gz", ".json"):
        raise MinilmError(
            "a folder of this name would be taken for a file",
            where=str(output),
            hint="A token store wants a name without an ending, a file of token-id lists one that ends in .jsonl.gz.",
        )
    files = [source.name for source in sources if source.size is not None]
    refuse_existing(output, *files, settings.tokenizer, force=settings.force, folder=folder)
    if settings.continued and not (folder and all(source.identity for source in sources)):
        what = "what is made from standard input" if folder else "a file of token-id lists"
        raise MinilmError(f"--continue: {what} cannot be gone on with", hint="Make it anew, without --continue.")


def _load_tokenizer(settings: TokenizeSettings) -> tuple[Tokenizer, TokenizerInfo]:
    """The fast tokenizer that transformers loads for this name, and what the manifest says of it."""
    loaded = load_tokenizer(
        settings.tokenizer, revision=settings.revision, trust_remote_code=settings.trust_remote_code
    )
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise MinilmError("this tokenizer has no fast version (tokenizer.json)", where=settings.tokenizer)
    # A tokenizer's file may bring padding and truncation of its own.
    backend.no_padding()
    backend.no_truncation()
    return backend, tokenizer_info(loaded, settings.tokenizer, settings.revision)


# --- Reading -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Batch:
    """Where some lines came from."""

    source: int
    place: Place
    lines: int
    """How many begin in it."""
    behind: int
    """Bytes of all inputs that are read so far."""


def _total(sources: Sequence[Source]) -> int | None:
    """The bytes of all inputs, if each has a size."""
    sizes = [source.size for source in sources if source.size is not None]
    return sum(sizes) if len(sizes) == len(sources) else None


def _batches(sources: Sequence[Source], count: int, standing: Standing) -> Iterator[tuple[_Batch, Lines]]:
    """The lines of the inputs from there on, `count` at a time or fewer; no batch spans two inputs."""
    place = standing.place
    before = sum(source.size or 0 for source in sources[: standing.source])
    for number, source in enumerate(sources[standing.source :], standing.source):
        for lines in source.batches(count, place):
            begun = len(lines.lines) - (lines.place.skipped > 0)
            yield _Batch(number, lines.place, begun, before + lines.behind), lines
        place = BEGINNING
        before += source.size or 0


# --- Writing -----------------------------------------------------------------------------------------------------
class _Output:
    """A writer, and how far it has come."""

    def __init__(self, writer: TokenStoreWriter | IdListWriter, work: Unfinished | None = None) -> None:
        self._writer = writer
        self.work = work
        """What is kept if that is interrupted; none if nothing is."""
        self.standing = work.standing if work is not None else Standing()
        """From where on it is to be written."""
        self.tokens = int(writer.length_histogram @ np.arange(len(writer.length_histogram)))
        """How many are written."""
        self.already = self.tokens
        """How many were written before this began."""
        self._began = time.monotonic()
        # Shards end anywhere in a batch: of what comes again, this much is in them.
        self._again = int(writer.length_histogram.sum()) - self.standing.sequences

    @property
    def length_histogram(self) -> Indices:
        """`length_histogram[n]` sequences have n tokens."""
        return self._writer.length_histogram

    @property
    def tokens_per_second(self) -> float:
        """Of those that were written since this began."""
        return (self.tokens - self.already) / max(time.monotonic() - self._began, 1e-9)

    def add(self, ids: TokenIds, lengths: Indices) -> int:
        """Write sequences, but for those that are there already; returns how many they are with those."""
        again, self._again = self._again, max(self._again - len(lengths), 0)
        new = ids[int(lengths[:again].sum()) :]
        self._writer.add(new, lengths[again:])
        self.tokens += len(new)
        return len(lengths)


@contextmanager
def _output(
    settings: TokenizeSettings, info: TokenizerInfo, recipe: Recipe, sources: Sequence[Source]
) -> Iterator[_Output]:
    """What the output's name asks for; it is finished, and has its name, when the block has ended well."""
    if is_id_lists(settings.output):
        with (
            staged(settings.output, force=settings.force, folder=False) as built,
            closing(IdListWriter(built)) as lists,
        ):
            yield _Output(lists)
        return
    made_with = {
        "checksum of the tokenizer": hashlib.sha256(recipe.tokenizer.encode()).hexdigest()[:16],
        "version of tokenizers": tokenizers.__version__,
        "--max-length": settings.max_length,
        "--overflow": settings.overflow,
        "--pack": settings.pack,
        "--split-sentences": settings.split_sentences,
        "--language": recipe.sentences,
        "version of sentencex": version("sentencex") if recipe.sentences else None,
        "--text-field": settings.text_field or "text",
        "--errors": settings.errors,
    }
    with (
        room_for(settings.output, force=settings.force, folder=True),
        unfinished(
            settings.output,
            info,
            settings.max_length,
            made_with=made_with,
            inputs=[source.identity for source in sources],
            continued=settings.continued,
            force=settings.force,
        ) as work,
    ):
        yield _Output(work.writer, work)
