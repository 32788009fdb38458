from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minilm_cli.base.checksums import sha256
from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.runs import checkpoint

TENSORS = {
    "student": {"layer.weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.5, float("inf")])},
    "optimizer": {"layer.weight.step": torch.tensor(3.0), "half": torch.ones(2, dtype=torch.bfloat16)},
}
NOTES = {"best": {"step": 5, "eval_loss": 0.25}, "evaluated": None, "word": "ж"}


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.save(folder, step, TENSORS, NOTES | {"of": step})


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path, 7, TENSORS, NOTES)
    loaded = checkpoint.load(tmp_path / "step-00000007")
    assert (saved.path, saved.step) == (loaded.path, loaded.step) == (tmp_path / "step-00000007", 7)
    assert loaded.notes == saved.notes == NOTES
    for group, members in TENSORS.items():
        found = loaded.tensors(group)
        assert found.keys() == members.keys()
        for name, tensor in members.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


def test_tensors_that_need_gradients_or_are_not_contiguous_are_saved_too(tmp_path: Path) -> None:
    bent = torch.arange(6.0).view(2, 3).T.requires_grad_()
    loaded = checkpoint.save(tmp_path, 1, {"student": {"bent": bent}}, {}).tensors("student")
    assert torch.equal(loaded["bent"], bent.detach())


def test_a_group_may_be_empty(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"optimizer": {}}, {})
    assert checkpoint.load(tmp_path / "step-00000001").tensors("optimizer") == {}


def test_a_checkpoint_holds_no_pickle_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    names = {path.name for path in (tmp_path / "step-00000001").iterdir()}
    assert names == {"checkpoint.json", "optimizer.safetensors", "student.safetensors"}


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1)
    checkpoint.save(tmp_path, 1, {"student": {"only": torch.zeros(1)}}, {})
    assert list(checkpoint.load(tmp_path / "step-00000001").tensors("student")) == ["only"]


