from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.inputs import Inputs
from minilm_cli.models.tap import ATTENTION, RegistryTap
from minilm_cli.ops.relation_loss import relation_loss

VOCABULARY = 60
WEIGHTS = {"qq": 1.0, "kk": 1.0, "vv": 1.0}
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "cls_token_id": 0,
    "sep_token_id": 2,
    "mask_token_id": 3,
}


@dataclass(frozen=True)
class Family:
    """A family of models, and how its projections are called where they reach the attention as they are."""

    name: str
    projections: dict[str, str] = field(default_factory=lambda: {"query": "query", "key": "key", "value": "value"})
    config: dict[str, Any] = field(default_factory=dict)
    shared: bool = False

    def model(self, **overrides: Any) -> PreTrainedModel:
        known = AutoConfig.for_model(self.name)
        values = {name: value for name, value in SMALL.items() if hasattr(known, name)} | self.config | overrides
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = AutoConfig.for_model(self.name, **values)
            model = AutoModel.from_config(config, attn_implementation=ATTENTION).eval()
            for parameter in model.parameters():  # no zeros, or biases and norms would prove nothing
                nn.init.normal_(parameter, std=0.3)
        return model


FAMILIES = [
    Family("bert"),
    Family("roberta"),
    Family("xlm-roberta"),
    Family("camembert"),
    Family("electra", config={"embedding_size": 12}),
    Family("distilbert", {"query": "q_lin", "key": "k_lin", "value": "v_lin"}),
    Family("albert", config={"embedding_size": 12}, shared=True),
    Family("modernbert", {}, {"global_attn_every_n_layers": 2, "local_attention": 8}),
    Family("nomic_bert", {"value": "v_proj"}),
    Family("eurobert", {"value": "v_proj"}, {"num_key_value_heads": 4}),
    Family("esm", {"key": "key", "value": "value"}),
    Family("ernie"),
    Family("data2vec-text"),
    Family("roberta-prelayernorm"),
    Family("xlm-roberta-xl"),
    Family("bert-generation"),
    Family("layoutlm"),
    Family("splinter", config={"question_token_id": 4}),
]
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


SEQUENCES = [
    torch.randint(5, VOCABULARY, (length,), generator=torch.Generator().manual_seed(length)).numpy()
    for length in (9, 5)
]


def batch() -> Inputs:
    """Two sequences, of 9 and 5 tokens, padded."""
    return Inputs.padded(SEQUENCES)


def plain_batch() -> dict[str, Tensor]:
    """The same as transformers' models take it."""
    inputs = batch()
    assert inputs.mask is not None
    return {"input_ids": inputs.ids.masked_fill(inputs.mask == 0, 1), "attention_mask": inputs.mask}


def layers(model: PreTrainedModel) -> nn.ModuleList:
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == model.config.num_hidden_layers)


@each_family
@torch.no_grad()
def test_the_tap_gives_the_outputs_of_the_layers_projections(family: Family) -> None:
    model = family.model()
    outputs: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        for letter, last in family.projections.items():
            if name.rpartition(".")[2] == last and isinstance(module, nn.Linear):
                module.register_forward_hook(
                    lambda _, __, output, letter=letter: outputs.setdefault(letter, []).append(output)
                )
    tapped = RegistryTap(model, 2)(batch())
    for tensor in tapped:
        assert tensor.shape == (2 * 9, 24)
    for letter in family.projections:
        # The tap lies behind the second layer's projections, so theirs are the last outputs.
        assert len(outputs[letter]) == 2
        torch.testing.assert_close(getattr(tapped, letter), outputs[letter][1].flatten(0, 1))


@each_family
@torch.no_grad()
def test_padding_does_not_change_the_real_positions(family: Family) -> None:
    tap = RegistryTap(family.model(), 3).eval()
    padded = tap(batch())
    alone = tap(Inputs.padded(SEQUENCES[1:]))
    for together, by_itself in zip(padded, alone, strict=True):
        torch.testing.assert_close(together[9:14], by_itself, rtol=1e-4, atol=1e-4)


@each_family
@torch.no_grad()
def test_a_packed_row_gives_what_each_sequence_gives_alone(family: Family) -> None:
    tap = RegistryTap(family.model(), 3).eval()
    assert tap.packs()
    lengths = [14, 14, 14, 5, 1]
    generator = torch.Generator().manual_seed(2)
    sequences = [torch.randint(5, VOCABULARY, (length,), generator=generator).numpy() for length in lengths]
    packed = tap(Inputs.packed(sequences))
    alone = [tap(Inputs.padded([sequence])) for sequence in sequences]
    for together, apart in zip(packed, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-4)


def test_esm_with_token_dropout_looks_at_the_whole_row_and_is_not_packed() -> None:
    family = next(family for family in FAMILIES if family.name == "esm")
    assert not RegistryTap(family.model(token_dropout=True), 3).packs()


