"""A token store in the making, whose whole shards outlive an interruption, and where to go on with it.

They stand beside the store's own name, in `.unfinished-NAME/store/`, until the store is whole or is begun anew; beside
them `unfinished.json`, which says how far it has come, and a lock. Ignores what is in them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from minilm_cli import __version__
from minilm_cli.base.atomic import LOCK_TRIES, make_beside, no_lock, publish, sync
from minilm_cli.base.errors import InputChanged, MinilmError, refuse_newer
from minilm_cli.base.jsonio import first_wrong, read_json, write_json
from minilm_cli.base.locks import Held, Lock
from minilm_cli.base.write_errors import writing
from minilm_cli.corpus.lines import Place
from minilm_cli.corpus.packing import State
from minilm_cli.tokens.store import Count, Shard, TokenizerInfo, TokenStoreWriter

logger = logging.getLogger(__name__)


#: Another number wherever sequences are made of lines in another way: an older store cannot be gone on with then.
FORMAT_VERSION = 1


#: What the folder's name begins with, and what is in it.
_PREFIX = ".unfinished-"


_LOCK, _STATE, _STORE = "lock", "unfinished.json", "store"


#: Seconds to wait for a lock that another process holds: it may only be looking for what is of no use.
_PATIENCE = 1.0


_ANEW = "Make it anew with --force, without --continue."


#: What may become of a setting without a change to what is done: there was nothing to replace so far.
_MAY_BECOME = {"--errors": "replace"}


class Standing(BaseModel):
    """Where a batch of lines begins, and what came of all that is before it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Count = 0
    """Which of the inputs."""
    place: Place = Place()
    lines: Count = 0
    sequences: Count = 0
    """Finished ones; `sequencer` holds what is not."""
    sequencer: State | None = None


class _State(BaseModel):
    """`unfinished.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    written_by: str
    made_with: dict[str, Any]
    inputs: list[str]
    """A checksum of what is known of each input that was begun."""
    standing: Standing
    shards: list[Shard]


@dataclass
class Unfinished:
    """A store in the making."""

    path: Path
    """The folder of all that is known of it."""
    made_with: Mapping[str, Any]
    inputs: Sequence[Mapping[str, Any] | None]
    standing: Standing = field(default_factory=Standing)
    """From where on it is to be written."""
    shards: Sequence[Shard] = ()
    """Those that are kept, whatever happens."""
    writer: TokenStoreWriter = field(init=False)
    """Writes into `store`."""

    @property
    def store(self) -> Path:
        """The folder that becomes the store."""
        return self.path / _STORE

    @property
    def is_due(self) -> bool:
        """Whether there are whole shards that are to be kept, and are not yet."""
        return len(self.writer.shards) > len(self.shards) and None not in self.inputs

    def save(self, standing: Standing) -> None:
        """Keep the writer's whole shards; what is in none of them came of lines behind `standing`."""
        state = _State(
            format_version=FORMAT_VERSION,
            written_by=__version__,
            made_with=dict(self.made_with),
            inputs=self.begun(standing),
            standing=standing,
            shards=list(self.writer.shards),
        )
        sync(self.store)
        write_json(self.path / _STATE, state.model_dump())
        self.shards = state.shards

    def begun(self, standing: Standing) -> list[str]:
        """A checksum of what is known of each input up to there."""
        inputs = self.inputs[: standing.source + 1]
        return [hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32] for known in inputs]


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
    """What to write the token store `output` with; it has its name when the block has ended well.

    made_with: all that decides what becomes of a line. inputs: what tells each from another, and from itself if it was
    changed; none if it cannot be gone back to, so that nothing is kept.
    If the block raises, whole shards are kept, and it is said how to go on: `continued`. Raises `MinilmError` if there
    are some that are neither gone on with nor, with `force`, replaced; if they were made of other inputs or in another
    way; and if another process is at work on them.
    """
    _sweep(output.parent)
    with _locked(output) as path:
        work = Unfinished(path, made_with, inputs)
        if (path / _STATE).exists():
            if not continued and not force:
                raise MinilmError(
                    "there is an unfinished store",
                    where=str(path),
                    hint="Go on with it by --continue, or make it anew with --force.",
                )
            if continued:
                _go_on(work)
        elif continued:
            logger.info("There is nothing to go on with: %s is made from the beginning.", output)
        try:
            _clear(work)
            work.writer = TokenStoreWriter(work.store, tokenizer, max_length, shards=work.shards)
        except MinilmError as error:
            error.hint = _ANEW
            raise
        try:
            with work.writer, writing(output, inside=path):
                yield work
                work.writer.close()
            publish(work.store, output, force=force, folder=True)
        except BaseException as error:
            _leave(work, error)
            raise
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(output: Path) -> Iterator[Path]:
    """The folder, which no other process works on meanwhile."""
    with _claim(output) as lock:
        if not lock.holds:
            logger.warning("%s is on a file system without locks: let one process alone make it.", output)
        yield lock.path.parent


