from __future__ import annotations

import math

import pytest
import torch

from minilm_cli.ops.pooling import POOLING_MODES, pool

#: Two sequences of three places: two real tokens, then one; width 2.
STATES = torch.tensor([[[1.0, -2.0], [3.0, 4.0], [9.0, 9.0]], [[-5.0, 6.0], [9.0, 9.0], [9.0, 9.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])

EXPECTED = {
    "mean": [[2.0, 1.0], [-5.0, 6.0]],
    "cls": [[1.0, -2.0], [-5.0, 6.0]],
    "max": [[3.0, 4.0], [-5.0, 6.0]],
    "lasttoken": [[3.0, 4.0], [-5.0, 6.0]],
    "mean_sqrt_len_tokens": [[4 / math.sqrt(2), 2 / math.sqrt(2)], [-5.0, 6.0]],
    "weightedmean": [[7 / 3, 2.0], [-5.0, 6.0]],
}


def test_every_mode_has_an_expected_value() -> None:
    assert EXPECTED.keys() == POOLING_MODES.keys()


@pytest.mark.parametrize("mode", EXPECTED)
def test_padding_on_either_side_does_not_count(mode: str) -> None:
    torch.testing.assert_close(pool(STATES, MASK, mode), torch.tensor(EXPECTED[mode]))
    left = pool(
        torch.stack([states.roll(int(3 - n), 0) for states, n in zip(STATES, MASK.sum(1), strict=True)]),
        MASK.flip(1),
        mode,
    )
    torch.testing.assert_close(left, torch.tensor(EXPECTED[mode]))


def test_one_token_is_its_own_vector() -> None:
    for mode in POOLING_MODES:
        torch.testing.assert_close(pool(STATES[:1, :1], MASK[:1, :1], mode), STATES[:1, 0])
