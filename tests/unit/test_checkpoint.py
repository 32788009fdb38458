from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from minilm_cli.base.checksums import sha256
from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.runs import checkpoint

TENSORS = {
    "student": {"layer.weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.5, float("inf")])},
    "optimizer": {"layer.weight.step": torch.tensor(3.0), "half": torch.ones(2, dtype=torch.bfloat16)},
    "empty": {},
}
NOTES = {"best": {"step": 5, "eval_loss": 0.25}, "evaluated": None, "word": "ж"}


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.save(folder, step, TENSORS, NOTES | {"of": step})


def test_saved_tensors_are_loaded_bit_for_bit(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path, 7, TENSORS, NOTES)
    loaded = checkpoint.load(tmp_path / "step-00000007")
    assert (saved.path, saved.step) == (loaded.path, loaded.step) == (tmp_path / "step-00000007", 7)
    assert loaded.notes == saved.notes == NOTES
    for group, members in TENSORS.items():
        loaded_tensors = loaded.tensors(group)
        assert loaded_tensors.keys() == members.keys()
        for name, tensor in members.items():
            assert loaded_tensors[name].dtype == tensor.dtype
            assert torch.equal(loaded_tensors[name], tensor)


def test_noncontiguous_tensors_with_gradients_are_saved(tmp_path: Path) -> None:
    noncontiguous = torch.arange(6.0).view(2, 3).T.requires_grad_()
    loaded = checkpoint.save(tmp_path, 1, {"student": {"bent": noncontiguous}}, {}).tensors("student")
    assert torch.equal(loaded["bent"], noncontiguous.detach())


def test_checkpoint_has_no_pickle_and_leaves_no_temporary_files(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    names = {path.name for path in (tmp_path / "step-00000001").iterdir()}
    assert names == {"checkpoint.json", "empty.safetensors", "optimizer.safetensors", "student.safetensors"}


def test_failed_save_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "save_file", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(RunError, match="could not be written: No space left") as caught:
        save(tmp_path, 1)
    assert caught.value.where == str(tmp_path / "step-00000001")
    assert checkpoint.load(tmp_path / "step-00000001").notes["of"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_latest_has_the_highest_step(tmp_path: Path) -> None:
    save(tmp_path, 20, 100_000_000, 3)
    assert checkpoint.steps(tmp_path) == [3, 20, 100_000_000]
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.step == 100_000_000
    assert newest.notes["of"] == 100_000_000


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_latest_is_none_without_checkpoints(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    assert checkpoint.steps(tmp_path / name) == []
    assert checkpoint.latest(tmp_path / name) is None


def test_temporary_folders_are_ignored(tmp_path: Path) -> None:
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
def test_damaged_checkpoint_is_refused_and_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], Any], message: str
) -> None:
    save(tmp_path, 1, 5)
    damage(tmp_path / "step-00000005")
    with pytest.raises(RunError, match=message) as caught:
        checkpoint.load(tmp_path / "step-00000005")
    assert caught.value.exit_status == 1
    assert str(tmp_path / "step-00000005") in str(caught.value)
    with caplog.at_level(logging.WARNING, logger="minilm_cli"):
        newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.step == 1
    [record] = caplog.records
    assert "Skipping a damaged checkpoint" in record.message
    assert "step-00000005" in record.message


def test_later_format_is_refused_instead_of_skipped(tmp_path: Path) -> None:
    save(tmp_path, 1, 5)
    change(format_version=2, written_by="7.8.9", more={})(tmp_path / "step-00000005")
    with pytest.raises(
        MinilmError, match=r"format 2, written by minilm 7.8.9; this minilm, .*, reads up to 1"
    ) as caught:
        checkpoint.latest(tmp_path)
    assert (caught.value.exit_status, caught.value.hint) == (2, "Upgrade minilm.")
    assert checkpoint.steps(tmp_path) == [1, 5]


def test_every_flipped_bit_of_the_manifest_is_detected(tmp_path: Path) -> None:
    save(tmp_path, 1, 5)
    file = tmp_path / "step-00000005" / "checkpoint.json"
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 7]) + content[place + 1 :])
        newest = checkpoint.latest(tmp_path)
        same = file.read_bytes().split() == content.split()  # only white space differs
        assert newest is not None
        assert newest.step == 1 or same or content[place : place + 1] in b" \n"


def test_invalid_tensors_with_a_valid_checksum_are_refused(tmp_path: Path) -> None:
    save(tmp_path, 5)
    folder = tmp_path / "step-00000005"
    (folder / "student.safetensors").write_bytes(b"\xff" * 100)
    digest = hashlib.sha256(b"\xff" * 100).hexdigest()
    change(sha256={"student.safetensors": digest})(folder)
    with pytest.raises(RunError, match=r"student.safetensors: this file cannot be read as safetensors"):
        checkpoint.load(folder).tensors("student")
    with pytest.raises(RunError, match="cannot be read as safetensors"):
        checkpoint.load(folder).tensors("colours")


def test_checkpoint_removed_by_a_running_process_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)

    def save_meanwhile(path: Path) -> str:
        monkeypatch.undo()
        save(tmp_path, 2)
        checkpoint.prune(tmp_path, newest=2, keep=1)
        return sha256(path)

    monkeypatch.setattr(checkpoint, "sha256", save_meanwhile)
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.step == 2
    assert caplog.messages == []


def test_each_damaged_checkpoint_is_named_if_none_is_valid(tmp_path: Path) -> None:
    save(tmp_path, 1, 5)
    flip(tmp_path / "step-00000005", "student.safetensors")
    (tmp_path / "step-00000001" / "optimizer.safetensors").unlink()
    with pytest.raises(RunError) as caught:
        checkpoint.latest(tmp_path)
    message = str(caught.value)
    assert f"{tmp_path / 'step-00000005' / 'student.safetensors'}: this file is damaged" in message
    assert f"{tmp_path / 'step-00000001' / 'optimizer.safetensors'}: the file is missing" in message


@pytest.mark.parametrize(
    ("keep", "best", "remaining"),
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
def test_pruning_keeps_the_newest_and_the_best(
    tmp_path: Path, keep: int, best: int | None, remaining: list[int]
) -> None:
    save(tmp_path, 1, 2, 3, 4, 5)
    checkpoint.prune(tmp_path, newest=5, keep=keep, best=best)
    assert checkpoint.steps(tmp_path) == remaining
    assert all(checkpoint.load(checkpoint.path_of(tmp_path, step)).step == step for step in remaining)


def test_pruning_keeps_other_files(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "notes.txt").write_text("x")
    checkpoint.prune(tmp_path, newest=2, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "step-00000002"]


def test_pruning_removes_later_checkpoints_of_a_run_that_went_back(tmp_path: Path) -> None:
    save(tmp_path, 50, 60, 100)
    checkpoint.prune(tmp_path, newest=60, keep=1)
    assert checkpoint.steps(tmp_path) == [60]


def test_failed_removal_gives_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 2)
    monkeypatch.setattr(checkpoint, "discard", Mock(side_effect=OSError(16, "Device or resource busy")))
    with caplog.at_level(logging.WARNING, logger="minilm_cli"):
        checkpoint.prune(tmp_path, newest=2, keep=1)
    assert "step-00000001 cannot be removed: Device or resource busy" in caplog.text
    assert checkpoint.steps(tmp_path) == [1, 2]
