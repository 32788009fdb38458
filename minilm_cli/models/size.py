"""How large a model is and how much it computes; and its form without weights, for checks that cost nothing."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from minilm_cli.models.student import random_model


@dataclass(frozen=True)
class Size:
    """Of a whole model."""

    parameters: int
    """Shared ones count once."""
    embeddings: int
    """Those of the parameters that are in tables, with a row for each token, position or the like."""
    operations: int
    """Floating-point operations of the matrix products for one token, each layer as often as it is used. Attention
    scores, whose number grows with the length of the text, are not in it."""


def size_of(model: PreTrainedModel) -> Size:
    """The size of a model with weights, found by a pass over one token."""
    training = model.training
    model.train(False)
    # With gradients: under `no_grad`, the counter cannot follow a parameter's slice (DeBERTa's positions).
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones((1, 1), dtype=torch.long))
    model.train(training)
    tables = {part.weight for part in model.modules() if isinstance(part, nn.Embedding)}
    embeddings = sum(table.numel() for table in tables)
    return Size(count_parameters(model), embeddings, int(counter.get_total_flops()))


def count_parameters(model: PreTrainedModel) -> int:
    """All parameters of a model, with weights or without."""
    return sum(parameter.numel() for parameter in model.parameters())


def weightless(config: PreTrainedConfig) -> PreTrainedModel | None:
    """The model that `AutoModel` builds of this configuration, without weights; `None` if its code comes with it.

    It is on torch's meta device: milliseconds and no memory. Raises whatever the family's own code raises.
    """
    if type(config) not in MODEL_MAPPING:
        return None
    with torch.device("meta"):
        return random_model(copy.deepcopy(config))
