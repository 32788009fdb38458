"""Small configurations of any model family."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

VOCABULARY = 60
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 32, "max_position_embeddings": 40, "embedding_size": 12, "num_key_value_heads": 4,
    "head_dim": 6, "query_pre_attn_scalar": 6, "d_ff": 32,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2, "mask_token_id": 3,
}  # fmt: skip


def small(family: str, **overrides: Any) -> PreTrainedConfig:
    """A config of `family` with the small values that it knows; keywords override."""
    known = AutoConfig.for_model(family)
    values = {name: value for name, value in SMALL.items() if hasattr(known, name)}
    return AutoConfig.for_model(family, **values | overrides)
