from __future__ import annotations

import pytest

from minilm_cli.base.errors import MinilmError
from minilm_cli.training.layer_pairs import LayerPairs, layer_pairs

from .model_configs import small
from .settings_helpers import load


@pytest.mark.parametrize(
    ("family", "layers", "layer", "reason"),
    [
        ("bert", 24, 21, "the best of this family (MiniLMv2)"),
        ("bert", 12, 12, "the last"),
        ("modernbert", 6, 4, "the last whose attention sees all tokens"),
    ],
)
def test_auto_is_the_best_layer_with_its_reason(family: str, layers: int, layer: int, reason: str) -> None:
    teacher, student = small(family, num_hidden_layers=layers), small("bert", num_hidden_layers=3)
    assert layer_pairs(load(), teacher, student) == LayerPairs((layer,), (3,), reason)
    assert layer_pairs(load(f"teacher.layer={layer}"), teacher, student) == LayerPairs((layer,), (3,), None)


def test_layers_are_paired_in_their_order() -> None:
    teacher, student = small("bert", num_hidden_layers=12), small("bert", num_hidden_layers=6)
    settings = load("teacher.layer=6,-1", "student.layer=3,6")
    assert layer_pairs(settings, teacher, student) == LayerPairs((6, 12), (3, 6), None)


@pytest.mark.parametrize(("theirs", "ours", "counts"), [("6,12", "-1", (2, 1)), ("auto", "3,6", (1, 2))])
def test_each_layer_needs_a_counterpart(theirs: str, ours: str, counts: tuple[int, int]) -> None:
    teacher, student = small("bert", num_hidden_layers=12), small("bert", num_hidden_layers=6)
    message = f"student.layer: .* teacher.layer has {counts[0]} and student.layer {counts[1]}"
    with pytest.raises(MinilmError, match=message) as caught:
        layer_pairs(load(f"teacher.layer={theirs}", f"student.layer={ours}"), teacher, student)
    assert "as many numbers to --student-layer as to --teacher-layer" in (caught.value.hint or "")
