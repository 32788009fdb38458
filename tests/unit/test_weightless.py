from __future__ import annotations

import pytest
from transformers import BertConfig

from minilm_cli.models.student import build_student
from minilm_cli.models.weightless import count_parameters, operations_per_token, weightless

from .model_configs import small


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert", "modernbert", "nomic_bert"])
def test_parameters_are_those_of_the_model(family: str) -> None:
    model = weightless(small(family))
    assert model is not None
    assert count_parameters(model) == count_parameters(build_student(small(family), seed=0))
    assert all(parameter.is_meta for parameter in model.parameters())


def test_operations_are_those_of_the_matrix_products() -> None:
    width, feed_forward, layers = 24, 32, 2
    model = weightless(small("bert"))
    assert model is not None
    products = layers * (4 * width * width + 2 * width * feed_forward) + width * width  # and the pooler
    attention = layers * 2 * width  # scores and context of one token
    assert operations_per_token(model) == 2 * (products + attention)


def test_shared_layers_count_once_as_parameters_and_each_time_as_operations() -> None:
    one, three = (weightless(small("albert", num_hidden_layers=layers)) for layers in (1, 3))
    assert one is not None
    assert three is not None
    assert count_parameters(one) == count_parameters(three)
    assert (operations_per_token(three) or 0) > 2 * (operations_per_token(one) or 0)


def test_configuration_that_is_not_transformers_own_has_no_model() -> None:
    class OwnConfig(BertConfig):
        model_type = "own"

    assert weightless(OwnConfig()) is None
