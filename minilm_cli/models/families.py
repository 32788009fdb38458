"""What is known of each model family, in one place.

A family is what transformers' `model_type` names. For most there is nothing to say: one list holds the layers,
positions count from 0, and queries, keys and values are those of the attention registry, or the outputs of three
linear projections with usual names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from minilm_cli.models.layers import evenly_spaced

#: Entries for widths that many models set to their hidden size.
_AS_WIDE = ("embedding_size", "pooler_hidden_size")

#: What families call their table of positions. RoFormer's has the angles of its rotation.
_POSITIONS = ("position_embeddings", "embed_positions")

#: The words of various families for the same entry of a configuration.
_WORDS = (
    ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "layers", "encoder_layers"),
    ("hidden_size", "dim", "d_model", "n_embd", "width", "embed_dim"),
    ("num_attention_heads", "num_heads", "n_heads", "n_head", "heads", "encoder_attention_heads"),
    ("intermediate_size", "hidden_dim", "ffn_dim", "d_ff", "n_inner", "d_inner", "encoder_ffn_dim"),
    ("max_position_embeddings", "n_positions", "max_seq_len", "max_seq_length", "max_sequence_length"),
    ("hidden_dropout_prob", "dropout", "dropout_rate", "hidden_dropout", "resid_pdrop"),
    ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop"),
    ("hidden_act", "hidden_activation", "activation", "activation_function"),
)

#: Queries, keys and values, each (batch, tokens, width).
Parts = tuple[Tensor, ...]


def _thirds(_: nn.Module, output: Tensor) -> Parts:
    return output.chunk(3, dim=-1)


def _parts_of_deberta(attention: Any, output: Tensor) -> Parts:
    """DeBERTa's projection gives each head's query, key and value in turn, and adds the biases afterwards."""
    of_heads = output.reshape(*output.shape[:-1], attention.num_attention_heads, 3, -1)
    query, key, value = (part.flatten(-2) for part in of_heads.unbind(-2))
    return query + attention.q_bias, key, value + attention.v_bias


def _rotate_roformer(attention: Any, arguments: Mapping[str, Any], parts: Parts) -> Parts:
    rotated = parts if attention.rotary_value else parts[:2]
    shape = (*parts[0].shape[:-1], attention.num_attention_heads, -1)
    heads = [part.reshape(shape).transpose(1, 2) for part in rotated]
    found = attention.apply_rotary_position_embeddings(arguments["sinusoidal_pos"], *heads)
    return *(part.transpose(1, 2).flatten(-2) for part in found), *parts[len(rotated) :]


@dataclass(frozen=True)
class HeadSizes:
    """Attention heads."""

    count: int
    groups: int
    """Heads of keys and values: fewer, if several heads of queries share one."""
    width: int


@dataclass(frozen=True)
class Family:
    """A model family. The fields are the exceptions; the methods work for any of them."""

    name: str
    best_layers: Mapping[int, int] = field(default_factory=dict)
    """The layer found best to distil, by the number of layers (MiniLMv2, section 4.1 and table 8)."""
    fused: str = ""
    """The name of the module that projects to queries, keys and values together."""
    split: Callable[[nn.Module, Tensor], Parts] = _thirds
    """Queries, keys and values from the attention module and the output of its fused projection."""
    rotate: Callable[[nn.Module, Mapping[str, Any], Parts], Parts] | None = None
    """Rotates them, given the attention module and its keyword arguments: rotary attention outside the registry."""
    feed_forward: str = "intermediate_size"
    """The entry of its configuration for the width of the feed-forward part."""
    rotates_neighbours: bool = False
    """Whether a rotated pair of components stands together, not half a head apart."""
    scales_scores: bool = True
    """Whether scores are divided by √(head width); T5 has learnt that factor."""
    remedy: str | None = None
    """What its users forget, if a model cannot compute."""
    preset: Mapping[str, Any] = field(default_factory=dict)
    """Entries of a preset for which transformers' defaults are not those of the family's published models."""

    def best_layer(self, config: PreTrainedConfig) -> tuple[int, str]:
        """The layer to distil, and why: the paper's choice, else the last whose attention sees all tokens."""
        layers = config.num_hidden_layers
        if layers in self.best_layers:
            return self.best_layers[layers], "the best of this family (MiniLMv2)"
        last = max(global_layers(config), default=layers)
        return last, "the last" if last == layers else "the last whose attention sees all tokens"

    def sizes(self, config: PreTrainedConfig, layers: int, width: int, heads: int) -> dict[str, Any]:
        """The configuration entries of a model of this size, with the proportions of `config`.

        The feed-forward part keeps its ratio to the hidden size. An embedding as wide as the hidden size stays so; a
        narrower, factorised one keeps its own width. Layers of several types are of those of evenly spaced layers.
        """
        entries: dict[str, Any] = {
            "num_hidden_layers": layers,
            "hidden_size": width,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": width // heads,
            self.feed_forward: round(getattr(config, self.feed_forward, 0) * width / config.hidden_size),
        }
        entries |= {name: width for name in _AS_WIDE if getattr(config, name, None) == config.hidden_size}
        if kinds := getattr(config, "layer_types", None):
            entries["layer_types"] = [kinds[number - 1] for number in evenly_spaced(layers, len(kinds))]
        if getattr(config, "query_pre_attn_scalar", None) == getattr(config, "head_dim", 0):  # Gemma
            entries["query_pre_attn_scalar"] = width // heads
        return {config.attribute_map.get(name, name): size for name, size in entries.items() if hasattr(config, name)}

    def head_sizes(self, config: PreTrainedConfig) -> HeadSizes:
        """The attention heads of a model of this configuration."""
        count = config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or count
        return HeadSizes(count, groups, getattr(config, "head_dim", None) or config.hidden_size // count)

    def score_scale(self, config: PreTrainedConfig) -> float:
        """What attention multiplies the products of queries and keys by."""
        width = getattr(config, "query_pre_attn_scalar", None) or self.head_sizes(config).width  # Gemma's comes first
        return float(width**-0.5) if self.scales_scores else 1.0

    def layer_stack(self, model: PreTrainedModel, layers: int) -> tuple[str, nn.ModuleList] | None:
        """The list of the model's layers and its name, or `None` where they share weights (ALBERT)."""
        for name, module in model.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == layers:
                return name, module
        return None

    def position_table(self, model: PreTrainedModel) -> nn.Embedding | None:
        """The table of position embeddings or angles, or `None` without one (other rotary and relative positions)."""
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in _POSITIONS and isinstance(module, nn.Embedding):
                return module
        return None

    def first_position(self, model: PreTrainedModel) -> int:
        """The position of the first token: RoBERTa and its relatives count from behind the padding id."""
        table = self.position_table(model)
        return 0 if table is None or table.padding_idx is None else table.padding_idx + 1

    def longest_input(self, model: PreTrainedModel) -> int | None:
        """The most tokens that the model has positions for, or `None` without a table of positions."""
        table = self.position_table(model)
        return None if table is None else table.num_embeddings - self.first_position(model)

    def needs_own_row(self, config: PreTrainedConfig) -> bool:
        """Whether an embedding depends on the other tokens of its row: ESM rescales by the share of masked ones."""
        return bool(getattr(config, "token_dropout", False))


_DEBERTA_V3 = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 256,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
}

