from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from minilm_cli import __version__
from minilm_cli.export.card import CURVE_FILE, loss_curve, model_card
from minilm_cli.runs.plan import DataFacts, Plan, RelationFacts, StoreFacts, StudentFacts, TeacherFacts, TrainingFacts
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.settings.load import load_distill_settings

SVG = "{http://www.w3.org/2000/svg}"
PLAN = Plan(
    teacher=TeacherFacts(
        name="big/teacher",
        on_hub=True,
        family="bert",
        layers=12,
        layer=11,
        width=768,
        parameters=85_054_464,
        config_sha256="1",
        weights_sha256="2",
    ),
    student=StudentFacts(
        name="l3-h384",
        family="roberta",
        layers=3,
        layer=3,
        width=384,
        parameters=17_000_000,
        init_from_teacher_layers=[],
        tensors=55,
        untrained=["encoder.layer.2.output.dense.weight", "pooler.dense.bias"],
        untrained_parameters=1_234_567,
        config_sha256="3",
    ),
    relations=RelationFacts(weights={"qk": 2.0, "vv": 0.5}, heads=48, teacher_head_width=16, student_head_width=8),
    data=DataFacts(
        name="tokens",
        tokenizer="big/tokenizer",
        sequences=99_000,
        tokens=3_000_000,
        manifest_sha256="0",
        held_out=99,
        max_length=77,
    ),
    training=TrainingFacts(
        steps=5000,
        epochs=1.5,
        batch_size=256,
        tokens_per_step=7700,
        micro_batch_tokens=4096,
        precision="bf16",
        device="cpu",
    ),
)
RECORDS: list[dict[str, float]] = [
    {"step": 0, "eval_loss": 9.5, "eval_loss_qk": 4.0, "eval_loss_vv": 3.0},
    {"step": 1, "loss": 9.0, "loss_qk": 3.5, "loss_vv": 4.0, "lr": 1e-5},
    {"step": 50, "loss": 5.0, "loss_qk": 2.0, "loss_vv": 2.0, "lr": 1e-4},
    {"step": 100, "loss": 2.5, "loss_qk": 1.0, "loss_vv": 1.0, "lr": 1e-5},
    {"step": 100, "eval_loss": 2.75, "eval_loss_qk": 1.125, "eval_loss_vv": 1.0},
    {"step": 150, "loss": 0.0625, "loss_qk": 0.0, "loss_vv": 0.125, "lr": 1e-6},
]


def settings_of(*assignments: str) -> DistillSettings:
    given = ["relations.weights=qk=2,vv=0.5", "teacher.revision=abc123", *assignments]
    return load_distill_settings(None, given, {"teacher.name": "big/teacher", "student.config": "l3-h384"})


def card(plan: Plan = PLAN, *assignments: str, records: list[dict[str, float]] = RECORDS, step: int = 100) -> str:
    return model_card(settings_of(*assignments), plan, records, step=step, dtype="float16")


def changed(section: str, **values: Any) -> Plan:
    return PLAN.model_copy(update={section: getattr(PLAN, section).model_copy(update=values)})


def rows(text: str) -> dict[str, str]:
    """The tables' rows of two cells, by the first."""
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, flags=re.MULTILINE))


# --- The card ----------------------------------------------------------------------------------------------------


def test_the_header_is_yaml_that_names_the_teacher_as_base_model() -> None:
    _, header, _ = card().split("---\n", 2)
    assert yaml.safe_load(header) == {
        "base_model": "big/teacher",
        "library_name": "transformers",
        "tags": ["minilm", "distillation", "roberta"],
    }


def test_what_was_changed_on_the_way_is_told() -> None:
    assert "changed after" not in card()
    changes = [(1000, "optimizer.lr from 0.0006 to 0.0003"), (2000, "training.steps from 5000 to 6000")]
    told = model_card(settings_of(), PLAN, RECORDS, step=100, dtype="float32", changes=changes)
    found = rows(told)
    assert found["changed after step 1,000"] == "optimizer.lr from 0.0006 to 0.0003"
    assert found["changed after step 2,000"] == "training.steps from 5000 to 6000"
    assert told.replace("".join(f"| changed after step {n:,} | {change} |\n" for n, change in changes), "") == (
        model_card(settings_of(), PLAN, RECORDS, step=100, dtype="float32")
    )


def test_a_local_teacher_is_no_base_model() -> None:
    _, header, _ = card(changed("teacher", on_hub=False)).split("---\n", 2)
    assert "base_model" not in yaml.safe_load(header)


def test_teacher_data_and_settings_are_told() -> None:
    text = card(PLAN, "optimizer.lr=0.003", "training.seed=7", "training.batch_size=64")
    found = rows(text)
    assert found["teacher"] == "big/teacher (bert, 12 layers, 768 wide)"
    assert found["revision"] == "abc123"
    assert (found["teacher layer"], found["student layer"]) == ("11", "3")
    assert found["relations"] == "QK × 2, VV × 0.5"
    assert found["relation heads"] == "48 (16 wide in the teacher, 8 in the student)"
    assert found["tokens"] == "tokens (99,000 sequences, 3,000,000 tokens)"
    assert found["tokenizer"] == "big/tokenizer"
    assert found["held out"] == "99 sequences"
    assert found["longest sequence"] == "77 tokens"
    assert found["steps"] == "100 of 5,000, 64 sequences each"
    assert found["optimiser"].startswith("AdamW, lr 0.003, betas 0.9/0.999, eps 1e-06, weight decay 0.01")
    assert found["schedule"] == "linear, 4,000 warm-up steps"
    assert found["seed"] == "7"
    assert "# l3-h384 distilled from big/teacher" in text
    assert "(17,000,000 parameters, float16)" in text
    assert f"minilm {__version__}" in text