def test_a_save_that_fails_leaves_the_older_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(RunError, match="could not be written: No space left") as caught:
        save(tmp_path, 1)
    assert caught.value.where == str(tmp_path / "step-00000001")
    assert checkpoint.load(tmp_path / "step-00000001").notes["of"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_the_latest_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    save(tmp_path, 20, 100_000_000, 3)
    assert checkpoint.steps(tmp_path) == [3, 20, 100_000_000]
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.step == 100_000_000
    assert newest.notes["of"] == 100_000_000


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_where_there_is_no_checkpoint_there_is_no_latest(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    assert checkpoint.steps(tmp_path / name) == []
    assert checkpoint.latest(tmp_path / name) is None


def test_what_an_interrupted_save_left_is_ignored(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".tmp-step-00000009-abc" / "step-00000009")
    (tmp_path / "step-9").mkdir()
    (tmp_path / "step-00000009.bak").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    assert checkpoint.steps(tmp_path) == [1]
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.step == 1


def flip(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)


def change(*, sealed: bool = True, **values: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "checkpoint.json"
        manifest = json.loads(file.read_text()) | values
        if sealed:
            del manifest["seal"]
            manifest["seal"] = checkpoint._seal(manifest)
        file.write_text(json.dumps(manifest))

    return damage


def replaced_by_folder(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def cut_short(folder: Path) -> None:
    content = (folder / "student.safetensors").read_bytes()
    (folder / "student.safetensors").write_bytes(content[:20])


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped bit": (lambda folder: flip(folder, "student.safetensors"), "student.safetensors: .*checksum"),
    "flipped bit in the moments": (lambda folder: flip(folder, "optimizer.safetensors"), "optimizer.*checksum"),
    "cut short": (cut_short, "student.safetensors: .*checksum"),
    "file missing": (lambda folder: (folder / "optimizer.safetensors").unlink(), "optimizer.*the file is missing"),
    "no manifest": (lambda folder: (folder / "checkpoint.json").unlink(), "no such checkpoint manifest"),
    "empty manifest": (lambda folder: (folder / "checkpoint.json").write_text(""), "cannot be read as JSON"),
    "manifest is a list": (lambda folder: (folder / "checkpoint.json").write_text("[]"), "checkpoint.json"),
    "step is no number": (change(step="x"), "checkpoint.json"),
    "another step than the folder's": (change(step=4), "checkpoint.json"),
    "no checksums": (change(sha256=None), "checkpoint.json"),
    "checksums of nothing": (change(sha256={}), "checkpoint.json|safetensors"),
    "checksum of a file elsewhere": (change(sha256={"../../secret": "0" * 64}), "sha256.*pattern"),
    "format is text": (change(format_version="2"), "checkpoint.json"),
    "notes that are text": (change(notes="x"), "notes"),
    "an entry too many": (change(colour="red"), "colour"),
    "another step than was sealed": (change(sealed=False, step=5, format_version=3), "manifest is damaged .*checksum"),
    "other notes than were sealed": (change(sealed=False, notes={}), "manifest is damaged .*checksum"),
    "no seal": (change(sealed=False, seal=None), "manifest is damaged .*checksum"),
    "manifest is a folder": (replaced_by_folder("checkpoint.json"), "checkpoint.json"),
    "weights are a folder": (replaced_by_folder("student.safetensors"), "the file is missing"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_refused_with_the_file_and_the_check(
    tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    save(tmp_path, 5)
    damage(tmp_path / "step-00000005")
    with pytest.raises(RunError, match=message) as caught:
        checkpoint.load(tmp_path / "step-00000005")
    assert caught.value.exit_status == 1
    assert str(tmp_path / "step-00000005") in str(caught.value)


def test_one_of_a_later_format_is_no_damage_and_not_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1, 5)
    change(format_version=2, written_by="7.8.9", more={})(tmp_path / "step-00000005")
    with pytest.raises(
        MinilmError, match=r"format 2, written by minilm 7.8.9; this minilm, .*, reads up to 1"
    ) as caught:
        checkpoint.latest(tmp_path)
    assert (caught.value.exit_status, caught.value.hint) == (2, "Upgrade minilm.")
    assert checkpoint.steps(tmp_path) == [1, 5]


def test_no_flipped_bit_of_the_manifest_goes_unseen(tmp_path: Path) -> None:
    save(tmp_path, 1, 5)
    file = tmp_path / "step-00000005" / "checkpoint.json"
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 7]) + content[place + 1 :])
        newest = checkpoint.latest(tmp_path)
        same = file.read_bytes().split() == content.split()  # spaces say nothing
        assert newest is not None
        assert newest.step == 1 or same or content[place : place + 1] in b" \n"


def test_tensors_that_are_none_are_refused_though_their_checksum_is_right(tmp_path: Path) -> None:
    save(tmp_path, 5)
    folder = tmp_path / "step-00000005"
    (folder / "student.safetensors").write_bytes(b"\xff" * 100)
    digest = hashlib.sha256(b"\xff" * 100).hexdigest()
    change(sha256={"student.safetensors": digest})(folder)
    with pytest.raises(RunError, match=r"student.safetensors: this file cannot be read as safetensors"):
        checkpoint.load(folder).tensors("student")
    with pytest.raises(RunError, match="cannot be read as safetensors"):
        checkpoint.load(folder).tensors("colours")


@pytest.mark.parametrize("damage", [damage for damage, _ in DAMAGE.values()], ids=DAMAGE)
def test_a_damaged_newest_is_passed_over_with_a_warning(
    tmp_path: Path, damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, 5)
    damage(tmp_path / "step-00000005")
    with caplog.at_level(logging.WARNING, logger="minilm_cli"):
        newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.step == 1
    [record] = caplog.records
    assert "Skipping a damaged checkpoint" in record.message
    assert "step-00000005" in record.message


def test_one_that_a_run_at_work_removes_meanwhile_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)

    def while_the_run_goes_on(path: Path) -> str:
        monkeypatch.undo()
        save(tmp_path, 2)
        checkpoint.prune(tmp_path, newest=2, keep=1)
        return sha256(path)

    monkeypatch.setattr(checkpoint, "sha256", while_the_run_goes_on)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 2
    assert caplog.messages == []


def test_where_none_is_sound_each_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    save(tmp_path, 1, 5)
    flip(tmp_path / "step-00000005", "student.safetensors")
    (tmp_path / "step-00000001" / "optimizer.safetensors").unlink()
    with pytest.raises(RunError) as caught:
        checkpoint.latest(tmp_path)
    message = str(caught.value)
    assert f"{tmp_path / 'step-00000005' / 'student.safetensors'}: this file is damaged" in message
    assert f"{tmp_path / 'step-00000001' / 'optimizer.safetensors'}: the file is missing" in message


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (3, None, [3, 4, 5]),
        (1, None, [5]),
        (2, 1, [1, 4, 5]),
        (2, 5, [4, 5]),
        (5, None, [1, 2, 3, 4, 5]),
        (9, 2, [1, 2, 3, 4, 5]),
        (1, 99, [5]),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path: Path, keep: int, best: int | None, left: list[int]) -> None:
    save(tmp_path, 1, 2, 3, 4, 5)
    checkpoint.prune(tmp_path, newest=5, keep=keep, best=best)
    assert checkpoint.steps(tmp_path) == left
    assert all(checkpoint.load(checkpoint.path_of(tmp_path, step)).step == step for step in left)


def test_pruning_touches_nothing_but_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "notes.txt").write_text("x")
    checkpoint.prune(tmp_path, newest=2, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "step-00000002"]


def test_checkpoints_later_than_the_newest_of_a_run_that_went_back_take_no_place(tmp_path: Path) -> None:
    save(tmp_path, 50, 60, 100)
    checkpoint.prune(tmp_path, newest=60, keep=1)
    assert checkpoint.steps(tmp_path) == [60]


def test_what_cannot_be_removed_stays_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 2)

    def refuse(_: Path) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(checkpoint, "discard", refuse)
    with caplog.at_level(logging.WARNING, logger="minilm_cli"):
        checkpoint.prune(tmp_path, newest=2, keep=1)
    assert "step-00000001 cannot be removed: Device or resource busy" in caplog.text
    assert checkpoint.steps(tmp_path) == [1, 2]
