from __future__ import annotations

import pytest
import torch

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.checks import refuse_local_layer
from minilm_cli.models.families import family_of
from minilm_cli.models.student import build_student

from .model_configs import small


@pytest.mark.parametrize(
    ("family", "layers", "layer"),
    [
        ("bert", 12, 12),
        ("bert", 24, 21),
        ("bert", 6, 6),
        ("roberta", 12, 12),
        ("roberta", 24, 19),
        ("xlm-roberta", 12, 12),
        ("xlm-roberta", 24, 19),
        ("electra", 24, 24),
    ],
)
def test_best_layer_is_that_of_the_paper(family: str, layers: int, layer: int) -> None:
    config = small(family, num_hidden_layers=layers)
    assert family_of(config).best_layer(config)[0] == layer


@pytest.mark.parametrize(
    ("families", "longest"),
    [
        (["bert", "distilbert", "albert", "electra"], 40),
        (["roberta", "xlm-roberta", "camembert"], 38),
        (["modernbert", "eurobert", "nomic_bert"], None),
    ],
)
def test_position_table_limits_the_input_length(families: list[str], longest: int | None) -> None:
    for family in families:
        model = build_student(small(family), seed=0)
        assert family_of(model.config).longest_input(model) == longest
        if longest is not None:
            assert model(input_ids=torch.full((1, longest), 5)).last_hidden_state.shape[1] == longest
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, longest + 1), 5))


def test_local_layers_are_refused_where_sequences_are_longer_than_their_window() -> None:
    config = small("modernbert", num_hidden_layers=3, global_attn_every_n_layers=2, local_attention=8)
    refuse_local_layer(config, 2, 4, "student")
    refuse_local_layer(config, 3, 40, "student")
    with pytest.raises(MinilmError, match=r"student\.layer: attention in layer 2 of the student is local") as caught:
        refuse_local_layer(config, 2, 5, "student")
    assert caught.value.hint == (
        "Choose a layer whose attention sees all tokens: 1, 3. Set --max-length to 4 or less."
        " Or write layer_types with full_attention for layer 2 into its config.json."
    )


def test_auto_takes_the_last_layer_that_sees_all_tokens() -> None:
    config = small("modernbert", num_hidden_layers=4, global_attn_every_n_layers=2)
    assert family_of(config).best_layer(config) == (3, "the last whose attention sees all tokens")