def test_each_of_several_stores_is_told_with_its_share() -> None:
    stores = [
        StoreFacts(name=name, sequences=9_000, tokens=70_000, share=share, weight=None, manifest_sha256="0")
        for name, share in (("books", 0.75), ("web", 0.25))
    ]
    text = card(changed("data", stores=stores))
    assert "| tokens | books (9,000 sequences, 70,000 tokens; 75.00% of the sequences seen) |" in text
    assert "| tokens | web (9,000 sequences, 70,000 tokens; 25.00% of the sequences seen) |" in text
    assert "99,000" not in text


def test_what_was_not_trained_is_listed_by_name() -> None:
    text = card()
    assert "- `encoder.layer.2.output.dense.weight`\n- `pooler.dense.bias`\n" in text
    assert "2 of 55 tensors, 1,234,567 parameters" in text
    assert "queries, keys and values of layer 3" in text
    assert card(changed("student", untrained=[])).endswith("- none\n")


def test_how_the_student_started_is_told() -> None:
    assert rows(card())["student started from"] == "random weights"
    started = changed("student", init_from_teacher_layers=[4, 8, 12])
    assert rows(card(started))["student started from"] == "the teacher's layers 4, 8, 12"
    assert "copied from the teacher where it has them" in card(started)


def test_tokens_without_a_tokenizer_are_told_as_such() -> None:
    assert rows(card(changed("data", tokenizer=None)))["tokenizer"] == "unknown: the data was token ids"


def test_the_losses_are_those_up_to_the_exported_step() -> None:
    text = card()
    assert "| | step | all | QK | VV |" in text
    assert "| training, first | 1 | 9.0000 | 3.5000 | 4.0000 |" in text
    assert "| training, last | 100 | 2.5000 | 1.0000 | 1.0000 |" in text
    assert "| held out, first | 0 | 9.5000 | 4.0000 | 3.0000 |" in text
    assert "| held out, last | 100 | 2.7500 | 1.1250 | 1.0000 |" in text
    assert "0.0625" not in text
    assert "0.0625" in card(step=150)


@pytest.mark.parametrize("kept", ["loss", "eval_loss"])
def test_one_kind_of_loss_alone_makes_a_table(kept: str) -> None:
    text = card(records=[record for record in RECORDS if kept in record])
    assert "| | step | all | QK | VV |\n|---|---|---|---|---|\n" in text
    assert ("| training, first" in text) is (kept == "loss")
    assert ("| held out, first" in text) is (kept == "eval_loss")


def test_the_card_shows_the_curve_and_how_to_load_the_model() -> None:
    text = card()
    assert f"]({CURVE_FILE})" in text
    [code] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    compile(code, "README.md", "exec")
    assert "AutoModel.from_pretrained" in code


def test_the_card_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    assert str(tmp_path) not in card(PLAN, f"data.path={tmp_path / 'tokens'}")


# --- The curve ---------------------------------------------------------------------------------------------------


def lines(svg: str) -> list[list[tuple[float, float]]]:
    """The points of the polylines: training, then held out."""
    found = []
    for line in ET.fromstring(svg).iter(f"{SVG}polyline"):
        points = (line.get("points") or "").split()
        found.append([(float(x), float(y)) for x, y in (point.split(",") for point in points)])
    return found


def test_the_curve_is_well_formed_and_has_both_series() -> None:
    svg = loss_curve(RECORDS, "l3-h384 from big/teacher")
    root = ET.fromstring(svg)
    training, held_out = lines(svg)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert root.tag == f"{SVG}svg"
    assert (len(training), len(held_out)) == (4, 2)
    assert len(list(root.iter(f"{SVG}circle"))) == 2
    assert {"training", "held out", "optimiser step", "l3-h384 from big/teacher"} <= set(texts)


def test_the_curve_goes_right_with_the_steps_and_down_with_the_loss() -> None:
    training, _ = lines(loss_curve(RECORDS, "x"))
    assert [x for x, _ in training] == sorted(x for x, _ in training)
    assert [y for _, y in training] == sorted(y for _, y in training)  # SVG counts y downwards


def test_the_loss_axis_is_logarithmic() -> None:
    records = [{"step": step, "loss": 2.0**-step} for step in range(5)]
    training, _ = lines(loss_curve(records, "x"))
    falls = [lower - upper for (_, upper), (_, lower) in itertools.pairwise(training)]
    assert max(falls) - min(falls) < 0.3


def test_a_title_of_any_characters_stays_well_formed() -> None:
    title = "<a & \"b\" 'c'> ж"
    root = ET.fromstring(loss_curve(RECORDS, title))
    assert root.findtext(f"{SVG}title") == title


@given(
    st.lists(
        st.fixed_dictionaries(
            {"step": st.integers(0, 10**6)},
            optional={"loss": st.just(0.0) | st.floats(1e-12, 1e4), "eval_loss": st.floats(1e-12, 1e4)},
        ),
        max_size=8,
    )
)
def test_any_losses_give_a_picture_within_its_frame(records: list[dict[str, float]]) -> None:
    training, held_out = lines(loss_curve(records, "x"))
    assert len(training) == sum(record.get("loss", 0) > 0 for record in records)
    assert len(held_out) == sum("eval_loss" in record for record in records)
    for x, y in (*training, *held_out):
        assert 0 <= x <= 720
        assert 0 <= y <= 360
