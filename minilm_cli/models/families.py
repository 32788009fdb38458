"""What is known of model families: layer stacks, positions, query scaling, best teacher layers."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

#: Families that scale their queries before the attention function, which then scales by 1 (ESM's `EsmSelfAttention`).
_SCALES_QUERIES_FIRST = frozenset({"esm"})


def first_position(model: PreTrainedModel) -> int:
    """The number a model gives to the first token's position: RoBERTa and its relatives count from past the padding."""
    table = position_table(model)
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def position_table(model: PreTrainedModel) -> nn.Embedding | None:
    """The model's table of position embeddings, or `None` if it has none (rotary and relative positions)."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding):
            return module
    return None


#: Layers found best for the big teachers (MiniLMv2, section 4.1 and table 8); for others the last is the rule.
_BEST_LAYER = {("bert", 24): 21, ("roberta", 24): 19, ("xlm-roberta", 24): 19}


_LARGE_WIDTH = 1024


def layer_stack(model: PreTrainedModel, layers: int) -> tuple[str, nn.ModuleList] | None:
    """The list of the model's `layers` layers and its name, or `None` where they share weights (ALBERT)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return name, module
    return None


def longest_input(model: PreTrainedModel) -> int | None:
    """The most tokens the model has positions for, or `None` if it has no table of positions."""
    table = position_table(model)
    return None if table is None else table.num_embeddings - first_position(model)
