"""Tokenising that is interrupted, and gone on with."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertTokenizer

from minilm_cli.base import atomic, locks
from minilm_cli.base.errors import InputChanged, MinilmError, RunError
from minilm_cli.base.locks import Lock
from minilm_cli.base.progress import NoProgress, Progress
from minilm_cli.corpus import packing, resume
from minilm_cli.corpus.tokenize import tokenize
from minilm_cli.settings.tokenize import TokenizeSettings
from minilm_cli.tokens import store
from tests import tiny

LINES = ["the man and his people", "one two", "", "people of the long day " * 8, "two", "the of and to in is was", ""]


class PulledPlug(Exception):
    """The machine stops."""


class Plug(NoProgress):
    """Stops the work after that many batches."""

    def __init__(self, after: int) -> None:
        self._left = after

    def update(self, done: float, shown: object = None) -> None:  # noqa: ARG002
        self._left -= 1
        if self._left < 0:
            raise PulledPlug


Tokenise = Callable[..., dict[str, bytes]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three inputs; shards are small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "SHARD_TOKENS", 40)
    text = "\n".join(LINES * 4).encode()
    Path("a.txt").write_bytes(b"\xef\xbb\xbf" + text)
    Path("b.txt.gz").write_bytes(gzip.compress(text))
    BertTokenizer(vocab={token: n for n, token in enumerate(reversed(tiny.VOCABULARY))}).save_pretrained("other")
    Path("c.csv").write_text("id,text\n" + "".join(f'{n},"{line}"\n' for n, line in enumerate(LINES)))
    return tmp_path


@pytest.fixture
def tokenise(place: Path, tiny_teacher: Path) -> Tokenise:  # noqa: ARG001
    """Tokenises the inputs into `tokens`, or is interrupted after some batches; gives the store's bytes."""

    def run(
        *, after: int | None = None, progress: Progress | None = None, output: str = "tokens", **options: Any
    ) -> dict[str, bytes]:
        defaults = {"inputs": ("a.txt", "b.txt.gz", "c.csv"), "max_length": 12, "workers": 1, "batch_size": 3}
        defaults |= {"tokenizer": str(tiny_teacher), "output": Path(output)}
        settings = TokenizeSettings(**defaults | options)
        tokenize(settings, progress or (NoProgress() if after is None else Plug(after)))
        return {file.name: file.read_bytes() for file in Path(output).iterdir()}

    return run


def kept_files() -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in Path(".unfinished-tokens").rglob("*") if file.is_file()}


def left(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()} - {"a.txt", "b.txt.gz", "c.csv", "other", "whole"}


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("after", [1, 3, 11, 20])
def test_what_is_gone_on_with_is_what_was_never_interrupted(
    tokenise: Tokenise, place: Path, monkeypatch: pytest.MonkeyPatch, after: int, pack: bool
) -> None:
    monkeypatch.setattr("minilm_cli.corpus.sources.PIECE", 60)  # the longest line comes in parts
    whole = tokenise(output="whole", pack=pack)
    assert len([name for name in whole if name.endswith("0.npy") or "offsets" in name]) > 8
    with pytest.raises(PulledPlug):
        tokenise(after=after, pack=pack)
    assert not Path("tokens").exists()
    with pytest.raises(PulledPlug):  # again, with other batches
        tokenise(after=2, continued=True, batch_size=2, pack=pack)
    assert tokenise(continued=True, batch_size=5, pack=pack) == whole
    assert left(place) == {"tokens"}


def test_whole_shards_are_not_written_again(tokenise: Tokenise) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=14)
    kept = {file.name: file.stat() for file in Path(".unfinished-tokens/store").iterdir()}
    state = json.loads(Path(".unfinished-tokens/unfinished.json").read_text())
    whole = [shard["file"] for shard in state["shards"]]
    assert len(whole) > 3
    tokenise(continued=True)
    for name in whole:
        assert Path("tokens", name).stat().st_mtime_ns == kept[name].st_mtime_ns
        assert Path("tokens", name).stat().st_ino == kept[name].st_ino


