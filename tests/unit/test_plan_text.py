from __future__ import annotations

from typing import Any

import pytest

from minilm_cli.runs.plan import Measured, Plan, StoreFacts
from minilm_cli.runs.plan_text import banner, megabytes, tables

from .test_plan import plan

#: What a plan of this version has more than one of an earlier version.
NEW: dict[str, dict[str, Any]] = {
    "teacher": {"total_parameters": 109_482_240, "operations_per_token": 171_000_000},
    "student": {"attention_heads": 12, "feed_forward_width": 1536, "operations_per_token": 9_000_000},
    "training": {"learning_rate": 6e-4, "warmup_steps": 500, "schedule": "linear"},
}


def changed(plan: Plan, section: str, **values: Any) -> Plan:
    return plan.model_copy(update={section: getattr(plan, section).model_copy(update=values)})


def new_plan() -> Plan:
    found = plan()
    for section, values in NEW.items():
        found = changed(found, section, **values)
    return found


def test_tables_leave_out_unknown_values() -> None:
    found = {name: dict(rows) for name, rows in tables(plan()).items()}
    assert list(found) == ["teacher", "student", "relations", "data", "training"]
    assert found["teacher"]["parameters"] == "85,054,464"
    assert found["teacher"]["on hub"] == "yes"
    assert found["relations"]["weights"] == "qk=2, vv=0.5"
    assert found["training"]["epochs"] == "1.235"
    assert "arithmetic" not in found["student"]
    assert "learning rate" not in found["training"]
    assert "tokenizer" not in dict(tables(changed(plan(), "data", tokenizer=None))["data"])
    assert not [name for rows in found.values() for name in rows if "sha256" in name]


def test_tables_show_sizes_rate_and_start() -> None:
    found = {name: dict(rows) for name, rows in tables(new_plan()).items()}
    assert found["student"]["attention heads"] == "12"
    assert found["student"]["feed forward width"] == "1,536"
    assert found["student"]["size on disk"] == "68 MB in fp32"
    assert found["student"]["arithmetic"] == "the teacher takes 19.0 times as many operations per token"
    assert found["student"]["initial weights"] == "random weights"
    assert found["training"]["learning rate"] == "0.0006"
    assert found["training"]["warmup steps"] == "500"
    assert found["training"]["schedule"] == "linear"
    started = changed(new_plan(), "student", init_from_teacher_layers=[4, 8, 12])
    assert dict(tables(started)["student"])["initial weights"] == "the teacher's layers 4, 8, 12"


def test_untrained_tensors_are_one_line_and_named_on_request() -> None:
    short, full = (dict(tables(plan(), verbose=verbose)["student"]) for verbose in (False, True))
    assert short["not trained"] == (
        "2 of 55 tensors, 1,234,567 parameters: what comes after the queries, keys and values of layer 3. They stay as"
        " initialised, and random until fine-tuning."
    )
    assert full.pop("not trained, by name") == "encoder.layer.2.output.dense.weight, pooler.dense.bias"
    assert full == short


def test_each_token_store_is_shown_with_its_share() -> None:
    stores = [
        StoreFacts(name="a", sequences=90_000, tokens=2, share=0.7, weight=7.0, manifest_sha256="1"),
        StoreFacts(name="b", sequences=9_000, tokens=1, share=0.3, weight=3.0, manifest_sha256="2"),
    ]
    several = changed(plan(), "data", stores=stores)
    assert Plan.model_validate_json(several.model_dump_json()) == several
    assert tables(several)["data"] == [
        *tables(plan())["data"],
        ("a", "90,000 sequences, 2 tokens; 70.00% of the sequences seen"),
        ("b", "9,000 sequences, 1 tokens; 30.00% of the sequences seen"),
    ]


@pytest.mark.parametrize(
    ("hours", "shown"), [(2.0, "2.00"), (0.012, "0.01"), (0.0003, "less than 0.01"), (1234.5, "1,234.50")]
)
def test_measurements_are_shown(hours: float, shown: str) -> None:
    measured = Measured(
        seconds_per_step=1.5, sequences_per_second=20.0, tokens_per_second=1e3, peak_memory_gib=0.5, hours_in_all=hours
    )
    rows = dict(tables(plan(measured=measured))["measured"])
    assert (rows["seconds per step"], rows["hours in all"]) == ("1.5", shown)
    assert "seconds per evaluation" not in rows


def test_banner_says_what_is_trained_on_what() -> None:
    assert dict(banner(new_plan(), "runs/mine")) == {
        "run folder": "runs/mine",
        "teacher": "big/teacher: bert, 12 layers, 768 wide, 109.5 M parameters; layer 11 is learnt",
        "student": "roberta, 3 layers, 384 wide, 17.0 M parameters (6.4 × smaller, 19.0 × less arithmetic); layer 3"
        " learns, from random weights",
        "relations": "QK × 2, VV × 0.5; 48 heads",
        "data": "tokens: 99,000 sequences of up to 77 tokens, 3,000,000 in all; 99 sequences held out",
        "training": "5,000 steps of 256 sequences (1.23 epochs); rate 0.0006 after 500 warm-up steps, then linear"
        " decay",
        "hardware": "cpu, bf16, 1 process; micro-batches of 4,096 tokens",
    }


def test_banner_says_why_a_layer_was_chosen_and_names_several() -> None:
    chosen = changed(new_plan(), "teacher", layer=21, layer_reason="the best of this family (MiniLMv2)")
    assert dict(banner(chosen, "run"))["teacher"].endswith("layer 21 is learnt, the best of this family (MiniLMv2)")
    assert ("layer reason", "the best of this family (MiniLMv2)") in tables(chosen)["teacher"]
    several = changed(changed(new_plan(), "teacher", tapped_layers=[3, 6, 11]), "student", tapped_layers=[1, 2, 3])
    rows = dict(banner(several, "run"))
    assert rows["teacher"].endswith("109.5 M parameters; layers 3, 6 and 11 are learnt")
    assert rows["student"].endswith("layers 1, 2 and 3 learn, from random weights")
    assert ("tapped layers", "3, 6, 11") in tables(several)["teacher"]


def test_banner_of_an_earlier_plan_leaves_out_what_it_lacks() -> None:
    rows = dict(banner(plan(), "runs/mine"))
    assert rows["teacher"] == "big/teacher: bert, 12 layers, 768 wide, 85.1 M parameters; layer 11 is learnt"
    assert rows["student"].startswith("roberta, 3 layers, 384 wide, 17.0 M parameters; layer 3")
    assert rows["training"] == "5,000 steps of 256 sequences (1.23 epochs)"


@pytest.mark.parametrize(("parameters", "shown"), [(17_366_784, "69 MB"), (10_000, "0.04 MB"), (1_000_000, "4 MB")])
def test_sizes_on_disk_are_in_megabytes(parameters: int, shown: str) -> None:
    assert megabytes(parameters) == shown