_FAMILIES = {
    family.name: family
    for family in (
        Family("bert", best_layers={24: 21}),
        Family("roberta", best_layers={24: 19}),
        Family("xlm-roberta", best_layers={24: 19}),
        Family("deberta", fused="in_proj", split=_parts_of_deberta),
        Family("deberta-v2", preset=_DEBERTA_V3),
        Family("distilbert", feed_forward="hidden_dim"),
        Family("gemma3_text", preset={"use_bidirectional_attention": True}),
        Family("modernbert", fused="Wqkv"),
        Family("roformer", rotate=_rotate_roformer, rotates_neighbours=True),
        Family("xmod", remedy="Set default_language in its config.json to the language of your text."),
        *(Family(name, feed_forward="d_ff", scales_scores=False) for name in ("t5", "mt5", "umt5")),
    )
}


def global_layers(config: PreTrainedConfig) -> list[int]:
    """The layers, 1-based, whose attention is not limited to a window."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return [number for number, kind in enumerate(kinds, start=1) if kind == "full_attention"]


def window(config: PreTrainedConfig, layer: int) -> int | None:
    """The longest sequence in which every token of a local layer sees every other; `None` for a global layer."""
    return None if layer in global_layers(config) else getattr(config, "sliding_window", None) or 1


def is_rotary(config: PreTrainedConfig) -> bool:
    """Whether queries and keys are rotated by their positions."""
    rotates = getattr(config, "rope_parameters", None) or getattr(config, "position_embedding_type", "") == "rotary"
    return bool(rotates) or family_of(config).rotate is not None


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a configuration."""
    name: Any = config.model_type
    return _FAMILIES.get(name) or Family(name)


def other_words(entry: str) -> tuple[str, ...]:
    """The words of all families for what this entry of a configuration says; none if it is no such word."""
    return next((words for words in _WORDS if entry in words), ())
