from __future__ import annotations

import os

import pytest
import torch

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.training.devices import choose_device, explaining_inexactness, has_bf16, repeat_exactly
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


def test_a_gpu_repeats_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[tuple[object, ...], dict[str, object]]] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *words, **options: calls.append((words, options)))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    repeat_exactly(torch.device("cpu"), strictly=True)
    assert calls == []
    repeat_exactly(torch.device("cuda"), strictly=True)
    assert calls == [((True,), {"warn_only": False})]  # attention changes its kernels only if torch does not just warn
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.utils.deterministic.fill_uninitialized_memory


def test_a_kernel_that_cannot_repeat_is_named_with_the_setting() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with (
            pytest.raises(RunError, match=r"^put_, which this model needs, cannot repeat exactly") as caught,
            explaining_inexactness("training.deterministic"),
        ):
            torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))
    finally:
        torch.use_deterministic_algorithms(False)
    assert caught.value.hint is not None
    assert "--set training.deterministic=false" in caught.value.hint


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^something else$"), explaining_inexactness("training.deterministic"):
        raise RuntimeError("something else")
