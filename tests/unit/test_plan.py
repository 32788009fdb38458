from __future__ import annotations

from typing import Any

from minilm_cli.runs.plan import (
    DataFacts,
    Plan,
    RelationFacts,
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
