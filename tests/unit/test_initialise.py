from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.initialise import init_from_model, init_from_teacher
from minilm_cli.models.inputs import Inputs
from minilm_cli.models.layer_maps import RelationHeads
from minilm_cli.models.student import build_student
from minilm_cli.models.teacher import load_teacher

from .model_configs import small


def build(student: PreTrainedConfig, teacher: PreTrainedConfig) -> tuple[PreTrainedModel, PreTrainedModel]:
    return build_student(student, seed=1), build_student(teacher, seed=2)


def init(
    student: PreTrainedModel, layers: list[int], teacher: PreTrainedModel, teacher_layers: list[int]
) -> float | None:
    sample = Inputs.padded([np.arange(5, 5 + length) for length in range(3, 13)])
    relations = RelationHeads(2, frozenset("qkv"))
    return init_from_teacher(student, layers, teacher, teacher_layers, sample=sample, relations=relations)


def test_student_starts_from_every_second_layer_of_its_teacher() -> None:
    student, teacher = build(small("bert", num_hidden_layers=3), small("bert", num_hidden_layers=6))
    init(student, [3], teacher, [6])
    ours, theirs = student.state_dict(), teacher.state_dict()
    for number, source in enumerate((1, 3, 5)):  # layers 2, 4 and 6, counted from 1
        names = [name for name in ours if name.startswith(f"encoder.layer.{number}.")]
        assert names
        for name in names:
            assert torch.equal(ours[name], theirs[name.replace(f"layer.{number}.", f"layer.{source}.")])
    for name in (name for name in ours if name.startswith("embeddings.")):
        assert torch.equal(ours[name], theirs[name])


def test_layers_of_each_pair_start_as_their_teacher_layers() -> None:
    student, teacher = build(small("bert", num_hidden_layers=4), small("bert", num_hidden_layers=7))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    init(student, [1, 3], teacher, [5, 7])
    ours, theirs = student.state_dict(), teacher.state_dict()
    name = "encoder.layer.{}.attention.self.query.weight"
    for number, source in enumerate((5, 6, 7)):
        assert torch.equal(ours[name.format(number)], theirs[name.format(source - 1)])
    assert torch.equal(ours[name.format(3)], before[name.format(3)])


def test_layers_above_the_trained_one_stay_random() -> None:
    student, teacher = build(small("bert", num_hidden_layers=3), small("bert", num_hidden_layers=4))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    init(student, [2], teacher, [4])
    ours, theirs = student.state_dict(), teacher.state_dict()
    name = "encoder.layer.{}.attention.self.query.weight"
    assert torch.equal(ours[name.format(0)], theirs[name.format(1)])
    assert torch.equal(ours[name.format(1)], theirs[name.format(3)])
    assert torch.equal(ours[name.format(2)], before[name.format(2)])


def test_biases_of_relative_positions_stay_with_the_first_layer() -> None:
    student, teacher = build(small("t5", num_hidden_layers=2), small("t5", num_hidden_layers=4))
    init(student, [2], teacher, [4])
    ours, theirs = student.state_dict(), teacher.state_dict()
    name = "encoder.block.{}.layer.0.SelfAttention.{}.weight"
    assert torch.equal(ours[name.format(0, "q")], theirs[name.format(1, "q")])
    bias = name.format(0, "relative_attention_bias")
    assert torch.equal(ours[bias], theirs[bias])


def test_teacher_may_lack_its_upper_layers(tiny_teacher: Path) -> None:
    teacher, _ = load_teacher(str(tiny_teacher), layer=2)
    config = AutoConfig.from_pretrained(tiny_teacher)
    config.num_hidden_layers = 2
    student = build_student(config, seed=0)
    init(student, [2], teacher, [2])
    ours, theirs = student.state_dict(), teacher.state_dict()
    assert theirs
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("family", ["roberta", "distilbert", "albert", "modernbert"])
def test_student_of_the_same_size_computes_the_same(family: str) -> None:
    student, teacher = build(small(family), small(family))
    init(student, [2], teacher, [2])
    ids = torch.tensor([[5, 6, 7, 8]])
    ours, theirs = (model.eval()(input_ids=ids).last_hidden_state for model in (student, teacher))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("entries", "copied"),
    [
        ({}, True),
        ({"hidden_size": 12}, False),
        ({"intermediate_size": 16}, False),
        ({"num_attention_heads": 2}, False),
        ({"max_position_embeddings": 20}, False),
    ],
)
def test_student_of_another_size_is_fitted(entries: dict[str, int], copied: bool) -> None:
    student, teacher = build(small("bert", **entries), small("bert"))
    share = init(student, [2], teacher, [2])
    assert (share is None) == copied
    ours, theirs = student.state_dict(), teacher.state_dict()
    name = "encoder.layer.1.output.dense.weight"
    same = ours[name].shape == theirs[name].shape and torch.equal(ours[name], theirs[name])
    assert same == (copied or "max_position_embeddings" in entries)


def test_student_of_another_family_is_refused() -> None:
    student, teacher = build(small("roberta"), small("bert"))
    with pytest.raises(MinilmError, match="the student is of the family 'roberta' and the teacher of 'bert'") as caught:
        init(student, [2], teacher, [2])
    assert "--init random" in (caught.value.hint or "")


def test_student_starts_as_another_model_of_its_configuration() -> None:
    student, model = build(small("bert"), small("bert"))
    pooler = student.state_dict()["pooler.dense.weight"].clone()
    model.pooler = None
    init_from_model(student, model, "model")
    ours, theirs = student.state_dict(), model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(ours["pooler.dense.weight"], pooler)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (small("bert", hidden_size=12), r"word_embeddings.weight is \(60, 12\) in the student and \(60, 24\) in this"),
        (small("bert", num_hidden_layers=3), r"layer.2.* in the student and absent in this model"),
        (small("distilbert"), "in the student and absent in this model"),
    ],
)
def test_a_model_of_another_configuration_is_refused(config: PreTrainedConfig, message: str) -> None:
    student, model = build(config, small("bert"))
    with pytest.raises(MinilmError, match=message) as caught:
        init_from_model(student, model, "model")
    assert (caught.value.where, caught.value.hint) == ("model", "Give its config.json as --student-config.")
