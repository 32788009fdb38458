"""Interrupted token stores that are continued."""

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

from minilm_cli.base import atomic
from minilm_cli.base.errors import InputChanged, MinilmError
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
def test_a_continued_store_is_the_same_as_one_never_interrupted(
    tokenise: Tokenise, place: Path, monkeypatch: pytest.MonkeyPatch, after: int, pack: bool
) -> None:
    monkeypatch.setattr("minilm_cli.corpus.sources.LONGEST_PART", 60)  # the longest line comes in parts
    whole = tokenise(output="whole", pack=pack)
    assert len([name for name in whole if name.endswith("0.npy") or "offsets" in name]) > 8
    with pytest.raises(PulledPlug):
        tokenise(after=after, pack=pack)
    assert not Path("tokens").exists()
    with pytest.raises(PulledPlug):  # again, with other batches
        tokenise(after=2, continued=True, batch_size=2, pack=pack)
    assert tokenise(continued=True, batch_size=5, pack=pack) == whole
    assert left(place) == {"tokens"}


def test_complete_shards_are_not_written_again(tokenise: Tokenise) -> None:
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


def test_the_state_is_converted_once_a_shard_and_not_once_a_batch(
    tokenise: Tokenise, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[packing.State] = []
    state = packing.State
    monkeypatch.setattr(packing, "State", lambda *values: made.append(state(*values)) or made[-1])
    shards = [name for name in tokenise(pack=True, batch_size=1) if name.endswith("offsets.npy")]
    assert 3 < len(made) <= len(shards)


def test_an_interruption_says_how_to_continue(tokenise: Tokenise, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with pytest.raises(PulledPlug):
        tokenise(after=14)
    assert "Continue with the same command and --continue" in caplog.text


def test_an_input_that_became_shorter_must_be_restored_to_continue(
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
    assert "Restore the content and modification time of a.txt" in caplog.text
    assert "Start again with --force" in caplog.text
    with pytest.raises(MinilmError, match="input 1 of the unfinished store has changed"):
        tokenise(continued=True)
    Path("a.txt").write_bytes(before[0])
    os.utime("a.txt", ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
    assert tokenise(continued=True) == whole


def test_before_the_first_complete_shard_nothing_is_left(tokenise: Tokenise, place: Path) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=0)
    assert left(place) == set()
    assert tokenise(continued=True) == tokenise(output="whole")


def test_an_unfinished_store_is_replaced_only_with_force(tokenise: Tokenise, place: Path) -> None:
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


@pytest.mark.parametrize("error", [PulledPlug, KeyboardInterrupt])
def test_a_complete_store_is_kept_if_it_cannot_be_renamed(
    tokenise: Tokenise, place: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("minilm_cli.base.atomic._put", fails)
        with pytest.raises(error):
            tokenise()
    assert tokenise(continued=True) == tokenise(output="whole")
    assert left(place) == {"tokens"}


@pytest.mark.parametrize("error", [PulledPlug, KeyboardInterrupt])
def test_an_error_after_the_store_is_renamed_changes_nothing(
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
    assert caplog.text == ""
    assert left(place) == {"tokens"}


def test_shards_are_kept_if_another_output_has_the_name_at_the_end(tokenise: Tokenise, place: Path) -> None:
    class Taken(NoProgress):
        def stop(self) -> None:
            Path("tokens").mkdir(exist_ok=True)
            Path("tokens/mine").touch()

    with pytest.raises(MinilmError, match="exists already"):
        tokenise(progress=Taken())
    shutil.rmtree("tokens")
    assert tokenise(continued=True) == tokenise(output="whole")
    assert left(place) == {"tokens"}


def test_what_a_killed_process_left_is_cleared_away_by_the_next_but_for_complete_shards(
    tokenise: Tokenise, place: Path
) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=14, output="some")
    for file in ("lock", "store/shard-00000.npy", "store/shard-00077.npy"):
        path = Path(".unfinished-tokens", file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert tokenise() == tokenise(output="whole")
    assert left(place) == {"tokens", ".unfinished-some"}


def test_a_store_that_replaces_another_can_be_continued(tokenise: Tokenise, place: Path) -> None:
    tokenise(max_length=30)
    with pytest.raises(PulledPlug):
        tokenise(after=14, force=True)
    with pytest.raises(MinilmError, match="this store is complete"):
        tokenise(continued=True)
    assert tokenise(continued=True, force=True) == tokenise(output="whole")
    assert left(place) == {"tokens"}


def test_files_half_written_at_a_power_failure_are_removed(tokenise: Tokenise) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=14)
    for name in ("store/shard-00099.npy", "store/shard-00099.offsets.npy", ".tmp-unfinished.json"):
        Path(".unfinished-tokens", name).write_bytes(b"half")
    assert tokenise(continued=True) == tokenise(output="whole")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_length": 13}, "made with --max-length 12, not 13"),
        ({"tokenizer": "other"}, "made with checksum of the tokenizer"),
        ({"overflow": "drop"}, "made with --overflow"),
        ({"pack": True}, "made with --pack"),
        ({"split_sentences": True}, "made with --split-sentences"),
        ({"text_field": "id"}, "made with --text-field"),
        ({"inputs": ("b.txt.gz", "a.txt")}, "input 1 of the unfinished store has changed, or was not .*b.txt.gz"),
        ({"inputs": ("a.txt",)}, "input [23] of the unfinished store has changed, or was not missing"),
    ],
)
def test_other_settings_or_inputs_are_refused_by_name(tokenise: Tokenise, options: dict[str, Any], named: str) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=14)
    with pytest.raises(MinilmError, match=named) as caught:
        tokenise(continued=True, **options)
    assert "Start again with --force" in (caught.value.hint or "")
    assert caught.value.where == ".unfinished-tokens"
    assert tokenise(continued=True) == tokenise(output="whole")


def test_a_changed_input_is_refused_by_name(tokenise: Tokenise) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=14)
    with Path("a.txt").open("a") as file:
        file.write("more")
    with pytest.raises(MinilmError, match=r"input 1 of the unfinished store has changed, or was not .*a\.txt"):
        tokenise(continued=True)


