from __future__ import annotations

import pytest
import torch

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.student import build_student

from .model_configs import small


def test_weights_depend_only_on_the_seed() -> None:
    config = small("bert")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one = build_student(config, seed=1).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(8)
    same, other = build_student(config, seed=1).state_dict(), build_student(config, seed=2).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(one[name], other[name])


def test_weights_are_fp32_whatever_the_config_says() -> None:
    student = build_student(small("bert", dtype="bfloat16"), seed=0)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


def test_student_that_cannot_be_built_is_refused() -> None:
    config = small("bert")
    config.hidden_act = "no-such-activation"
    with pytest.raises(MinilmError, match=r"the student \(bert\) cannot be built"):
        build_student(config, seed=0)


def test_xmod_without_a_language_is_refused_with_the_remedy() -> None:
    with pytest.raises(MinilmError, match=r"the student \(xmod\) cannot compute: Input language unknown") as caught:
        build_student(small("xmod", languages=["en_XX", "de_DE"]), seed=0)
    assert caught.value.hint == "Set default_language in its config.json to the language of your text."
