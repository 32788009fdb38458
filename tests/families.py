"""The model families that are tested: a small model of each, and its projections computed without a tap.

The page of families in the documentation is made from this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minilm_cli.models.inputs import Layout
from minilm_cli.models.student import random_model
from tests.unit.model_configs import small

#: The layer that is tapped, of three.
LAYER = 2

Compute = Callable[[nn.Module, nn.Module, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Queries, keys and values from the model, the layer's attention module and what it reads, (tokens, width)."""


def linear(*names: str) -> Compute:
    """Three linear projections with these names."""

    def compute(_: nn.Module, attention: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (getattr(attention, name) for name in names)
        return tuple(states @ part.weight.T + (0 if part.bias is None else part.bias) for part in (query, key, value))  # type: ignore[return-value]

    return compute


def thirds(_: nn.Module, attention: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ModernBERT: one projection, in three parts."""
    return tuple(states @ weight.T for weight in attention.Wqkv.weight.chunk(3))  # type: ignore[return-value]


def of_deberta(_: nn.Module, attention: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """DeBERTa: the rows of one matrix are each head's query, key and value in turn."""
    width = attention.attention_head_size
    parts = [
        torch.cat([states @ rows.T for rows in attention.in_proj.weight.split(width)[number::3]], dim=-1)
        for number in range(3)
    ]
    return parts[0] + attention.q_bias, parts[1], parts[2] + attention.v_bias


def of_squeezebert(_: nn.Module, attention: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SqueezeBERT: grouped convolutions of width 1, so block-diagonal matrices."""

    def project(part: Any) -> Tensor:
        blocks = torch.block_diag(*part.weight.squeeze(2).chunk(part.groups))
        return states @ blocks.T + part.bias

    return project(attention.query), project(attention.key), project(attention.value)


def of_t5(model: nn.Module, attention: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """T5: its scores are not divided by √(head width), so its queries count as larger by that."""
    query, key, value = linear("q", "k", "v")(model, attention, states)
    return query * attention.key_value_proj_dim**0.5, key, value


def rotary(compute: Compute, theta: float, *, interleaved: bool = False, width: int = 6) -> Compute:
    """The same, with queries and keys rotated by their positions (arXiv 2104.09864, equation 15)."""

    def rotated(tensor: Tensor) -> Tensor:
        heads = tensor.unflatten(-1, (-1, width))
        angles = torch.arange(len(tensor))[:, None] * theta ** (-torch.arange(0, width, 2) / width)
        turns = torch.polar(torch.ones_like(angles), angles)[:, None]
        if interleaved:
            return torch.view_as_real(torch.view_as_complex(heads.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(
                1
            )
        first, second = heads.chunk(2, dim=-1)
        turned = torch.complex(first, second) * turns
        return torch.cat([turned.real, turned.imag], dim=-1).flatten(1)

    def compute_rotated(model: nn.Module, attention: nn.Module, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = compute(model, attention, states)
        return rotated(query), rotated(key), value

    return compute_rotated


def of_gemma(model: nn.Module, attention: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gemma 3: queries and keys are normed, head by head, before they are rotated."""
    query, key, value = linear("q_proj", "k_proj", "v_proj")(model, attention, states)

    def normed(tensor: Tensor, norm: Any) -> Tensor:
        heads = tensor.unflatten(-1, (-1, attention.head_dim))
        scale = heads.pow(2).mean(-1, keepdim=True).add(norm.eps).rsqrt()
        return (heads * scale * (1 + norm.weight)).flatten(1)

    return normed(query, attention.q_norm), normed(key, attention.k_norm), value


_BERT, _PROJECTED = linear("query", "key", "value"), linear("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class FamilyCase:
    """A model family as it is tested."""

    name: str
    """transformers' `model_type`."""
    title: str
    compute: Compute = _BERT
    attention: str = "encoder.layer.1.attention.self"
    """Where the second layer's attention module is."""
    norm: str = ""
    """Where the norm is that the attention reads through."""
    config: dict[str, Any] = field(default_factory=dict)
    layout: Layout = "packed"
    real: str = ""
    """The models with trained weights that were tried."""
    shared: bool = False
    """Whether all layers are one."""
    fitted: bool = True
    """Whether a student of another size can start from the teacher's layers."""

    @property
    def wider(self) -> dict[str, int]:
        """Entries for a model of twice the width."""
        return {name: 48 for name in ("hidden_size", "embedding_size") if self.config.get(name, 24) == 24}

    def model(self, **overrides: Any) -> PreTrainedModel:
        """A model of three layers with random weights, in evaluation mode; keywords override its configuration."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = random_model(small(self.name, **{"num_hidden_layers": 3} | self.config | overrides)).eval()
            for name, parameter in model.named_parameters():
                if "embed_positions" not in name:  # RoFormer's angles
                    nn.init.normal_(parameter, std=0.3)  # no zeros: biases and norms must matter
        return model

    def projections(self, model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the second layer for one sequence of ids, (tokens, width)."""
        states = model(input_ids=ids[None], output_hidden_states=True).hidden_states[LAYER - 1]
        if self.norm:
            states = model.get_submodule(self.norm)(states)
        return self.compute(model, model.get_submodule(self.attention), states[0])


FAMILIES = [
    FamilyCase("bert", "BERT", real="all-MiniLM-L6-v2, splade-tiny"),
    FamilyCase("roberta", "RoBERTa"),
    FamilyCase("xlm-roberta", "XLM-RoBERTa"),
    FamilyCase("xlm-roberta-xl", "XLM-RoBERTa-XL", norm="encoder.layer.1.attention.self_attn_layer_norm"),
    FamilyCase("camembert", "CamemBERT"),
    FamilyCase("electra", "ELECTRA"),
    FamilyCase("distilbert", "DistilBERT", linear("q_lin", "k_lin", "v_lin"), "transformer.layer.1.attention"),
    FamilyCase(
        "albert", "ALBERT", attention="encoder.albert_layer_groups.0.albert_layers.0.attention", shared=True,
        real="rxnmapper", fitted=False,
    ),
    FamilyCase(
        "mpnet", "MPNet", linear("q", "k", "v"), "encoder.layer.1.attention.attn", layout="padded",
        real="all-mpnet-base-v2",
    ),
    FamilyCase(
        "deberta", "DeBERTa", of_deberta, layout="padded", fitted=False,
        config={"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 8},
    ),
    FamilyCase(
        "deberta-v2", "DeBERTa-v2, DeBERTa-v3", linear("query_proj", "key_proj", "value_proj"), layout="padded",
        config={
            "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8, "share_att_key": True,
            "norm_rel_ebd": "layer_norm", "position_biased_input": False,
        },
    ),
    FamilyCase(
        "modernbert", "ModernBERT", rotary(thirds, 10_000), "layers.1.attn", "layers.1.attn_norm",
        config={"global_attn_every_n_layers": 2, "local_attention": 8},
    ),
    FamilyCase("nomic_bert", "NomicBERT", rotary(_PROJECTED, 1_000), "layers.1.self_attn"),
    FamilyCase(
        "eurobert", "EuroBERT", rotary(_PROJECTED, 10_000), "layers.1.self_attn", "layers.1.input_layernorm"
    ),
    FamilyCase("esm", "ESM", norm="encoder.layer.1.attention.LayerNorm"),
    FamilyCase(
        "xmod", "X-MOD", config={"languages": ["en_XX", "de_DE"], "default_language": "de_DE"}, fitted=False
    ),
    FamilyCase("ernie", "ERNIE"),
    FamilyCase("roformer", "RoFormer", rotary(_BERT, 10_000, interleaved=True), layout="padded"),
    FamilyCase("megatron-bert", "MegatronBERT", norm="encoder.layer.1.attention.ln", layout="padded"),
    FamilyCase("rembert", "RemBERT", layout="padded", config={"input_embedding_size": 12, "output_embedding_size": 16}),
    FamilyCase("luke", "LUKE", layout="padded", config={"entity_vocab_size": 8, "entity_emb_size": 12}),
    FamilyCase("convbert", "ConvBERT", layout="equal", fitted=False),
    FamilyCase("layoutlm", "LayoutLM"),
    FamilyCase("jina_embeddings_v3", "Jina embeddings v3", rotary(_PROJECTED, 20_000), "layers.1.self_attn"),
    FamilyCase("data2vec-text", "Data2VecText"),
    FamilyCase(
        "squeezebert", "SqueezeBERT", of_squeezebert, "encoder.layers.1.attention", layout="padded",
        config={"embedding_size": 24}, fitted=False,
    ),
    FamilyCase(
        "t5", "T5 (encoder)", of_t5, "encoder.block.1.layer.0.SelfAttention", "encoder.block.1.layer.0.layer_norm",
        layout="padded",
    ),
    FamilyCase(
        "mt5", "mT5 (encoder)", of_t5, "encoder.block.1.layer.0.SelfAttention", "encoder.block.1.layer.0.layer_norm",
        layout="padded",
    ),
    FamilyCase(
        "gemma3_text", "Gemma 3 (bidirectional), EmbeddingGemma", rotary(of_gemma, 10_000), "layers.1.self_attn",
        "layers.1.input_layernorm",
        config={
            "use_bidirectional_attention": True, "sliding_window": 8, "num_key_value_heads": 2,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    FamilyCase("bert-generation", "BertGeneration"),
    FamilyCase("roberta-prelayernorm", "RoBERTa-PreLayerNorm", norm="encoder.layer.1.attention.LayerNorm"),
    FamilyCase("splinter", "Splinter", config={"question_token_id": 4}),
]  # fmt: skip
