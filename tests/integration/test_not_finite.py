"""A step that is not finite: what is said, what is left, and how it is seen again and gone on from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minilm_cli.base.progress import NoProgress
from minilm_cli.runs.folder import RunFolder
from minilm_cli.tokens.store import TokenStore
from minilm_cli.training import run
from minilm_cli.training.nonfinite import NotFinite

from .conftest import Commands, Settings, metrics


@pytest.fixture
def too_fast(tmp_path: Path, small_settings: Settings) -> Path:
    """A run that a learning rate without measure has ended."""
    folder = tmp_path / "run"
    with pytest.raises(NotFinite):
        run.distill(small_settings(folder, optimizer__lr=1e38, checkpoint__every=1), NoProgress())
    return folder


@pytest.mark.parametrize(("precision", "also"), [("fp32", ""), ("bf16", " --set training.precision=fp32")])
def test_the_step_its_relations_and_its_sequences_are_named_and_what_to_try(
    tmp_path: Path, small_settings: Settings, precision: str, also: str
) -> None:
    folder = tmp_path / "run"
    settings = small_settings(folder, optimizer__lr=1e38, training__precision=precision)
    with pytest.raises(NotFinite) as caught:
        run.distill(settings, NoProgress())
    told = str(caught.value)
    assert caught.value.exit_status == 1
    assert re.search(r"step \d: the loss is nan and the gradient norm nan; the step was not taken", told)
    assert "Relations: qq, kk, vv." in told
    assert "Sequences of the token store: " in told
    assert told.endswith(f"This may help:\n    minilm resume {folder} --set optimizer.lr=5e+37{also}")
    [left] = folder.glob("not-finite-*")
    assert str(left) in told


def test_what_is_left_holds_the_sequences_and_the_student_before_the_step(too_fast: Path, tiny_store: Path) -> None:
    [file] = too_fast.glob("not-finite-*")
    left = load_file(file)
    store = TokenStore(tiny_store)
    for index, length, ids in zip(left["indices"], left["lengths"], left["input_ids"], strict=True):
        assert ids[:length].tolist() == store[int(index)].tolist()
    with safe_open(file, "pt") as opened:
        step = int(opened.metadata()["step"])
    assert file.name == f"not-finite-step-{step:08}.safetensors"
    saved = load_file(too_fast / "checkpoints" / f"step-{step - 1:08}" / "student.safetensors")
    for name, tensor in saved.items():
        torch.testing.assert_close(left[f"student.{name}"], tensor, rtol=0, atol=0, equal_nan=True)


def test_the_step_can_be_seen_again_from_the_file(too_fast: Path) -> None:
    [file] = too_fast.glob("not-finite-*")
    finding = run.replay(file)
    assert f"not-finite-step-{finding.step:08}.safetensors" == file.name
    assert sorted(finding.sequences) == sorted(load_file(file)["indices"].tolist())
    assert list(finding.relations) == ["qq", "kk", "vv"]


def test_resuming_meets_it_again_and_with_a_lower_rate_goes_on(tmp_path: Path, small_settings: Settings) -> None:
    folder = tmp_path / "run"
    teacher_like = {"optimizer__lr": 1e-3, "checkpoint__every": 1, "training__steps": 3}
    run.distill(small_settings(folder, **teacher_like), NoProgress())
    for lr in (1e38, 1e38):
        with pytest.raises(NotFinite):
            run.resume(RunFolder(folder), NoProgress(), {"training.steps": 6, "optimizer.lr": lr})
    # Checkpoints from after the rate was too high are of no use: one goes back to an earlier one.
    for path in (folder / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > 3:
            (path / "checkpoint.json").unlink()
    changes = {"optimizer.lr": 1e-3, "optimizer.clip_norm": 0.5, "training.precision": "fp32"}
    report = run.resume(RunFolder(folder), NoProgress(), changes)
    assert report.step == 6
    settings = RunFolder(folder).settings()
    assert (settings.optimizer.lr, settings.optimizer.clip_norm, settings.training.precision) == (1e-3, 0.5, "fp32")
    assert [record["step"] for record in metrics(folder) if "loss" in record] == [1, 2, 3, 4, 6]


def test_the_command_ends_with_one_and_without_a_traceback(
    minilm: Commands, tiny_teacher: Path, tiny_store: Path
) -> None:
    done = minilm(
        *("distill", "--teacher", tiny_teacher, "--student-config", "l2-h24", "--data", tiny_store, "--steps", "9"),
        *("--batch-size", "4", "--lr", "1e38", "--warmup-steps", "1", "--eval-fraction", "0", "--output", "run"),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert "Error: step " in done.stderr
    assert "    minilm resume " in done.stderr
    log = (minilm.folder / "run" / "log.txt").read_text(encoding="utf-8")
    assert "Ended: step " in log
    assert "Traceback" not in log


def test_a_teacher_that_cannot_read_a_token_is_named(
    tmp_path: Path, small_settings: Settings, tiny_teacher: Path
) -> None:
    folder = tmp_path / "teacher"
    folder.mkdir()
    for path in tiny_teacher.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    # Finite, and too large for what is computed with it.
    weights["encoder.layer.3.attention.self.query.weight"].mul_(1e30)
    weights["encoder.layer.3.attention.self.key.weight"].mul_(1e30)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings = small_settings(tmp_path / "run", teacher__name=str(folder), training__precision="fp32")
    with pytest.raises(NotFinite) as caught:
        run.distill(settings, NoProgress())
    assert caught.value.finding.teacher
    assert not caught.value.finding.weights
    assert list(caught.value.finding.relations) == ["qq", "kk"]
    assert "The teacher's own relations are not finite" in caught.value.message
    assert "without these sequences or with another teacher" in str(caught.value.hint)
