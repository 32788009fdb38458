"""A step that is not finite: its message, the saved file, its replay, and resumption."""

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
def failed_run(tmp_path: Path, small_settings: Settings) -> Path:
    """A run that failed because of a huge learning rate."""
    folder = tmp_path / "run"
    with pytest.raises(NotFinite):
        run.distill(small_settings(folder, optimizer__lr=1e38, checkpoint__every=1), NoProgress())
    return folder


@pytest.mark.parametrize(("precision", "option"), [("fp32", ""), ("bf16", " --set training.precision=fp32")])
def test_the_message_names_the_step_its_relations_its_sequences_and_a_remedy(
    tmp_path: Path, small_settings: Settings, precision: str, option: str
) -> None:
    folder = tmp_path / "run"
    settings = small_settings(folder, optimizer__lr=1e38, training__precision=precision)
    with pytest.raises(NotFinite) as caught:
        run.distill(settings, NoProgress())
    message = str(caught.value)
    assert caught.value.exit_status == 1
    assert re.search(r"step \d: the loss is nan and the gradient norm nan; the step was not taken", message)
    assert "Relations: qq, kk, vv." in message
    assert "Sequences of the token store: " in message
    assert message.endswith(f"This may help:\n    minilm resume {folder} --set optimizer.lr=5e+37{option}")
    [saved_file] = folder.glob("not-finite-*")
    assert str(saved_file) in message


def test_the_saved_file_holds_the_sequences_and_the_student_before_the_step(failed_run: Path, tiny_store: Path) -> None:
    [file] = failed_run.glob("not-finite-*")
    saved_file = load_file(file)
    store = TokenStore(tiny_store)
    for index, length, ids in zip(saved_file["indices"], saved_file["lengths"], saved_file["input_ids"], strict=True):
        assert ids[:length].tolist() == store[int(index)].tolist()
    with safe_open(file, "pt") as opened:
        step = int(opened.metadata()["step"])
    assert file.name == f"not-finite-step-{step:08}.safetensors"
    saved = load_file(failed_run / "checkpoints" / f"step-{step - 1:08}" / "student.safetensors")
    for name, tensor in saved.items():
        torch.testing.assert_close(saved_file[f"student.{name}"], tensor, rtol=0, atol=0, equal_nan=True)


def test_the_step_can_be_replayed_from_the_file(failed_run: Path) -> None:
    [file] = failed_run.glob("not-finite-*")
    finding = run.replay(file)
    assert f"not-finite-step-{finding.step:08}.safetensors" == file.name
    assert sorted(finding.sequences) == sorted(load_file(file)["indices"].tolist())
    assert list(finding.relations) == ["qq", "kk", "vv"]


def test_a_resumed_run_fails_again_until_the_learning_rate_is_lower(tmp_path: Path, small_settings: Settings) -> None:
    folder = tmp_path / "run"
    start = {"optimizer__lr": 1e-3, "checkpoint__every": 1, "training__steps": 3}
    run.distill(small_settings(folder, **start), NoProgress())
    for lr in (1e38, 1e38):
        with pytest.raises(NotFinite):
            run.resume(RunFolder(folder), NoProgress(), {"training.steps": 6, "optimizer.lr": lr})
    # Checkpoints of the huge rate are useless: go back to an earlier one.
    for path in (folder / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > 3:
            (path / "checkpoint.json").unlink()
    changes = {"optimizer.lr": 1e-3, "optimizer.clip_norm": 0.5, "training.precision": "fp32"}
    report = run.resume(RunFolder(folder), NoProgress(), changes)
    assert report.step == 6
    settings = RunFolder(folder).settings()
    assert (settings.optimizer.lr, settings.optimizer.clip_norm, settings.training.precision) == (1e-3, 0.5, "fp32")
    assert [record["step"] for record in metrics(folder) if "loss" in record] == [1, 2, 3, 4, 6]


def test_the_command_exits_with_1_and_without_traceback(minilm: Commands, tiny_teacher: Path, tiny_store: Path) -> None:
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


def test_a_teacher_whose_relations_are_not_finite_is_named(
    tmp_path: Path, small_settings: Settings, tiny_teacher: Path
) -> None:
    folder = tmp_path / "teacher"
    folder.mkdir()
    for path in tiny_teacher.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    # Finite, but too large for the products.
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
