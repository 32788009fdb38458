from __future__ import annotations

from typing import Any

import pytest

from minilm_cli.runs.plan import (
    DataFacts,
    Measured,
    Plan,
    RelationFacts,
    StoreFacts,
    StudentFacts,
    TeacherFacts,
    TrainingFacts,
)


def plan(**sections: Any) -> Plan:
    return Plan(
        teacher=TeacherFacts(
            name="big/teacher", on_hub=True, family="bert", layers=12, layer=11, width=768, parameters=85_054_464,
            config_sha256="1", weights_sha256="2",
        ),
        student=StudentFacts(
            name="l3-h384", family="roberta", layers=3, layer=3, width=384, parameters=17_000_000,
            init_from_teacher_layers=[], tensors=55,
            untrained=["encoder.layer.2.output.dense.weight", "pooler.dense.bias"], untrained_parameters=1_234_567,
            config_sha256="3",
        ),
        relations=RelationFacts(weights={"qk": 2.0, "vv": 0.5}, heads=48, teacher_head_width=16, student_head_width=8),
        data=DataFacts(
            name="tokens", tokenizer="big/tokenizer", sequences=99_000, tokens=3_000_000, manifest_sha256="0",
            held_out=99, max_length=77,
        ),
        training=TrainingFacts(
            steps=5000, epochs=1.23456, batch_size=256, tokens_per_step=7700, micro_batch_tokens=4096,
            precision="bf16", device="cpu",
        ),
        **sections,
    )  # fmt: skip


def test_json_round_trip() -> None:
    assert Plan.model_validate_json(plan().model_dump_json()) == plan()


def test_tables_leave_out_unknown_values() -> None:
    tables = {name: dict(rows) for name, rows in plan().tables().items()}
    assert list(tables) == ["teacher", "student", "relations", "data", "training"]
    assert tables["teacher"]["parameters"] == "85,054,464"
    assert tables["teacher"]["on hub"] == "yes"
    assert tables["relations"]["weights"] == "qk=2, vv=0.5"
    assert tables["student"]["untrained"] == "encoder.layer.2.output.dense.weight, pooler.dense.bias"
    assert tables["training"]["epochs"] == "1.235"
    assert "init from teacher layers" not in tables["student"]
    without_tokenizer = plan().data.model_copy(update={"tokenizer": None})
    assert "tokenizer" not in dict(plan().model_copy(update={"data": without_tokenizer}).tables()["data"])
    assert not [name for rows in tables.values() for name in rows if "sha256" in name]


def test_each_token_store_is_shown_with_its_share() -> None:
    stores = [
        StoreFacts(name="a", sequences=90_000, tokens=2, share=0.7, weight=7.0, manifest_sha256="1"),
        StoreFacts(name="b", sequences=9_000, tokens=1, share=0.3, weight=3.0, manifest_sha256="2"),
    ]
    one = plan()
    several = one.model_copy(update={"data": one.data.model_copy(update={"stores": stores})})
    assert Plan.model_validate_json(several.model_dump_json()) == several
    assert several.tables()["data"] == [
        *one.tables()["data"],
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
    rows = dict(plan(measured=measured).tables()["measured"])
    assert (rows["seconds per step"], rows["hours in all"]) == ("1.5", shown)
