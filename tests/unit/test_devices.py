from __future__ import annotations

import pytest
import torch

from minilm_cli.base.errors import MinilmError
from minilm_cli.training.devices import choose_device, has_bf16
from minilm_cli.training.distributed import World


def test_available_device_is_chosen() -> None:
    assert torch.empty(1, device=choose_device("auto", World())).numel() == 1
    assert choose_device("cpu", World()) == torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda:99", "toaster", "meta:nonsense"])
def test_unavailable_device_is_refused_in_one_line(device: str) -> None:
    with pytest.raises(MinilmError, match=f"training.device: device '{device}' is not available: .") as caught:
        choose_device(device, World())
    assert "\n" not in str(caught.value)


def test_bf16_check_works_on_any_device() -> None:
    assert has_bf16(torch.device("cpu")) in {True, False}
    assert not has_bf16(torch.device("mps"))
