from __future__ import annotations

from typing import Any

import pytest

from minilm_cli.training.advice import advice

from .test_plan_text import changed, new_plan


def test_a_usual_plan_has_no_warning() -> None:
    assert list(advice(new_plan())) == []


@pytest.mark.parametrize(
    ("section", "values", "warning"),
    [
        ("training", {"warmup_steps": 5000}, "The warm-up of 5000 steps does not end within the run's 5000"),
        (
            "training",
            {"batch_size": 100_000},
            "A batch of 100,000 sequences is larger than the training",
        ),
        ("relations", {"student_head_width": 2}, "With 48 relation heads, each is 2 wide"),
        ("student", {"layers": 13}, "The student has 13 layers, more than the teacher, which has 12."),
        ("student", {"parameters": 10**9}, "The student has 1,000,000,000 parameters, more than the teacher"),
    ],
)
def test_an_odd_plan_is_warned_of(section: str, values: dict[str, Any], warning: str) -> None:
    [found] = advice(changed(new_plan(), section, **values))
    assert found.startswith(warning)