def _claim(output: Path) -> Lock:
    """The lock on the folder, which is made if need be; raises `MinilmError` if another process holds it for long."""
    try:
        for _ in range(LOCK_TRIES):
            path = make_beside(output, f"{_PREFIX}{output.name}")
            with writing(path):  # unless it is removed just then, for the store is whole
                if lock := Lock.claim(path / _LOCK, patience=_PATIENCE):
                    return lock
    except Held as held:
        raise MinilmError(f"{held} is making this output", where=str(output)) from None
    raise no_lock(path)


def _sweep(folder: Path) -> None:
    """Clear away what is of no use: of processes that were killed before the first whole shard, or after the last."""
    for left in sorted(folder.glob(f"{_PREFIX}*")):
        with suppress(Held, OSError):
            # First without the lock: whoever wants to go on with that store just then must not find it taken.
            if _is_of_no_use(left) and (lock := Lock.claim(left / _LOCK)):
                with lock:
                    if lock.holds and _is_of_no_use(left):
                        shutil.rmtree(left)


def _is_of_no_use(left: Path) -> bool:
    """Whether all that is in this folder is ours, and not enough to go on with."""
    found = {path.name for path in left.iterdir()}
    ours = found <= {_LOCK, _STATE, _STORE, f".tmp-{_STATE}"}
    return ours and (left / _LOCK).is_file() and not {_STATE, _STORE} <= found


def _go_on(work: Unfinished) -> None:
    state = _read_state(work.path / _STATE)
    for name, value in work.made_with.items():
        before = state.made_with.get(name)
        if before != value and value != _MAY_BECOME.get(name):
            raise MinilmError(
                f"the unfinished store was made with another {name}: {before}, not {value}",
                where=str(work.path),
                hint=_ANEW,
            )
    for number, (before, now) in enumerate(zip(state.inputs, work.begun(state.standing), strict=False)):
        if before != now:
            known = work.inputs[number] or {}
            raise MinilmError(
                f"input {number + 1} of the unfinished store was not {known.get('name')}, or not as it is now",
                where=str(work.path),
                hint=f"Give the inputs in the same order, unchanged. {_ANEW}",
            )
    if len(state.inputs) > len(work.inputs):
        raise MinilmError(
            f"the unfinished store was made of {len(state.inputs)} inputs so far, and now there are fewer",
            where=str(work.path),
            hint=f"Give the inputs in the same order, unchanged. {_ANEW}",
        )
    work.standing, work.shards = state.standing, state.shards
    logger.info("Going on after %s, with the input's line %d.", _told(work.shards), work.standing.place.number)


def _read_state(file: Path) -> _State:
    kind = "state of an unfinished store"
    try:
        value = read_json(file, kind=kind)
        refuse_newer(kind, value, FORMAT_VERSION, where=str(file))
        state = _State.model_validate(value)
    except ValidationError as error:
        raise MinilmError(f"this file is damaged: {first_wrong(error)}", where=str(file), hint=_ANEW) from None
    except MinilmError as error:
        error.hint = error.hint or _ANEW
        raise
    if state.format_version < FORMAT_VERSION:
        raise MinilmError("an earlier minilm made this unfinished store", where=str(file), hint=_ANEW)
    return state


def _clear(work: Unfinished) -> None:
    """Remove all but the shards that are whole: the one that was being written, and what is gone on from no more."""
    kept = {name for shard in work.shards for name in (shard.file, shard.offsets_file)}
    with writing(work.path):
        if not work.shards:
            (work.path / _STATE).unlink(missing_ok=True)
        work.store.mkdir(exist_ok=True)
        for file in work.store.iterdir():
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            elif file.name not in kept:
                file.unlink()


def _leave(work: Unfinished, error: BaseException) -> None:
    """Say how to go on, or clear away what is of no use."""
    whole = not work.store.exists()  # and has its name
    if work.shards and not whole:
        how = "go on with the same command and --continue."
        if isinstance(error, InputChanged):
            how = f"only if {error.where} becomes what it was, also in its time, can they be gone on with. {_ANEW}"
        logger.warning("What is done is kept, %s: %s", _told(work.shards), how)
        return
    interrupted = not isinstance(error, Exception)
    if interrupted and not whole:
        why = "standard input cannot be gone on with" if None in work.inputs else "not one shard of the store was whole"
        logger.warning("Nothing is kept: %s.", why)
    shutil.rmtree(work.path, ignore_errors=True)


def _told(shards: Sequence[Shard]) -> str:
    return f"{len(shards)} whole shard{'' if len(shards) == 1 else 's'}"
