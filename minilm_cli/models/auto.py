"""Which of transformers' auto classes makes the encoder of a configuration."""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    AutoModelForTextEncoding,
    PreTrainedConfig,
)


def auto_class(config: PreTrainedConfig) -> Any:
    """`AutoModel`, or the class that leaves out the decoder where `AutoModel` would bring one (T5, mT5, UMT5)."""
    return AutoModelForTextEncoding if has_separate_encoder(config) else AutoModel


def has_separate_encoder(config: PreTrainedConfig) -> bool:
    """Whether transformers has the encoder of this encoder-decoder family as a model of its own."""
    family = type(config)
    if family not in MODEL_FOR_TEXT_ENCODING_MAPPING:
        return False
    return bool(MODEL_FOR_TEXT_ENCODING_MAPPING[family] is not MODEL_MAPPING[family])
