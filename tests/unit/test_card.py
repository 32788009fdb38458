from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from minilm_cli import __version__
from minilm_cli.export.card import CURVE_FILE, model_card
from minilm_cli.runs.plan import Plan, StoreFacts
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.settings.load import load_distill_settings

from .test_plan import plan

PLAN = plan()
RECORDS: list[dict[str, float]] = [
    {"step": 0, "eval_loss": 9.5, "eval_loss_qk": 4.0, "eval_loss_vv": 3.0},
    {"step": 1, "loss": 9.0, "loss_qk": 3.5, "loss_vv": 4.0, "lr": 1e-5},
    {"step": 50, "loss": 5.0, "loss_qk": 2.0, "loss_vv": 2.0, "lr": 1e-4},
    {"step": 100, "loss": 2.5, "loss_qk": 1.0, "loss_vv": 1.0, "lr": 1e-5},
    {"step": 100, "eval_loss": 2.75, "eval_loss_qk": 1.125, "eval_loss_vv": 1.0},
    {"step": 150, "loss": 0.0625, "loss_qk": 0.0, "loss_vv": 0.125, "lr": 1e-6},
]


def settings_of(*assignments: str) -> DistillSettings:
    given = ["relations.weights=qk=2,vv=0.5", "teacher.revision=abc123", "schedule.warmup_steps=4000", *assignments]
    return load_distill_settings(None, given, {"teacher.name": "big/teacher", "student.config": "l3-h384"})


def card(plan: Plan = PLAN, *assignments: str, records: list[dict[str, float]] = RECORDS, step: int = 100) -> str:
    return model_card(settings_of(*assignments), plan, records, step=step, dtype="float16")


def changed(section: str, **values: Any) -> Plan:
    return PLAN.model_copy(update={section: getattr(PLAN, section).model_copy(update=values)})


def rows(text: str) -> dict[str, str]:
    """Maps the first cell to the second, of table rows with two cells."""
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, flags=re.MULTILINE))


def test_yaml_header_names_a_teacher_on_the_hub_as_base_model() -> None:
    _, header, _ = card().split("---\n", 2)
    assert yaml.safe_load(header) == {
        "base_model": "big/teacher",
        "library_name": "transformers",
        "tags": ["minilm", "distillation", "roberta"],
    }
    _, header, _ = card(changed("teacher", on_hub=False)).split("---\n", 2)
    assert "base_model" not in yaml.safe_load(header)


def test_card_says_if_the_held_out_loss_did_not_improve() -> None:
    assert "did not improve" not in card()
    records = [*RECORDS, {"step": 200, "eval_loss": 20.0, "eval_loss_qk": 4.0, "eval_loss_vv": 12.0}]
    assert (
        "\n**The held-out loss did not improve: 9.5 at the start, 20 at the end. The held-out loss was lowest at step"
        " 100: 2.75.**\n"
    ) in card(records=records, step=200)


def test_changed_settings_are_listed() -> None:
    assert "changed after" not in card()
    changes = [(1000, "optimizer.lr from 0.0006 to 0.0003"), (2000, "training.steps from 5000 to 6000")]
    text = model_card(settings_of(), PLAN, RECORDS, step=100, dtype="float32", changes=changes)
    table = rows(text)
    assert table["changed after step 1,000"] == "optimizer.lr from 0.0006 to 0.0003"
    assert table["changed after step 2,000"] == "training.steps from 5000 to 6000"
    assert text.replace("".join(f"| changed after step {n:,} | {change} |\n" for n, change in changes), "") == (
        model_card(settings_of(), PLAN, RECORDS, step=100, dtype="float32")
    )


def test_teacher_data_and_settings_are_listed() -> None:
    text = card(PLAN, "optimizer.lr=0.003", "training.seed=7", "training.batch_size=64")
    table = rows(text)
    assert table["teacher"] == "big/teacher (bert, 12 layers, 768 wide)"
    assert table["revision"] == "abc123"
    assert (table["teacher layer"], table["student layer"]) == ("11", "3")
    assert table["relations"] == "QK × 2, VV × 0.5"
    assert table["relation heads"] == "48 (16 wide in the teacher, 8 in the student)"
    assert table["tokens"] == "tokens (99,000 sequences, 3,000,000 tokens)"
    assert table["tokenizer"] == "big/tokenizer"
    assert rows(card(changed("data", tokenizer=None)))["tokenizer"] == "unknown: the data was token ids"
    assert table["held out"] == "99 sequences"
    assert table["longest sequence"] == "77 tokens"
    assert table["steps"] == "100 of 5,000, 64 sequences each"
    assert table["optimiser"].startswith("AdamW, lr 0.003, betas 0.9/0.999, eps 1e-06, weight decay 0.01")
    assert table["schedule"] == "linear, 4,000 warm-up steps"
    assert table["seed"] == "7"
    assert "# l3-h384 distilled from big/teacher" in text
    assert "(17,000,000 parameters, float16)" in text
    assert f"minilm {__version__}" in text


def test_each_token_store_is_listed_with_its_share() -> None:
    stores = [
        StoreFacts(name=name, sequences=9_000, tokens=70_000, share=share, weight=None, manifest_sha256="0")
        for name, share in (("books", 0.75), ("web", 0.25))
    ]
    text = card(changed("data", stores=stores))
    assert "| tokens | books (9,000 sequences, 70,000 tokens; 75.00% of the sequences seen) |" in text
    assert "| tokens | web (9,000 sequences, 70,000 tokens; 25.00% of the sequences seen) |" in text
    assert "99,000" not in text


def test_untrained_parameters_are_listed() -> None:
    text = card()
    assert "- `encoder.layer.2.output.dense.weight`\n- `pooler.dense.bias`\n" in text
    assert "2 of 55 tensors, 1,234,567 parameters" in text
    assert "queries, keys and values of layer 3" in text
    assert card(changed("student", untrained=[])).endswith("- none\n")


def test_initialisation_of_the_student_is_described() -> None:
    assert rows(card())["student started from"] == "random weights"
    started = changed("student", init_from_teacher_layers=[4, 8, 12])
    assert rows(card(started))["student started from"] == "the teacher's layers 4, 8, 12"
    assert "copied from the teacher where it has them" in card(started)


def test_losses_are_those_up_to_the_exported_step() -> None:
    text = card()
    assert "| | step | all | QK | VV |" in text
    assert "| training, first | 1 | 9.0000 | 3.5000 | 4.0000 |" in text
    assert "| training, last | 100 | 2.5000 | 1.0000 | 1.0000 |" in text
    assert "| held out, first | 0 | 9.5000 | 4.0000 | 3.0000 |" in text
    assert "| held out, last | 100 | 2.7500 | 1.1250 | 1.0000 |" in text
    assert "0.0625" not in text
    assert "0.0625" in card(step=150)


@pytest.mark.parametrize("kept", ["loss", "eval_loss"])
def test_table_needs_only_one_kind_of_loss(kept: str) -> None:
    text = card(records=[record for record in RECORDS if kept in record])
    assert "| | step | all | QK | VV |\n|---|---|---|---|---|\n" in text
    assert ("| training, first" in text) is (kept == "loss")
    assert ("| held out, first" in text) is (kept == "eval_loss")


def test_card_shows_the_loss_curve_and_how_to_load_the_model() -> None:
    text = card()
    assert f"]({CURVE_FILE})" in text
    [code] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    compile(code, "README.md", "exec")
    assert "AutoModel.from_pretrained" in code


def test_card_contains_no_local_path(tmp_path: Path) -> None:
    assert str(tmp_path) not in card(PLAN, f"data.path={tmp_path / 'tokens'}")