@torch.no_grad()
def test_a_packed_row_may_be_longer_than_the_table_of_positions() -> None:
    for family in FAMILIES[:2]:
        tap = RegistryTap(family.model(max_position_embeddings=12), 3).eval()
        sequence = torch.arange(5, 13).numpy()
        packed = tap(Inputs.packed([sequence] * 4))
        alone = tap(Inputs.padded([sequence]))
        for together, apart in zip(packed, alone, strict=True):
            torch.testing.assert_close(together, apart.repeat(4, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("was_training", [True, False])
def test_asking_whether_a_model_packs_leaves_it_as_it_was(was_training: bool) -> None:
    tap = RegistryTap(FAMILIES[0].model(hidden_dropout_prob=0.5), 2).train(was_training)
    assert tap.packs()
    assert tap.training is tap.model.training is was_training
    assert all(parameter.grad is None for parameter in tap.parameters())


@each_family
@pytest.mark.parametrize("layer", [1, 3])
def test_the_untrained_parameters_are_those_the_loss_gives_no_gradient(family: Family, layer: int) -> None:
    tap = RegistryTap(family.model(), layer)
    untrained = tap.untrained_parameters("qkv")
    assert all(parameter.grad is None for parameter in tap.parameters())
    with torch.no_grad():
        teacher = RegistryTap(family.model(hidden_size=48), 1)(batch())
    student = tap(batch())
    relation_loss(teacher, student, [(0, 9), (9, 5)], heads=4, weights=WEIGHTS)[0].backward()
    expected = [name for name, parameter in tap.model.named_parameters() if parameter.grad is None]
    assert untrained == expected
    assert untrained
    assert len(untrained) < len(list(tap.parameters()))


@pytest.mark.parametrize("layer", [1, 2, 3])
@torch.no_grad()
def test_the_projections_are_those_computed_by_hand_from_berts_hidden_states(layer: int) -> None:
    model = FAMILIES[0].model()
    tapped = RegistryTap(model, layer)(batch())
    plain = AutoModel.from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
    plain.load_state_dict(model.state_dict())
    states = plain(**plain_batch(), output_hidden_states=True).hidden_states
    attention = plain.encoder.layer[layer - 1].attention.self
    for name in ("query", "key", "value"):
        by_hand = getattr(attention, name)(states[layer - 1]).view(18, 24)
        real = plain_batch()["attention_mask"].view(-1).bool()
        torch.testing.assert_close(getattr(tapped, name)[real], by_hand[real], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_esms_queries_are_given_unscaled() -> None:
    model = next(family for family in FAMILIES if family.name == "esm").model()
    outputs: list[Tensor] = []
    model.encoder.layer[1].attention.self.query.register_forward_hook(lambda _, __, output: outputs.append(output))
    tapped = RegistryTap(model, 2)(batch())
    torch.testing.assert_close(tapped.query, outputs[0].flatten(0, 1))


@each_family
@torch.no_grad()
def test_nothing_behind_the_tapped_projections_is_run(family: Family) -> None:
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
    assert len(RegistryTap(model, 2)(batch())) == 3
    assert not ended


@torch.no_grad()
def test_grouped_keys_and_values_are_narrower_than_the_queries() -> None:
    family = next(family for family in FAMILIES if family.name == "eurobert")
    query, key, value = RegistryTap(family.model(num_key_value_heads=2), 2)(batch())
    assert (query.shape[1], key.shape[1], value.shape[1]) == (24, 12, 12)


@torch.no_grad()
def test_a_tapped_model_still_works_as_a_model() -> None:
    model = FAMILIES[0].model()
    RegistryTap(model, 1)(batch())
    plain = AutoModel.from_config(copy.deepcopy(model.config), attn_implementation="sdpa").eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(**plain_batch())[0], model(**plain_batch())[0])


@torch.no_grad()
def test_a_failing_pass_leaves_no_tap_behind() -> None:
    model = FAMILIES[0].model()
    tap = RegistryTap(model, 2)
    with pytest.raises(IndexError):
        tap(Inputs.padded([torch.full((3,), VOCABULARY).numpy()]))
    assert model(input_ids=torch.ones(1, 3, dtype=torch.long)).last_hidden_state.shape == (1, 3, 24)


@pytest.mark.parametrize("was_training", [True, False])
def test_looking_for_untrained_parameters_leaves_the_mode_as_it_was(was_training: bool) -> None:
    tap = RegistryTap(FAMILIES[0].model(), 2).train(was_training)
    tap.untrained_parameters("qkv")
    assert tap.training is tap.model.training is was_training


def test_a_vocabulary_of_two_is_enough_to_find_the_untrained_parameters() -> None:
    tap = RegistryTap(FAMILIES[0].model(vocab_size=2), 2)
    assert "pooler.dense.weight" in tap.untrained_parameters("qkv")


@pytest.mark.parametrize("name", ["mpnet", "deberta-v2"])
def test_a_family_outside_the_registry_is_refused_by_name(name: str) -> None:
    with pytest.raises(MinilmError, match=f"{name}.* do not use transformers' attention registry"):
        RegistryTap(Family(name).model(), 2)(batch())


@pytest.mark.parametrize("family", [FAMILIES[0], next(f for f in FAMILIES if f.shared)], ids=lambda family: family.name)
def test_a_layer_beyond_the_model_is_refused(family: Family) -> None:
    with pytest.raises(MinilmError, match="layer 4 was requested, and the model has 3"):
        RegistryTap(family.model(), 4)(batch())