def test_lists_of_what_waits_are_made_once_a_shard_and_not_once_a_batch(
    tokenise: Tokenise, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[packing.State] = []
    state = packing.State
    monkeypatch.setattr(packing, "State", lambda *values: made.append(state(*values)) or made[-1])
    shards = [name for name in tokenise(pack=True, batch_size=1) if name.endswith("offsets.npy")]
    assert 3 < len(made) <= len(shards)


def test_it_is_said_how_to_go_on(tokenise: Tokenise, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with pytest.raises(PulledPlug):
        tokenise(after=14)
    assert "go on with the same command and --continue" in caplog.text


def test_of_an_input_that_became_shorter_it_is_said_that_there_is_no_going_on_as_it_is(
    tokenise: Tokenise, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    whole = tokenise(output="whole")
    before = Path("a.txt").read_bytes(), Path("a.txt").stat()

    class Shorter(NoProgress):
        def update(self, done: float, shown: object = None) -> None:  # noqa: ARG002
            os.truncate("a.txt", 200)

    with pytest.raises(InputChanged, match="became shorter"):
        tokenise(progress=Shorter())
    assert "only if a.txt becomes what it was, also in its time" in caplog.text
    assert "Make it anew with --force" in caplog.text
    with pytest.raises(MinilmError, match="not as it is now"):
        tokenise(continued=True)
    Path("a.txt").write_bytes(before[0])
    os.utime("a.txt", ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
    assert tokenise(continued=True) == whole


def test_before_the_first_whole_shard_nothing_is_left(tokenise: Tokenise, place: Path) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=0)
    assert left(place) == set()
    assert tokenise(continued=True) == tokenise(output="whole")


def test_it_is_made_anew_only_by_force(tokenise: Tokenise, place: Path) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=14)
    other = {"max_length": 30}
    kept = kept_files()
    with pytest.raises(MinilmError, match="there is an unfinished store") as caught:
        tokenise(**other)
    assert "--continue" in (caught.value.hint or "")
    assert kept_files() == kept
    assert tokenise(force=True, **other) == tokenise(output="whole", **other)
    assert left(place) == {"tokens"}


def test_what_cannot_be_given_its_name_is_kept(tokenise: Tokenise, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise PulledPlug

    with monkeypatch.context() as patch:
        patch.setattr("minilm_cli.base.atomic._put", fails)
        with pytest.raises(PulledPlug):
            tokenise()
    Path("tokens").mkdir()
    Path("tokens/mine").touch()
    with pytest.raises(MinilmError, match="exists already"):
        tokenise()
    shutil.rmtree("tokens")
    assert tokenise(continued=True) == tokenise(output="whole")


def test_what_comes_in_just_then_waits_for_no_store_that_has_its_name(
    tokenise: Tokenise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder may be removed before its lock is taken, or a moment later."""
    whole = tokenise(output="whole")
    moments = ["before", "later"]

    take = Lock.__init__

    def taken(self: Lock, path: Path, **options: float) -> None:
        moment = moments.pop(0) if moments else None
        if moment == "before":
            shutil.rmtree(path.parent)
        take(self, path, **options)
        if moment == "later":
            shutil.rmtree(path.parent)

    monkeypatch.setattr(Lock, "__init__", taken)
    assert tokenise() == whole
    assert moments == []


@pytest.mark.parametrize("error", [PulledPlug, KeyboardInterrupt])
def test_what_comes_when_it_has_its_name_changes_nothing(
    tokenise: Tokenise, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: type
) -> None:
    whole = tokenise(output="whole")

    def publish(*words: Any, **options: Any) -> None:
        atomic.publish(*words, **options)
        raise error

    monkeypatch.setattr(resume, "publish", publish)
    with pytest.raises(error):
        tokenise()
    assert {file.name: file.read_bytes() for file in Path("tokens").iterdir()} == whole
    assert left(place) == {"tokens"}
    assert caplog.text == ""


def test_what_killed_processes_left_is_cleared_away_but_for_whole_shards(tokenise: Tokenise, place: Path) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=14, output="some")
    for name, files_of_it in {
        "early": ("lock", "store/shard-00000.npy"),
        "late": ("lock", "unfinished.json"),
        "mine": ("lock", "thesis.tex"),
        "of-others": ("store/shard-00000.npy",),
        "held": ("lock", "store/shard-00000.npy"),
    }.items():
        for file in files_of_it:
            Path(f".unfinished-{name}", file).parent.mkdir(parents=True, exist_ok=True)
            Path(f".unfinished-{name}", file).touch()
    with Lock(Path(".unfinished-held/lock")):
        tokenise()
    kept = {".unfinished-some", ".unfinished-mine", ".unfinished-of-others", ".unfinished-held"}
    assert left(place) == {"tokens", *kept}


def test_a_store_that_is_to_be_replaced_may_be_gone_on_with(tokenise: Tokenise, place: Path) -> None:
    tokenise(max_length=30)
    with pytest.raises(PulledPlug):
        tokenise(after=14, force=True)
    with pytest.raises(MinilmError, match="this store is whole"):
        tokenise(continued=True)
    assert tokenise(continued=True, force=True) == tokenise(output="whole")
    assert left(place) == {"tokens"}


def test_what_was_being_written_when_the_power_failed_is_no_part_of_it(tokenise: Tokenise) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=14)
    for name in ("store/shard-00099.npy", "store/shard-00099.offsets.npy", ".tmp-unfinished.json"):
        Path(".unfinished-tokens", name).write_bytes(b"half")
    assert tokenise(continued=True) == tokenise(output="whole")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_length": 13}, "another --max-length: 12, not 13"),
        ({"tokenizer": "other"}, "another checksum of the tokenizer"),
        ({"overflow": "drop"}, "another --overflow"),
        ({"pack": True}, "another --pack"),
        ({"split_sentences": True}, "another --split-sentences"),
        ({"text_field": "id"}, "another --text-field"),
        ({"inputs": ("b.txt.gz", "a.txt")}, "input 1 of the unfinished store was not .*b.txt.gz"),
        ({"inputs": ("a.txt",)}, "made of [23] inputs so far"),
    ],
)
def test_another_way_or_other_inputs_are_refused_by_name(
    tokenise: Tokenise, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=14)
    with pytest.raises(MinilmError, match=named) as caught:
        tokenise(continued=True, **options)
    assert "Make it anew with --force" in (caught.value.hint or "")
    assert caught.value.where == ".unfinished-tokens"
    assert tokenise(continued=True) == tokenise(output="whole")


def test_an_input_that_was_changed_is_refused_by_name(tokenise: Tokenise) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=14)
    with Path("a.txt").open("a") as file:
        file.write("more")
    with pytest.raises(MinilmError, match=r"input 1 of the unfinished store was not .*a\.txt, or not as it is now"):
        tokenise(continued=True)


def test_inputs_that_were_not_begun_may_change(tokenise: Tokenise) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=4)
    Path("c.csv").write_text("text\npeople\n")
    inputs = {"inputs": ("a.txt", "c.csv")}
    assert tokenise(continued=True, **inputs) == tokenise(output="whole", **inputs)


def test_a_line_that_was_wrong_may_be_replaced(tokenise: Tokenise) -> None:
    Path("bad.txt").write_bytes("\n".join(LINES * 4).encode() + b"\n\xff\n")
    with pytest.raises(MinilmError, match="--errors replace"):
        tokenise(inputs=("bad.txt",))
    options = {"inputs": ("bad.txt",), "errors": "replace"}
    assert tokenise(continued=True, **options) == tokenise(output="whole", **options)


def test_what_was_replaced_is_not_refused_later(tokenise: Tokenise) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=14, errors="replace")
    with pytest.raises(MinilmError, match="another --errors: replace, not strict"):
        tokenise(continued=True)


def test_a_damaged_shard_is_not_gone_on_with(tokenise: Tokenise, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=14)
    caplog.clear()
    os.truncate(".unfinished-tokens/store/shard-00000.npy", 130)
    with pytest.raises(MinilmError, match="damaged") as caught:
        tokenise(continued=True)
    assert "Make it anew with --force" in (caught.value.hint or "")
    assert "What is done is kept" not in caplog.text


def test_two_that_make_the_same_output_are_refused(tokenise: Tokenise) -> None:
    Path(".unfinished-tokens").mkdir()
    with Lock(Path(".unfinished-tokens/lock")), pytest.raises(MinilmError, match=r"process .* is making this output"):
        tokenise()


def test_who_holds_the_lock_for_a_moment_is_waited_for(tokenise: Tokenise, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tokenise(output="whole")
    Path(".unfinished-tokens").mkdir()
    lock = Lock(Path(".unfinished-tokens/lock"))
    monkeypatch.setattr(locks, "sleep", lambda _: lock.close())
    assert tokenise() == whole


def test_what_others_may_go_on_with_is_not_even_locked(
    tokenise: Tokenise, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=14, output="some")
    locked: list[str] = []
    take = Lock.__init__

    def taken(self: Lock, path: Path, **options: float) -> None:
        locked.append(path.parent.name)
        take(self, path, **options)

    monkeypatch.setattr(Lock, "__init__", taken)
    tokenise()
    assert ".unfinished-tokens" in locked
    assert ".unfinished-some" not in locked
    assert left(place) == {"tokens", ".unfinished-some"}


def test_what_became_of_use_before_it_was_locked_stays(tokenise: Tokenise, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".unfinished-some/store").mkdir(parents=True)
    Path(".unfinished-some/lock").touch()
    take = Lock.__init__

    def taken(self: Lock, path: Path, **options: float) -> None:
        if path.parent.name == ".unfinished-some":
            path.with_name("unfinished.json").touch()
        take(self, path, **options)

    monkeypatch.setattr(Lock, "__init__", taken)
    tokenise()
    assert Path(".unfinished-some/unfinished.json").exists()


def test_where_locks_are_lost_at_once_that_is_said(tokenise: Tokenise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lock, "in_place", lambda _: False)
    with pytest.raises(RunError, match="does not know its files again"):
        tokenise()


@pytest.mark.parametrize(
    ("options", "named"), [({"inputs": ("-",)}, "standard input"), ({"output": "ids.jsonl.gz"}, "token-id lists")]
)
def test_what_cannot_be_gone_on_with_is_refused(
    tokenise: Tokenise, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], named: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"one"))))
    with pytest.raises(MinilmError, match=f"--continue: .*{named}"):
        tokenise(continued=True, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("shards"), "shards"),
        (lambda state: state["standing"].update(source=-1), "standing.source"),
        (lambda state: state["standing"]["place"].update(at="x"), "standing.place.at"),
        (lambda state: state.update(format_version=99, written_by="9.9"), "written by minilm 9.9"),
        (lambda state: state["shards"][0].update(sequences=7), "damaged"),
    ],
)
def test_a_damaged_state_is_refused(
    tokenise: Tokenise, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=14)
    file = Path(".unfinished-tokens/unfinished.json")
    state = json.loads(file.read_text())
    change(state)
    file.write_text(json.dumps(state))
    with pytest.raises(MinilmError, match=message):
        tokenise(continued=True)
