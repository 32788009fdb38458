"""Students that start from a teacher of another size, or from another model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.progress import NoProgress
from minilm_cli.export import exporting
from minilm_cli.models import initialise
from minilm_cli.runs.checkpoint import load, path_of
from minilm_cli.runs.folder import RunFolder
from minilm_cli.settings.export import ExportSettings
from minilm_cli.training import run

from .conftest import Crash, Settings, assert_same_result, crash_at, metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("same_process")]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load(path_of(RunFolder(folder).checkpoints, step)).tensors("student")


def card(folder: Path) -> str:
    return (folder / "student" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, small_settings: Settings) -> Path:
    """A run whose student is half as wide as its teacher, and started from its layers."""
    output = tmp_path_factory.mktemp("fitted") / "narrow"
    return run.distill(small_settings(output, student__config="l2-h24", student__init="teacher"), NoProgress()).path


def test_a_narrow_student_starts_nearer_to_its_teacher(fitted: Path, tmp_path: Path, small_settings: Settings) -> None:
    random = run.distill(small_settings(tmp_path / "random", student__config="l2-h24"), NoProgress())
    assert metrics(fitted)[0]["eval_loss"] < 0.8 * random.records[0]["eval_loss"]


def test_plan_and_card_say_what_was_kept(fitted: Path) -> None:
    student = RunFolder(fitted).plan().student
    assert student.init_from_teacher_layers == [2, 4]
    assert student.init_share_kept is not None
    assert 0.5 < student.init_share_kept < 1
    assert not student.has_random_tail
    said = f"the teacher's layers 2, 4, fitted to its size ({student.init_share_kept:.0%} of their hidden states kept)"
    assert f"| student started from | {said} |" in card(fitted)
    assert "Without that, its outputs mean little" not in card(fitted)


def test_a_resumed_run_ends_as_an_uninterrupted_one_and_is_not_fitted_again(
    fitted: Path, tmp_path: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed = tmp_path / "narrow"
    with pytest.raises(Crash):
        run.distill(small_settings(resumed, student__config="l2-h24", student__init="teacher"), crash_at(4))
    monkeypatch.setattr(initialise, "shrink", lambda *_: pytest.fail("fitted again"))
    run.resume(RunFolder(resumed), NoProgress(), {"reporting.log_every": 2})
    assert_same_result(resumed, fitted)
    assert RunFolder(resumed).plan().student == RunFolder(fitted).plan().student


def test_a_run_without_a_checkpoint_is_fitted_when_it_is_resumed(
    fitted: Path, tmp_path: Path, small_settings: Settings
) -> None:
    resumed = tmp_path / "narrow"
    with pytest.raises(Crash):
        run.distill(small_settings(resumed, student__config="l2-h24", student__init="teacher"), crash_at(1))
    shutil.rmtree(RunFolder(resumed).checkpoints, ignore_errors=True)
    run.resume(RunFolder(resumed), NoProgress())
    assert_same_result(resumed, fitted)


def test_a_student_of_a_given_size_is_trained_and_resumed(tmp_path: Path, small_settings: Settings) -> None:
    sized = small_settings(tmp_path / "run", student__config=None, student__max_params=60_000)
    with pytest.raises(Crash):
        run.distill(sized, crash_at(3))
    report = run.resume(RunFolder(tmp_path / "run"), NoProgress())
    student, kept = report.plan.student, RunFolder(tmp_path / "run").settings().student
    assert (kept.config, kept.max_params) == ("l2-h48", None)
    assert (student.layers, student.width) == (2, 48)
    assert student.embedding_parameters is not None
    assert 0 < student.embedding_parameters < student.parameters <= 60_000


# --- From another model ------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_another_ended(finished_run: Path, tmp_path: Path, small_settings: Settings) -> None:
    second = small_settings(tmp_path / "second", student__init=str(finished_run), teacher__layer=3, relations__heads=4)
    with pytest.raises(Crash):
        run.distill(second, crash_at(1))
    report = run.resume(RunFolder(tmp_path / "second"), NoProgress())
    assert report.records[0]["step"] == 0
    third = run.distill(small_settings(tmp_path / "third", student__init=str(tmp_path / "second")), NoProgress())
    before, after = weights(finished_run, 6), weights(tmp_path / "second", 6)
    assert before.keys() == after.keys()
    tail = report.plan.student.untrained
    assert tail
    assert all(torch.equal(before[name], after[name]) for name in tail)
    assert not all(torch.equal(before[name], after[name]) for name in before)
    lineage = third.plan.student.init_lineage
    teacher = RunFolder(finished_run).plan().teacher.name
    assert lineage == [
        f"run, step 6: learnt from {teacher}, from random weights",
        f"second, step 6: learnt from {teacher}, from the weights of run",
    ]
    assert third.plan.student.has_random_tail
    text = card(tmp_path / "third")
    assert "| student started from | the weights of second |" in text
    assert all(f"| before | {line} |" in text for line in lineage)


def test_the_first_loss_is_the_last_of_the_other_run(
    finished_run: Path, tmp_path: Path, small_settings: Settings
) -> None:
    run.distill(small_settings(tmp_path / "run", student__init=str(finished_run), training__steps=1), NoProgress())
    first = next(record["eval_loss"] for record in metrics(tmp_path / "run") if "eval_loss" in record)
    last = [record["eval_loss"] for record in metrics(finished_run) if "eval_loss" in record][-1]
    assert first == last


@pytest.mark.parametrize("form", ["folder", "export"])
def test_a_student_starts_as_a_model_folder(
    form: str, finished_run: Path, tmp_path: Path, small_settings: Settings
) -> None:
    folder = shutil.copytree(finished_run / "student", tmp_path / "model")
    if form == "export":
        exported = exporting.export(ExportSettings(model=folder, output=tmp_path / "export"), NoProgress())
        folder = Path(exported.path)
    report = run.distill(small_settings(tmp_path / "run", student__init=str(folder)), NoProgress())
    assert report.plan.student.init_from == folder.name
    assert not report.plan.student.has_random_tail
    saved = load_file(folder / "model.safetensors")
    ours = weights(tmp_path / "run", 6)
    assert all(torch.equal(ours[name], saved[name]) for name in report.plan.student.untrained if "pooler" not in name)


def test_a_model_of_another_shape_is_refused(finished_run: Path, tmp_path: Path, small_settings: Settings) -> None:
    other = small_settings(tmp_path / "run", student__init=str(finished_run), student__config="l2-h36")
    with pytest.raises(
        MinilmError, match=r"--init: .* is \(.*, 36\) in the student and \(.*\) in this model"
    ) as caught:
        run.distill(other, NoProgress())
    assert caught.value.hint == "Give its config.json as --student-config."
    deeper = json.loads((finished_run / "student" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "deeper.json").write_text(json.dumps(deeper | {"num_hidden_layers": 3}), encoding="utf-8")
    other = small_settings(
        tmp_path / "run", student__init=str(finished_run), student__config=str(tmp_path / "deeper.json")
    )
    with pytest.raises(MinilmError, match=r"layer\.2\..* in the student and absent in this model"):
        run.distill(other, NoProgress())
    assert not (tmp_path / "run").exists()


def test_a_model_of_other_tokens_is_refused(finished_run: Path, tmp_path: Path, small_settings: Settings) -> None:
    folder = shutil.copytree(finished_run / "student", tmp_path / "model")
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    assert '"man"' in text
    (folder / "tokenizer.json").write_text(text.replace('"man"', '"mann"'), encoding="utf-8")
    with pytest.raises(MinilmError, match=r"'mann', and 'man' in the teacher's"):
        run.distill(small_settings(tmp_path / "run", student__init=str(folder)), NoProgress())


def test_a_folder_without_a_model_is_refused(tmp_path: Path, small_settings: Settings) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MinilmError, match="not a run"):
        run.distill(small_settings(tmp_path / "run", student__init=str(tmp_path / "empty")), NoProgress())
