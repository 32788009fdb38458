"""Interrupted token stores are continued."""

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
from unittest.mock import Mock

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

from .stores import contents

LINES = ["the man and his people", "one two", "", "people of the long day " * 8, "two", "the of and to in is was", ""]


class Stopped(Exception):
    """Stands for a failure of the machine."""


class StopAfter(NoProgress):
    """Stops the work after some batches."""

    def __init__(self, after: int) -> None:
        self._left = after

    def update(self, done: float, shown: object = None) -> None:  # noqa: ARG002
        self._left -= 1
        if self._left < 0:
            raise Stopped


Tokenise = Callable[..., dict[str, bytes]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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
def tokenise(folder: Path, tiny_teacher: Path) -> Tokenise:  # noqa: ARG001
    """Tokenises the inputs into `tokens`, or is interrupted after some batches; gives the store's bytes."""

    def run(
        *, after: int | None = None, progress: Progress | None = None, output: str = "tokens", **options: Any
    ) -> dict[str, bytes]:
        defaults = {"inputs": ("a.txt", "b.txt.gz", "c.csv"), "max_length": 12, "workers": 1, "batch_size": 3}
        defaults |= {"tokenizer": str(tiny_teacher), "output": Path(output)}
        settings = TokenizeSettings(**defaults | options)
        tokenize(settings, progress or (NoProgress() if after is None else StopAfter(after)))
        return contents(Path(output))

    return run


def interrupt(tokenise: Tokenise, after: int = 14, **options: Any) -> None:
    """Tokenise until some batches are done, and stop there."""
    with pytest.raises(Stopped):
        tokenise(after=after, **options)


def kept_files() -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in Path(".unfinished-tokens").rglob("*") if file.is_file()}


def remaining(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"a.txt", "b.txt.gz", "c.csv", "other", "complete"}


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("after", [1, 3, 11, 20])
def test_continued_store_equals_an_uninterrupted_one(
    tokenise: Tokenise, folder: Path, monkeypatch: pytest.MonkeyPatch, after: int, pack: bool
) -> None:
    monkeypatch.setattr("minilm_cli.corpus.sources.LONGEST_PART", 60)  # the longest line comes in parts
    expected = tokenise(output="complete", pack=pack)
    assert len([name for name in expected if name.endswith("0.npy") or "offsets" in name]) > 8
    interrupt(tokenise, after=after, pack=pack)
    assert not Path("tokens").exists()
    interrupt(tokenise, after=2, continued=True, batch_size=2, pack=pack)  # again, with another batch size
    assert tokenise(continued=True, batch_size=5, pack=pack) == expected
    assert remaining(folder) == {"tokens"}


def test_complete_shards_are_not_written_again(tokenise: Tokenise) -> None:
    interrupt(tokenise)
    kept = {file.name: file.stat() for file in Path(".unfinished-tokens/store").iterdir()}
    state = json.loads(Path(".unfinished-tokens/unfinished.json").read_text())
    complete = [shard["file"] for shard in state["shards"]]
    assert len(complete) > 3
    tokenise(continued=True)
    for name in complete:
        assert Path("tokens", name).stat().st_mtime_ns == kept[name].st_mtime_ns
        assert Path("tokens", name).stat().st_ino == kept[name].st_ino


