"""A model without weights, on torch's meta device: what its configuration alone says, in milliseconds and no memory."""

from __future__ import annotations

import copy
from contextlib import suppress

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from minilm_cli.models.student import random_model


def weightless(config: PreTrainedConfig) -> PreTrainedModel | None:
    """The model that `AutoModel` builds of this configuration, without weights; `None` if its code comes with it.

    Raises whatever the family's own code raises.
    """
    if type(config) not in MODEL_MAPPING:
        return None
    with torch.device("meta"):
        return random_model(copy.deepcopy(config))


def count_parameters(model: PreTrainedModel) -> int:
    """All parameters of a model, with weights or without; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def operations_per_token(model: PreTrainedModel) -> int | None:
    """Floating-point operations of a forward pass over one token, of a model without weights.

    These are the model's matrix products; the part of attention that grows with the length of the text is not in it.
    `None` for a family that looks at its input's values, which the meta device does not have.
    """
    model.train(False)
    ids = torch.ones((1, 1), dtype=torch.long, device="meta")
    with suppress(Exception), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids)
        return int(counter.get_total_flops())
    return None
