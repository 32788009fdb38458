from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.inputs import Inputs
from minilm_cli.models.tap import ATTENTION, RegistryTap
from minilm_cli.ops.relation_loss import relation_loss

from .model_configs import VOCABULARY, small

WEIGHTS = {"qq": 1.0, "kk": 1.0, "vv": 1.0}


@dataclass(frozen=True)
class Family:
    """A model family, and its modules whose outputs reach the attention unchanged."""

    name: str
    projections: dict[str, str] = field(default_factory=lambda: {"query": "query", "key": "key", "value": "value"})
    config: dict[str, Any] = field(default_factory=dict)
    shared: bool = False

    def model(self, **overrides: Any) -> PreTrainedModel:
        config = small(self.name, **{"num_hidden_layers": 3} | self.config | overrides)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModel.from_config(config, attn_implementation=ATTENTION).eval()
            for parameter in model.parameters():  # no zeros: biases and norms must matter
                nn.init.normal_(parameter, std=0.3)
        return model


FAMILIES = [
    Family("bert"),
    Family("roberta"),
    Family("xlm-roberta"),
    Family("camembert"),
    Family("electra"),
    Family("distilbert", {"query": "q_lin", "key": "k_lin", "value": "v_lin"}),
    Family("albert", shared=True),
    Family("modernbert", {}, {"global_attn_every_n_layers": 2, "local_attention": 8}),
    Family("nomic_bert", {"value": "v_proj"}),
    Family("eurobert", {"value": "v_proj"}),
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
BERT, ESM, ALBERT, EUROBERT = (
    next(family for family in FAMILIES if family.name == name) for name in ("bert", "esm", "albert", "eurobert")
)

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
def test_tap_gives_the_outputs_of_the_projections(family: Family) -> None:
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
        # The pass ends after the projections of the second layer, so their outputs are the last ones.
        assert len(outputs[letter]) == 2
        torch.testing.assert_close(getattr(tapped, letter), outputs[letter][1].flatten(0, 1))


@each_family
@torch.no_grad()
def test_padding_does_not_change_the_real_positions(family: Family) -> None:
    tap = RegistryTap(family.model(), 3).eval()
    padded = tap(batch())
    alone = tap(Inputs.padded(SEQUENCES[1:]))
    torch.testing.assert_close([tensor[9:14] for tensor in padded], [*alone], rtol=1e-4, atol=1e-4)


@each_family
@torch.no_grad()
def test_packed_sequences_give_the_same_as_single_ones(family: Family) -> None:
    tap = RegistryTap(family.model(), 3).eval()
    assert tap.packs()
    lengths = [14, 14, 14, 5, 1]
    generator = torch.Generator().manual_seed(2)
    sequences = [torch.randint(5, VOCABULARY, (length,), generator=generator).numpy() for length in lengths]
    packed = tap(Inputs.packed(sequences))
    alone = [tap(Inputs.padded([sequence])) for sequence in sequences]
    expected = [torch.cat(tensors) for tensors in zip(*alone, strict=True)]
    torch.testing.assert_close([*packed], expected, rtol=1e-4, atol=1e-4)


def test_esm_with_token_dropout_is_not_packed() -> None:
    assert not RegistryTap(ESM.model(token_dropout=True), 3).packs()


@torch.no_grad()
def test_packed_row_may_be_longer_than_the_position_table() -> None:
    for family in FAMILIES[:2]:
        tap = RegistryTap(family.model(max_position_embeddings=12), 3).eval()
        sequence = torch.arange(5, 13).numpy()
        packed = tap(Inputs.packed([sequence] * 4))
        alone = tap(Inputs.padded([sequence]))
        torch.testing.assert_close([*packed], [tensor.repeat(4, 1) for tensor in alone], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("was_training", [True, False])
def test_probing_leaves_mode_and_gradients_unchanged(was_training: bool) -> None:
    tap = RegistryTap(BERT.model(hidden_dropout_prob=0.5), 2).train(was_training)
    assert tap.packs()
    assert tap.untrained_parameters("qkv")
    assert tap.training is tap.model.training is was_training
    assert all(parameter.grad is None for parameter in tap.parameters())


@each_family
@pytest.mark.parametrize("layer", [1, 3])
def test_untrained_parameters_are_those_without_gradient(family: Family, layer: int) -> None:
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


@torch.no_grad()
def test_queries_of_esm_are_unscaled() -> None:
    model = ESM.model()
    outputs: list[Tensor] = []
    model.encoder.layer[1].attention.self.query.register_forward_hook(lambda _, __, output: outputs.append(output))
    tapped = RegistryTap(model, 2)(batch())
    torch.testing.assert_close(tapped.query, outputs[0].flatten(0, 1))


@each_family
@torch.no_grad()
def test_modules_after_the_tapped_projections_are_not_run(family: Family) -> None:
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
def test_grouped_keys_and_values_are_narrower_than_queries() -> None:
    query, key, value = RegistryTap(EUROBERT.model(num_key_value_heads=2), 2)(batch())
    assert (query.shape[1], key.shape[1], value.shape[1]) == (24, 12, 12)


@torch.no_grad()
def test_tapped_model_still_computes_its_output() -> None:
    model = BERT.model()
    RegistryTap(model, 1)(batch())
    plain = AutoModel.from_config(copy.deepcopy(model.config), attn_implementation="sdpa").eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(**plain_batch())[0], model(**plain_batch())[0])


@torch.no_grad()
def test_failed_pass_removes_the_tap() -> None:
    model = BERT.model()
    tap = RegistryTap(model, 2)
    with pytest.raises(IndexError):
        tap(Inputs.padded([torch.full((3,), VOCABULARY).numpy()]))
    assert model(input_ids=torch.ones(1, 3, dtype=torch.long)).last_hidden_state.shape == (1, 3, 24)


def test_untrained_parameters_are_found_with_a_vocabulary_of_two() -> None:
    tap = RegistryTap(BERT.model(vocab_size=2), 2)
    assert "pooler.dense.weight" in tap.untrained_parameters("qkv")


@pytest.mark.parametrize("name", ["mpnet", "deberta-v2"])
def test_family_outside_the_registry_is_refused(name: str) -> None:
    with pytest.raises(MinilmError, match=f"cannot read the queries, keys and values yet: it is a {name} model"):
        RegistryTap(Family(name).model(), 2)(batch())


@pytest.mark.parametrize("family", [BERT, ALBERT], ids=lambda family: family.name)
def test_layer_beyond_the_model_is_refused(family: Family) -> None:
    with pytest.raises(MinilmError, match="layer 4 was requested, and the model has 3"):
        RegistryTap(family.model(), 4)(batch())
