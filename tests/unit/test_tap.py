from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.inputs import Inputs
from minilm_cli.models.student import random_model
from minilm_cli.models.tap import Tap
from minilm_cli.models.trials import layout, refuse_unreadable, untrained_parameters
from minilm_cli.ops.relation_loss import relation_loss
from tests.families import FAMILIES, LAYER, Compute, FamilyCase, linear, thirds

from .model_configs import VOCABULARY, small

WEIGHTS = {"qq": 1.0, "kk": 1.0, "vv": 1.0}

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
CASES = {family.name: family for family in FAMILIES}
BERT, ESM, ALBERT, EUROBERT = (CASES[name] for name in ("bert", "esm", "albert", "eurobert"))

SEQUENCES = [
    torch.randint(5, VOCABULARY, (length,), generator=torch.Generator().manual_seed(length)).numpy()
    for length in (9, 5)
]


def batch() -> Inputs:
    """Two sequences, of 9 and 5 tokens, padded."""
    return Inputs.padded(SEQUENCES)


def plain_batch() -> dict[str, Tensor]:
    """The same batch as a model of transformers takes it."""
    inputs = batch()
    assert inputs.mask is not None
    return {"input_ids": inputs.ids.masked_fill(inputs.mask == 0, 1), "attention_mask": inputs.mask}


def layers(model: PreTrainedModel) -> nn.ModuleList:
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == model.config.num_hidden_layers)


@each_family
@torch.no_grad()
def test_tap_gives_the_projections_of_the_family(family: FamilyCase) -> None:
    model = family.model()
    expected = [family.projections(model, torch.from_numpy(sequence)) for sequence in SEQUENCES]
    tap = Tap(model, [LAYER])
    for sequence, right in zip(SEQUENCES, expected, strict=True):
        torch.testing.assert_close([*tap(Inputs.padded([sequence]))[0]], [*right], rtol=1e-4, atol=1e-5)


@each_family
@torch.no_grad()
def test_padding_does_not_change_the_real_positions(family: FamilyCase) -> None:
    if family.layout == "equal":
        pytest.skip("its convolutions see padding")
    tap = Tap(family.model(), [3]).eval()
    [padded] = tap(batch())
    [alone] = tap(Inputs.padded(SEQUENCES[1:]))
    torch.testing.assert_close([tensor[9:14] for tensor in padded], [*alone], rtol=1e-4, atol=1e-4)


@each_family
@torch.no_grad()
def test_packed_sequences_give_the_same_as_single_ones(family: FamilyCase) -> None:
    tap = Tap(family.model(), [3]).eval()
    assert layout(tap) == family.layout
    if family.layout != "packed":
        return
    lengths = [14, 14, 14, 5, 1]
    generator = torch.Generator().manual_seed(2)
    sequences = [torch.randint(5, VOCABULARY, (length,), generator=generator).numpy() for length in lengths]
    [packed] = tap(Inputs.packed(sequences))
    alone = [tap(Inputs.padded([sequence]))[0] for sequence in sequences]
    expected = [torch.cat(tensors) for tensors in zip(*alone, strict=True)]
    torch.testing.assert_close([*packed], expected, rtol=1e-4, atol=1e-4)


