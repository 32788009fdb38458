"""Students of other sizes than their teachers, in every family."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.families import family_of
from minilm_cli.models.inputs import InputAdapter, Inputs
from minilm_cli.models.layer_maps import RelationHeads
from minilm_cli.models.layer_pass import LayerPass
from minilm_cli.models.layers import spaced_by_pairs
from minilm_cli.models.projections import find_projections
from minilm_cli.models.shrink import shrink
from minilm_cli.models.student import random_model
from minilm_cli.models.tap import Tap
from minilm_cli.ops.relation_loss import relation_loss
from tests.families import FAMILIES, FamilyCase

CASES = {family.name: family for family in FAMILIES}
FITTED = [family for family in FAMILIES if family.fitted]

#: Whose heads may differ: rotated components stay in pairs, and a table may have a column for each head.
ANY_HEADS = [
    case for case in FITTED if "rotary" not in case.compute.__qualname__ and case.name not in {"t5", "mt5", "mpnet"}
]

_RELATIONS = RelationHeads(2, frozenset("qkv"))


def sequences(count: int, seed: int) -> Inputs:
    generator = np.random.default_rng(seed)
    return Inputs.padded([generator.integers(5, 60, generator.integers(3, 8)) for _ in range(count)])


SAMPLE, HELD_OUT = sequences(200, 0), sequences(30, 1)


def student_of(teacher: PreTrainedModel, layers: int, width: int, heads: int, **entries: Any) -> PreTrainedModel:
    config = copy.deepcopy(teacher.config)
    for name, value in (family_of(config).sizes(config, layers, width, heads) | entries).items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return random_model(config).eval()


def loss(teacher: PreTrainedModel, student: PreTrainedModel) -> float:
    last = [model.config.num_hidden_layers for model in (teacher, student)]
    with torch.no_grad():
        theirs, ours = (Tap(model, [layer])(HELD_OUT)[0] for model, layer in zip((teacher, student), last, strict=True))
    weights = {"qq": 1.0, "kk": 1.0, "vv": 1.0}
    return float(relation_loss(theirs, ours, HELD_OUT.spans, heads=_RELATIONS.count, weights=weights)[0])


def fit(student: PreTrainedModel, teacher: PreTrainedModel) -> float:
    tapped = [teacher.config.num_hidden_layers]
    sources = spaced_by_pairs([student.config.num_hidden_layers], tapped)
    return shrink(student, teacher, sources, tapped, SAMPLE, _RELATIONS)


def improvement(case: FamilyCase, layers: int, width: int, heads: int, **entries: Any) -> float:
    """The fitted student's loss divided by the random one's."""
    teacher = case.model()
    student = student_of(teacher, layers, width, heads, **entries)
    before = loss(teacher, student)
    fit(student, teacher)
    return loss(teacher, student) / before


@pytest.mark.slow
@pytest.mark.parametrize("case", FITTED, ids=lambda case: case.name)
def test_a_narrower_student_keeps_much_of_the_relations(case: FamilyCase) -> None:
    heads = 2 if case.name == "gemma3_text" else 4
    width = 6 * heads if case.name == "gemma3_text" else 16
    assert improvement(case, 3, width, heads) < 0.65


@pytest.mark.slow
@pytest.mark.parametrize("case", FITTED, ids=lambda case: case.name)
def test_a_student_with_fewer_units_computes_nearly_the_same(case: FamilyCase) -> None:
    groups = {"num_key_value_heads": 2} if case.name == "gemma3_text" else {}
    config = case.model().config
    units = config.attribute_map.get(name := family_of(config).feed_forward, name)
    assert improvement(case, 3, 24, 4, **{units: 20}, **groups) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("case", ANY_HEADS, ids=lambda case: case.name)
def test_relations_do_not_depend_on_the_number_of_attention_heads(case: FamilyCase) -> None:
    assert improvement(case, 3, 24, 2) < 0.03


@pytest.mark.parametrize("name", ["bert", "megatron-bert", "t5", "electra"])
def test_a_wider_student_computes_nearly_the_same(name: str) -> None:
    entries = {"d_kv": 6} if name == "t5" else {}
    assert improvement(CASES[name], 3, 48, 4, **entries) < 0.03


@pytest.mark.parametrize("name", ["megatron-bert", "t5"])
def test_each_layer_makes_up_for_what_those_before_it_lost(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = improvement(CASES[name], 2, 16, 4)
    monkeypatch.setattr(LayerPass, "residual", lambda *_: None)
    assert made_up < improvement(CASES[name], 2, 16, 4)


def test_a_student_of_the_teachers_size_is_a_copy() -> None:
    teacher = CASES["bert"].model()
    student = student_of(teacher, 3, 24, 4)
    assert fit(student, teacher) == 1.0
    ours, theirs = student.state_dict(), teacher.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if "pooler" not in name)


def test_the_result_is_always_the_same() -> None:
    found = []
    for mode in (True, False):  # without dropout in either
        teacher = CASES["bert"].model().train(mode)
        student = student_of(teacher, 2, 12, 2).train(mode)
        share = fit(student, teacher)
        assert student.training == teacher.training == mode
        found.append((share, student.state_dict()))
    assert found[0][0] == found[1][0] < 1
    assert all(torch.equal(tensor, found[1][1][name]) for name, tensor in found[0][1].items())


def test_no_hooks_are_left() -> None:
    teacher = CASES["bert"].model()
    student = student_of(teacher, 2, 12, 2)
    fit(student, teacher)
    hooks = [
        len(part._forward_hooks) + len(part._forward_pre_hooks)
        for model in (teacher, student)
        for part in model.modules()
    ]
    assert not any(hooks)


def test_layers_above_the_learnt_one_keep_their_weights() -> None:
    teacher = CASES["bert"].model()
    student = student_of(teacher, 3, 12, 2)
    before = copy.deepcopy(student.encoder.layer[2].state_dict())  # type: ignore[union-attr, index, operator]
    shrink(student, teacher, [2, 3], [3], SAMPLE, _RELATIONS)
    after = student.encoder.layer[2].state_dict()  # type: ignore[union-attr, index, operator]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_outputs_without_a_counterpart_keep_their_weights() -> None:
    teacher = CASES["bert"].model()
    student = student_of(teacher, 3, 24, 4, intermediate_size=40)
    dense: Any = student.encoder.layer[0].intermediate.dense  # type: ignore[union-attr, index]
    before = dense.weight.clone()
    assert improvement(CASES["bert"], 3, 24, 4, intermediate_size=40) < 0.01
    fit(student, teacher)
    assert torch.equal(dense.weight[32:], before[32:])
    assert not torch.equal(dense.weight[:32], before[:32])


def test_relations_that_are_not_learnt_leave_attention_as_it_is() -> None:
    teacher = CASES["bert"].model()
    outputs = []
    for letters in ("v", "qkv"):
        student = student_of(teacher, 3, 12, 2)
        shrink(student, teacher, [1, 2, 3], [3], SAMPLE, RelationHeads(2, frozenset(letters)))
        modules = find_projections(student, [1, 3])
        assert modules is not None
        outputs.append([[part.weight for part in one.projections] for one in modules])
    (first, last), (first_too, last_too) = outputs
    assert all(torch.equal(*pair) for pair in zip(first, first_too, strict=True))
    assert [torch.equal(*pair) for pair in zip(last, last_too, strict=True)] == [False, False, True]


@pytest.mark.parametrize("case", [case for case in FAMILIES if not case.fitted], ids=lambda case: case.name)
def test_families_that_cannot_be_fitted_are_refused(case: FamilyCase) -> None:
    teacher = case.model()
    with pytest.raises(MinilmError, match="--init teacher: .*" + case.name) as caught:
        fit(student_of(teacher, 3, 12, 2, **({"embedding_size": 12} if case.name == "squeezebert" else {})), teacher)
    assert "--init random" in (caught.value.hint or "")


def test_a_column_for_each_head_needs_the_teachers_heads() -> None:
    teacher = CASES["mpnet"].model()
    with pytest.raises(MinilmError, match=r"relative_attention_bias of mpnet models cannot be of another size"):
        fit(student_of(teacher, 3, 12, 2), teacher)


@torch.no_grad()
def test_outputs_are_those_of_the_teacher_mapped_to_the_width() -> None:
    teacher = CASES["bert"].model()
    student = student_of(teacher, 3, 20, 4)
    fit(student, teacher)
    theirs, ours = (model(**InputAdapter(model)(HELD_OUT))[0].flatten(0, 1) for model in (teacher, student))
    real = HELD_OUT.mask.flatten().bool()  # type: ignore[union-attr]
    theirs, ours = theirs[real], ours[real]
    explained = torch.linalg.lstsq(nn.functional.pad(theirs, (0, 1), value=1.0), ours).solution
    rest = ours - nn.functional.pad(theirs, (0, 1), value=1.0) @ explained
    assert rest.square().sum() < 0.3 * (ours - ours.mean(0)).square().sum()
