"""Every family as teacher and student: trained, interrupted, resumed, exported and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.progress import NoProgress
from minilm_cli.models.auto import auto_class
from minilm_cli.models.state import unshared_state
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.lookup import pick_checkpoint
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.settings.load import load_distill_settings
from minilm_cli.training import run
from tests.families import FAMILIES, FamilyCase
from tests.tiny import VOCABULARY, save_tokenizer

from .conftest import Crash, assert_same_result, crash_at, metrics

pytestmark = pytest.mark.slow

CASES = {family.name: family for family in FAMILIES}


def save_teacher(family: FamilyCase, folder: Path) -> None:
    """A teacher of the family, with the tokenizer of the tiny store."""
    family.model(vocab_size=len(VOCABULARY), pad_token_id=0).save_pretrained(folder)
    save_tokenizer(folder)
    config = folder / "tokenizer_config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(values | {"model_max_length": 24}), encoding="utf-8")  # quick to verify


def settings(teacher: Path, store: Path, output: Path, **changes: Any) -> DistillSettings:
    """Three steps, with a checkpoint after each; dotted paths, with `__` for dots, override them."""
    return load_distill_settings(
        flags={
            "teacher.name": str(teacher),
            "student.config": "l2-h24",
            "data.path": store,
            "data.max_length": 8,
            "training.steps": 3,
            "training.batch_size": 4,
            "training.micro_batch_tokens": 24,
            "evaluation.fraction": 0.02,
            "checkpoint.every": 1,
            "output": output,
        }
        | {name.replace("__", "."): value for name, value in changes.items()}
    )


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_student_of_the_family_is_trained_resumed_exported_and_loaded(
    tmp_path: Path, tiny_store: Path, family: FamilyCase
) -> None:
    save_teacher(family, tmp_path / "teacher")
    folder = tmp_path / "run"
    with pytest.raises(Crash):
        run.distill(settings(tmp_path / "teacher", tiny_store, folder), crash_at(2))
    run.resume(RunFolder(folder), NoProgress())
    losses = [record["eval_loss"] for record in metrics(folder) if "eval_loss" in record]
    assert losses[-1] != losses[0]

    exported = folder / "student"  # written, verified and named as `export` does it
    config = AutoConfig.from_pretrained(exported)
    assert (config.model_type, config.num_hidden_layers) == (family.name, 2)
    model = auto_class(config).from_pretrained(exported).eval()
    trained = pick_checkpoint(RunFolder(folder), 3).tensors("student")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in unshared_state(model).items())
    inputs = AutoTokenizer.from_pretrained(exported)("the man was there", return_tensors="pt")
    with torch.no_grad():
        assert model(input_ids=inputs["input_ids"]).last_hidden_state.isfinite().all()


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize(("family", "init", "copied"), [("bert", "teacher", [1, 3]), ("mpnet", "random", [])])
def test_a_student_of_several_layers_is_trained_resumed_and_exported(
    tmp_path: Path, tiny_store: Path, family: str, init: str, copied: list[int]
) -> None:
    save_teacher(CASES[family], tmp_path / "teacher")
    two = {"teacher__layer": "1,3", "student__layer": "1,2", "student__init": init}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run.distill(settings(tmp_path / "teacher", tiny_store, whole, **two), NoProgress())
    with pytest.raises(Crash):
        run.distill(settings(tmp_path / "teacher", tiny_store, resumed, **two), crash_at(2))
    run.resume(RunFolder(resumed), NoProgress())
    assert_same_result(resumed, whole)

    found = RunFolder(whole)
    assert (found.settings().teacher.layer, found.settings().student.layer) == ((1, 3), (1, 2))
    plan = found.plan()
    assert (plan.teacher.tapped_layers, plan.student.tapped_layers) == ([1, 3], [1, 2])
    assert plan.student.init_from_teacher_layers == copied
    assert not any(".0." in name for name in plan.student.untrained)
    assert "| teacher layers | 1, 3 |" in (whole / "student" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(MinilmError, match=r"student\.layer: cannot change when a run is resumed"):
        run.resume(RunFolder(resumed), NoProgress(), {"student.layer": "1,2"})


@pytest.mark.usefixtures("same_process")
def test_a_resumed_run_still_says_why_its_layer_was_chosen(tmp_path: Path, tiny_store: Path) -> None:
    save_teacher(CASES["bert"], tmp_path / "teacher")
    run.distill(settings(tmp_path / "teacher", tiny_store, tmp_path / "run"), NoProgress())
    report = run.resume(RunFolder(tmp_path / "run"), NoProgress(), {"training.steps": 4})
    assert report.plan.teacher.layer_reason == "the last"
    assert RunFolder(tmp_path / "run").plan().teacher.layer_reason == "the last"


def test_each_of_several_layers_must_see_all_tokens(tmp_path: Path, tiny_store: Path) -> None:
    save_teacher(CASES["modernbert"], tmp_path / "teacher")
    two = settings(tmp_path / "teacher", tiny_store, tmp_path / "run", teacher__layer="2,3", student__layer="1,2")
    with pytest.raises(MinilmError, match=r"teacher\.layer: attention in layer 2 of the teacher is local") as caught:
        run.distill(two, NoProgress())
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("Choose a layer whose attention sees all tokens: 1, 3.")