def test_state_is_converted_once_per_shard(tokenise: Tokenise, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[packing.State] = []
    state = packing.State
    monkeypatch.setattr(packing, "State", lambda *values: states.append(state(*values)) or states[-1])
    shards = [name for name in tokenise(pack=True, batch_size=1) if name.endswith("offsets.npy")]
    assert 3 < len(states) <= len(shards)


def test_shortened_input_must_be_restored_to_continue(tokenise: Tokenise, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    expected = tokenise(output="complete")
    before = Path("a.txt").read_bytes(), Path("a.txt").stat()

    class Shorter(NoProgress):
        def update(self, done: float, shown: object = None) -> None:  # noqa: ARG002
            os.truncate("a.txt", 200)

    with pytest.raises(InputChanged, match="became shorter"):
        tokenise(progress=Shorter())
    assert "Restore the content and modification time of a.txt" in caplog.text
    assert "Start again with --force" in caplog.text
    with pytest.raises(MinilmError, match=r"input 1 of the unfinished store has changed, or was not .*a\.txt"):
        tokenise(continued=True)
    Path("a.txt").write_bytes(before[0])
    os.utime("a.txt", ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
    assert tokenise(continued=True) == expected


def test_nothing_is_kept_before_the_first_complete_shard(tokenise: Tokenise, folder: Path) -> None:
    interrupt(tokenise, after=0)
    assert remaining(folder) == set()
    assert tokenise(continued=True) == tokenise(output="complete")


def test_unfinished_store_is_replaced_only_with_force(tokenise: Tokenise, folder: Path) -> None:
    interrupt(tokenise)
    other = {"max_length": 30}
    kept = kept_files()
    with pytest.raises(MinilmError, match="there is an unfinished store") as caught:
        tokenise(**other)
    assert "--continue" in (caught.value.hint or "")
    assert kept_files() == kept
    assert tokenise(force=True, **other) == tokenise(output="complete", **other)
    assert remaining(folder) == {"tokens"}


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
def test_complete_store_is_kept_if_it_cannot_be_renamed(
    tokenise: Tokenise, folder: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("minilm_cli.base.atomic._put", Mock(side_effect=error))
        with pytest.raises(error):
            tokenise()
    assert tokenise(continued=True) == tokenise(output="complete")
    assert remaining(folder) == {"tokens"}


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
def test_error_after_the_rename_keeps_the_store(
    tokenise: Tokenise, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: type
) -> None:
    expected = tokenise(output="complete")

    def publish(*words: Any, **options: Any) -> None:
        atomic.publish(*words, **options)
        raise error

    monkeypatch.setattr(resume, "publish", publish)
    with pytest.raises(error):
        tokenise()
    assert contents(Path("tokens")) == expected
    assert caplog.text == ""
    assert remaining(folder) == {"tokens"}


def test_shards_are_kept_if_the_output_name_is_taken(tokenise: Tokenise, folder: Path) -> None:
    class Taken(NoProgress):
        def stop(self) -> None:
            Path("tokens").mkdir(exist_ok=True)
            Path("tokens/mine").touch()

    with pytest.raises(MinilmError, match="exists already"):
        tokenise(progress=Taken())
    shutil.rmtree("tokens")
    assert tokenise(continued=True) == tokenise(output="complete")
    assert remaining(folder) == {"tokens"}


def test_files_of_a_killed_process_are_removed(tokenise: Tokenise, folder: Path) -> None:
    interrupt(tokenise, output="some")
    for file in ("lock", "store/shard-00000.npy", "store/shard-00077.npy"):
        path = Path(".unfinished-tokens", file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert tokenise() == tokenise(output="complete")
    assert remaining(folder) == {"tokens", ".unfinished-some"}


def test_store_that_replaces_another_can_be_continued(tokenise: Tokenise, folder: Path) -> None:
    tokenise(max_length=30)
    interrupt(tokenise, force=True)
    with pytest.raises(MinilmError, match="this store is complete"):
        tokenise(continued=True)
    assert tokenise(continued=True, force=True) == tokenise(output="complete")
    assert remaining(folder) == {"tokens"}


def test_partly_written_files_are_removed(tokenise: Tokenise) -> None:
    interrupt(tokenise)
    for name in ("store/shard-00099.npy", "store/shard-00099.offsets.npy", ".tmp-unfinished.json"):
        Path(".unfinished-tokens", name).write_bytes(b"half")
    assert tokenise(continued=True) == tokenise(output="complete")


@pytest.mark.parametrize(
    ("options", "message"),
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
def test_other_settings_or_inputs_are_refused_by_name(
    tokenise: Tokenise, options: dict[str, Any], message: str
) -> None:
    interrupt(tokenise)
    with pytest.raises(MinilmError, match=message) as caught:
        tokenise(continued=True, **options)
    assert "Start again with --force" in (caught.value.hint or "")
    assert caught.value.where == ".unfinished-tokens"
    assert tokenise(continued=True) == tokenise(output="complete")


def test_unread_inputs_may_change(tokenise: Tokenise) -> None:
    interrupt(tokenise, after=4)
    Path("c.csv").write_text("text\npeople\n")
    inputs = {"inputs": ("a.txt", "c.csv")}
    assert tokenise(continued=True, **inputs) == tokenise(output="complete", **inputs)


def test_errors_replace_may_be_added(tokenise: Tokenise) -> None:
    Path("bad.txt").write_bytes("\n".join(LINES * 4).encode() + b"\n\xff\n")
    with pytest.raises(MinilmError, match="--errors replace"):
        tokenise(inputs=("bad.txt",))
    options = {"inputs": ("bad.txt",), "errors": "replace"}
    assert tokenise(continued=True, **options) == tokenise(output="complete", **options)


def test_errors_replace_may_not_be_removed(tokenise: Tokenise) -> None:
    interrupt(tokenise, errors="replace")
    with pytest.raises(MinilmError, match="made with --errors replace, not strict"):
        tokenise(continued=True)


def test_interruption_and_damaged_shard_are_reported(tokenise: Tokenise, caplog: pytest.LogCaptureFixture) -> None:
    interrupt(tokenise)
    assert "Continue with the same command and --continue" in caplog.text
    caplog.clear()
    os.truncate(".unfinished-tokens/store/shard-00000.npy", 130)
    with pytest.raises(MinilmError, match="damaged") as caught:
        tokenise(continued=True)
    assert "Start again with --force" in (caught.value.hint or "")
    assert "Kept" not in caplog.text


def test_second_process_with_the_same_output_is_refused(tokenise: Tokenise) -> None:
    Path(".unfinished-tokens").mkdir()
    with Lock(Path(".unfinished-tokens/lock")), pytest.raises(MinilmError, match=r"process .* is making this output"):
        tokenise()


@pytest.mark.parametrize(
    ("options", "message"), [({"inputs": ("-",)}, "standard input"), ({"output": "ids.jsonl.gz"}, "token-id lists")]
)
def test_inputs_and_outputs_that_cannot_be_continued_are_refused(
    tokenise: Tokenise, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"one"))))
    with pytest.raises(MinilmError, match=f"--continue: .*{message}"):
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
def test_damaged_state_is_refused(tokenise: Tokenise, change: Callable[[dict[str, Any]], object], message: str) -> None:
    interrupt(tokenise)
    file = Path(".unfinished-tokens/unfinished.json")
    state = json.loads(file.read_text())
    change(state)
    file.write_text(json.dumps(state))
    with pytest.raises(MinilmError, match=message):
        tokenise(continued=True)
