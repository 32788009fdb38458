"""A token store in progress: its complete shards survive an interruption, and `--continue` resumes after them.

Until the store is complete, its shards are next to it in `.unfinished-NAME/store/`; `unfinished.json` there says how
far it is, and a lock keeps other processes out.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from minilm_cli import __version__
from minilm_cli.base.atomic import make_beside, publish, room_for, sync
from minilm_cli.base.checksums import sha256_of_text
from minilm_cli.base.errors import InputChanged, MinilmError
from minilm_cli.base.jsonio import first_wrong, read_json, write_json
from minilm_cli.base.locks import Held, Lock
from minilm_cli.base.write_errors import writing
from minilm_cli.corpus.lines import Place
from minilm_cli.corpus.packing import State
from minilm_cli.tokens.store import Count, Shard, TokenizerInfo, TokenStoreWriter

logger = logging.getLogger(__name__)

_START_AGAIN = "Start again with --force, without --continue."

#: Settings that may get this value: no byte needed to be replaced so far.
_MAY_BECOME = {"--errors": "replace"}


class Position(BaseModel):
    """The beginning of a batch of lines, and what all lines before it have become."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Count = 0
    """Index of the input."""
    place: Place = Place()
    lines: Count = 0
    sequences: Count = 0
    """Complete sequences; `sequencer` has the incomplete one."""
    sequencer: State | None = None


class _Saved(BaseModel):
    """`unfinished.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: To be raised whenever lines become sequences in another way: older unfinished stores cannot be continued then.
    format_version: Literal[2] = 2
    written_by: str = __version__
    made_with: dict[str, Any]
    inputs: list[str]
    """A checksum of the identity of each input that was started."""
    standing: Position
    shards: list[Shard]


@dataclass
class Unfinished:
    """A token store in progress."""

    path: Path
    """The folder `.unfinished-NAME`."""
    made_with: Mapping[str, Any]
    """All settings that decide what a line becomes, by the names that messages use."""
    inputs: Sequence[Mapping[str, Any] | None]
    """The identity of each input; `None` for one that cannot be read twice, so that nothing is kept."""
    position: Position = field(default_factory=Position)
    """Where to start."""
    shards: Sequence[Shard] = ()
    """Those that are kept, whatever happens."""
    writer: TokenStoreWriter = field(init=False)
    """Writes into `store`."""

    def __post_init__(self) -> None:
        self.store, self._state_file = self.path / "store", self.path / "unfinished.json"

    @property
    def is_due(self) -> bool:
        """Whether there are complete shards that `save` has not recorded yet."""
        return len(self.writer.shards) > len(self.shards) and None not in self.inputs

    def save(self, position: Position) -> None:
        """Record the writer's complete shards; the sequences in no shard came from lines after `position`."""
        shards, started = list(self.writer.shards), self._started(position)
        state = _Saved(made_with=dict(self.made_with), inputs=started, standing=position, shards=shards)
        sync(self.store)
        write_json(self._state_file, state.model_dump())
        self.shards = shards

    def _started(self, position: Position) -> list[str]:
        """A checksum of the identity of each input up to there."""
        inputs = self.inputs[: position.source + 1]
        return [sha256_of_text(json.dumps(known, sort_keys=True))[:32] for known in inputs]

    def prepare(self, tokenizer: TokenizerInfo, max_length: int, *, continued: bool, force: bool) -> None:
        """Restore what is to be continued, remove everything else, and open the writer."""
        try:
            if self._state_file.exists() and self.store.exists():
                self._restore(continued=continued, force=force)
            elif continued:
                logger.info("There is no unfinished store to continue: starting at the beginning.")
            kept = {name for shard in self.shards for name in (shard.file, shard.offsets_file)}
            if not kept:
                self._state_file.unlink(missing_ok=True)
            self.store.mkdir(exist_ok=True)
            for file in self.store.iterdir():
                if file.name not in kept:
                    file.unlink()
            self.writer = TokenStoreWriter(self.store, tokenizer, max_length, shards=self.shards)
        except MinilmError as error:
            error.hint = " ".join(filter(None, (error.hint, _START_AGAIN)))
            raise

    def _restore(self, *, continued: bool, force: bool) -> None:
        if not continued:
            if force:
                return
            raise MinilmError("there is an unfinished store", where=str(self.path), hint="Add --continue.")
        try:
            state = _Saved.model_validate(read_json(self._state_file, kind="state of an unfinished store"))
        except ValidationError as error:
            message = f"this file is damaged, or written by another version of minilm: {first_wrong(error)}"
            raise MinilmError(message, where=str(self._state_file)) from None
        for name, value in self.made_with.items():
            before = state.made_with.get(name)
            if before != value and value != _MAY_BECOME.get(name):
                raise MinilmError(
                    f"the unfinished store was made with {name} {before}, not {value}", where=str(self.path)
                )
        started = self._started(state.standing)
        if started != state.inputs:
            pairs = zip(state.inputs, started, strict=False)
            number = next((n for n, (before, now) in enumerate(pairs) if before != now), len(started))
            now_given = dict(enumerate(self.inputs)).get(number) or {"name": "missing"}
            raise MinilmError(
                f"input {number + 1} of the unfinished store has changed, or was not {now_given['name']}",
                where=str(self.path),
                hint="Give the same inputs in the same order.",
            )
        self.position, self.shards = state.standing, state.shards
        logger.info("Continuing after %s, at line %d of the input.", self._kept, self.position.place.number)

    def close(self, error: BaseException) -> None:
        """After an error: say how to continue, or remove what cannot be continued."""
        is_published = not self.store.exists()
        if self.shards and not is_published:
            how = "Continue with the same command and --continue."
            if isinstance(error, InputChanged):
                how = f"Restore the content and modification time of {error.where} to use --continue. {_START_AGAIN}"
            logger.warning("Kept: %s. %s", self._kept, how)
            return
        if not isinstance(error, Exception) and not is_published:  # interrupted
            why = "standard input cannot be read again" if None in self.inputs else "no shard of the store was complete"
            logger.warning("Nothing is kept: %s.", why)
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def _kept(self) -> str:
        return f"{len(self.shards)} complete shard{'' if len(self.shards) == 1 else 's'}"


@contextmanager
def unfinished(
    output: Path,
    tokenizer: TokenizerInfo,
    max_length: int,
    *,
    made_with: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any] | None],
    continued: bool,
    force: bool,
) -> Iterator[Unfinished]:
    """What to write the token store `output` with; the store gets its name when the block ends normally.

    If the block raises, complete shards are kept, and a message says how to continue. Raises `MinilmError` if there are
    some that are neither `continued` nor, with `force`, replaced; if they cannot be continued; and if another process
    is making this output.
    """
    with room_for(output, force=force, folder=True), _locked(output) as path, writing(output, inside=path):
        work = Unfinished(path, made_with, inputs)
        work.prepare(tokenizer, max_length, continued=continued, force=force)
        try:
            with work.writer:
                yield work
                work.writer.close()
            publish(work.store, output, force=force, folder=True)
        except BaseException as error:
            work.close(error)
            raise
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(output: Path) -> Iterator[Path]:
    """The folder `.unfinished-NAME`, locked; raises `MinilmError` if another process has locked it."""
    path = make_beside(output, f".unfinished-{output.name}")
    try:
        lock = Lock(path / "lock")
    except Held as held:
        raise MinilmError(f"{held} is making this output", where=str(output)) from None
    with lock:
        if not lock.holds:
            logger.warning("The file system of %s has no locks: make it with a single process.", output)
        yield path