@each_family
def test_several_layers_are_read_in_one_pass_with_the_values_and_gradients_of_single_ones(family: FamilyCase) -> None:
    model = family.model()
    calls: list[nn.Module] = []
    model.get_submodule(family.attention).register_forward_pre_hook(lambda module, _: calls.append(module))
    inputs = batch() if family.layout == "padded" else Inputs.padded(SEQUENCES[:1])
    pack = [Inputs.packed(SEQUENCES)] if family.layout == "packed" else []
    for sequences in (inputs, *pack):
        several = Tap(model, [1, 3])
        calls.clear()
        found = several(sequences)
        assert len(calls) == (3 if family.shared else 1)
        ours = gradients_of(model, found)
        alone = [Tap(model, [layer])(sequences)[0] for layer in (1, 3)]
        for one, other in zip(found, alone, strict=True):
            torch.testing.assert_close([*one], [*other], rtol=0, atol=0)
        theirs = gradients_of(model, alone)
        assert ours.keys() == theirs.keys()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def gradients_of(model: PreTrainedModel, found: Iterable[Iterable[Tensor]]) -> dict[str, Tensor]:
    """Gradients of a function of the projections that weighs each of them differently, by parameter."""
    total = torch.stack([part.sin().sum() * weight for weight, part in enumerate(chain(*found), start=1)]).sum()
    total.backward()
    gradients = {name: part.grad for name, part in model.named_parameters() if part.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


@pytest.mark.parametrize("family", ["modernbert", "eurobert", "roformer"])
@torch.no_grad()
def test_several_layers_may_be_read_before_their_rotation(family: str) -> None:
    model = CASES[family].model()
    found = Tap(model, [1, 3], rotated=False)(batch())
    for of_layer, layer in zip(found, (1, 3), strict=True):
        [alone] = Tap(model, [layer], rotated=False)(batch())
        [rotated] = Tap(model, [layer])(batch())
        torch.testing.assert_close([*of_layer], [*alone], rtol=0, atol=0)
        assert not torch.equal(of_layer.query, rotated.query)
        assert torch.equal(of_layer.value, rotated.value)


@torch.no_grad()
def test_layers_above_the_last_may_be_missing() -> None:
    model = CASES["mpnet"].model()
    expected = Tap(model, [1, 2])(batch())
    del layers(model)[2:]
    for one, other in zip(Tap(model, [1, 2])(batch()), expected, strict=True):
        torch.testing.assert_close([*one], [*other], rtol=0, atol=0)


@torch.no_grad()
def test_each_layer_must_depend_on_the_input() -> None:
    model = BERT.model()
    refuse_unreadable(Tap(model, [1, 2]), "teacher", "folder")
    layers(model)[0].attention.self.query.weight.zero_()
    refuse_unreadable(Tap(model, [2]), "teacher", "folder")
    with pytest.raises(MinilmError, match="cannot find the queries, keys and values of the teacher"):
        refuse_unreadable(Tap(model, [1, 2]), "teacher", "folder")


def test_nothing_after_a_layer_is_untrained_if_a_later_layer_is_read() -> None:
    names = untrained_parameters(Tap(BERT.model(), [1, 2]), "q")
    assert names == untrained_parameters(Tap(BERT.model(), [2]), "q")
    assert "encoder.layer.0.output.dense.weight" not in names


def test_esm_with_token_dropout_is_not_packed() -> None:
    assert layout(Tap(ESM.model(token_dropout=True), [3])) == "padded"


@torch.no_grad()
def test_packed_row_may_be_longer_than_the_position_table() -> None:
    for family in FAMILIES[:2]:
        tap = Tap(family.model(max_position_embeddings=12), [3]).eval()
        sequence = torch.arange(5, 13).numpy()
        [packed] = tap(Inputs.packed([sequence] * 4))
        [alone] = tap(Inputs.padded([sequence]))
        torch.testing.assert_close([*packed], [tensor.repeat(4, 1) for tensor in alone], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("was_training", [True, False])
def test_probing_leaves_mode_and_gradients_unchanged(was_training: bool) -> None:
    tap = Tap(BERT.model(hidden_dropout_prob=0.5), [2]).train(was_training)
    assert layout(tap) == "packed"
    assert untrained_parameters(tap, "qkv")
    assert tap.training is tap.model.training is was_training
    assert all(parameter.grad is None for parameter in tap.parameters())


@each_family
@pytest.mark.parametrize("layer", [1, 3])
def test_untrained_parameters_are_those_without_gradient(family: FamilyCase, layer: int) -> None:
    tap = Tap(family.model(), [layer])
    untrained = untrained_parameters(tap, "qkv")
    assert all(parameter.grad is None for parameter in tap.parameters())
    with torch.no_grad():
        [teacher] = Tap(family.model(**family.wider), [1])(batch())
    [student] = tap(batch())
    relation_loss(teacher, student, [(0, 9), (9, 5)], heads=4, weights=WEIGHTS)[0].backward()
    expected = [name for name, parameter in tap.model.named_parameters() if parameter.grad is None]
    assert untrained == expected
    assert untrained
    assert len(untrained) < len(list(tap.parameters()))


@each_family
@torch.no_grad()
def test_modules_after_the_tapped_projections_are_not_run(family: FamilyCase) -> None:
    model = family.model()

    def refuse(module: nn.Module, *_: Any) -> None:
        raise AssertionError(f"{type(module).__name__} was run")

    if not family.shared:
        for module in layers(model)[2].modules():
            module.register_forward_pre_hook(refuse)
    if getattr(model, "pooler", None) is not None:
        for module in model.pooler.modules():
            module.register_forward_pre_hook(refuse)
    ended = []
    model.register_forward_hook(lambda *_: ended.append(True))
    assert len(Tap(model, [2])(batch())) == 1
    assert not ended


@pytest.mark.parametrize(
    ("name", "compute"),
    [
        ("modernbert", thirds),
        ("nomic_bert", linear("q_proj", "k_proj", "v_proj")),
        ("roformer", linear("query", "key", "value")),
        ("bert", linear("query", "key", "value")),
    ],
)
@torch.no_grad()
def test_projections_before_their_rotation(name: str, compute: Compute) -> None:
    family = replace(CASES[name], compute=compute)
    model = family.model()
    expected = family.projections(model, torch.from_numpy(SEQUENCES[0]))
    tap = Tap(model, [LAYER], rotated=False)
    [found] = tap(Inputs.padded(SEQUENCES[:1]))
    torch.testing.assert_close([*found], [*expected], rtol=1e-4, atol=1e-5)
    assert layout(tap) == family.layout


def test_normed_queries_have_no_form_before_rotation() -> None:
    with pytest.raises(MinilmError, match="gemma3_text norms its queries and keys between projection and rotation"):
        Tap(CASES["gemma3_text"].model(), [LAYER], rotated=False)


@torch.no_grad()
def test_grouped_keys_and_values_are_narrower_than_queries() -> None:
    [(query, key, value)] = Tap(EUROBERT.model(num_key_value_heads=2), [2])(batch())
    assert (query.shape[1], key.shape[1], value.shape[1]) == (24, 12, 12)


@torch.no_grad()
def test_tapped_model_still_computes_its_output() -> None:
    model = BERT.model()
    Tap(model, [1])(batch())
    plain = AutoModel.from_config(copy.deepcopy(model.config), attn_implementation="sdpa").eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(**plain_batch())[0], model(**plain_batch())[0])


def test_tensors_that_do_not_depend_on_the_tokens_are_refused() -> None:
    model = BERT.model()
    nn.init.zeros_(model.encoder.layer[1].attention.self.value.weight)
    with pytest.raises(MinilmError, match="cannot find the queries, keys and values of the teacher: it is a bert"):
        refuse_unreadable(Tap(model, [2]), "teacher", "somewhere")
    refuse_unreadable(Tap(model, [1]), "teacher", "somewhere")


@torch.no_grad()
def test_failed_pass_removes_the_tap() -> None:
    model = BERT.model()
    tap = Tap(model, [2])
    with pytest.raises(IndexError):
        tap(Inputs.padded([torch.full((3,), VOCABULARY).numpy()]))
    assert model(input_ids=torch.ones(1, 3, dtype=torch.long)).last_hidden_state.shape == (1, 3, 24)


def test_untrained_parameters_are_found_with_a_vocabulary_of_two() -> None:
    tap = Tap(BERT.model(vocab_size=2), [2])
    assert "pooler.dense.weight" in untrained_parameters(tap, "qkv")


@torch.no_grad()
def test_attention_with_unusual_names_is_refused() -> None:
    with pytest.raises(MinilmError, match="cannot find the queries, keys and values: it is a fnet model"):
        Tap(random_model(small("fnet")), [2])(batch())


@pytest.mark.parametrize("layers", [[4], [2, 4]])
@pytest.mark.parametrize("family", [BERT, ALBERT, CASES["mpnet"]], ids=lambda family: family.name)
def test_layer_beyond_the_model_is_refused(family: FamilyCase, layers: list[int]) -> None:
    with pytest.raises(MinilmError, match="layer 4 was requested, and the model has 3"):
        Tap(family.model(), layers)(batch())