def test_inputs_that_were_not_started_may_change(tokenise: Tokenise) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=4)
    Path("c.csv").write_text("text\npeople\n")
    inputs = {"inputs": ("a.txt", "c.csv")}
    assert tokenise(continued=True, **inputs) == tokenise(output="whole", **inputs)


def test_errors_replace_may_be_added_after_an_error(tokenise: Tokenise) -> None:
    Path("bad.txt").write_bytes("\n".join(LINES * 4).encode() + b"\n\xff\n")
    with pytest.raises(MinilmError, match="--errors replace"):
        tokenise(inputs=("bad.txt",))
    options = {"inputs": ("bad.txt",), "errors": "replace"}
    assert tokenise(continued=True, **options) == tokenise(output="whole", **options)


def test_errors_replace_may_not_be_removed(tokenise: Tokenise) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=14, errors="replace")
    with pytest.raises(MinilmError, match="made with --errors replace, not strict"):
        tokenise(continued=True)


def test_a_damaged_shard_is_refused(tokenise: Tokenise, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PulledPlug):
        tokenise(after=14)
    caplog.clear()
    os.truncate(".unfinished-tokens/store/shard-00000.npy", 130)
    with pytest.raises(MinilmError, match="damaged") as caught:
        tokenise(continued=True)
    assert "Start again with --force" in (caught.value.hint or "")
    assert "Kept" not in caplog.text


def test_a_second_process_with_the_same_output_is_refused(tokenise: Tokenise) -> None:
    Path(".unfinished-tokens").mkdir()
    with Lock(Path(".unfinished-tokens/lock")), pytest.raises(MinilmError, match=r"process .* is making this output"):
        tokenise()


@pytest.mark.parametrize(
    ("options", "named"), [({"inputs": ("-",)}, "standard input"), ({"output": "ids.jsonl.gz"}, "token-id lists")]
)
def test_outputs_and_inputs_that_cannot_be_continued_are_refused(
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
        (lambda state: state.update(format_version=99, written_by="9.9"), "another version of minilm: format_version"),
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
