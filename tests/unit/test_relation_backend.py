from __future__ import annotations

import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minilm_cli.base.errors import MinilmError
from minilm_cli.ops import relation_backend, relation_chunks
from minilm_cli.ops.relation_backend import VARIABLE, choose_backend
from minilm_cli.ops.relations import ByLetter, Relations

PLAIN = relation_chunks.losses_and_gradients
KINDS = (torch.device("cuda", 0), (torch.bfloat16, 16), (torch.bfloat16, 8))


def fused(*_: Any) -> Any:
    """Stands for the kernels."""


def side(width: int = 32, **changes: Any) -> ByLetter:
    """Stands for projections on a GPU."""
    values = {"device": torch.device("cuda", 0), "dtype": torch.bfloat16, "shape": (9, width)} | changes
    return {letter: SimpleNamespace(**values) for letter in "qkv"}  # type: ignore[misc]


def chosen(teacher: ByLetter, student: ByLetter, heads: int = 2) -> Any:
    return choose_backend(Relations(((0, 9),), heads, {"qq": 1.0}, 100), teacher, student)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU whose kernels work."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(relation_backend, "_fused", lambda *_: fused)


@pytest.mark.usefixtures("gpu")
def test_the_kernels_are_taken_where_they_can_be() -> None:
    assert chosen(side(), side(16)) is fused
    assert chosen(side(dtype=torch.float16), side()) is fused
    assert chosen(side(), side(dtype=torch.float32)) is PLAIN
    assert chosen(side() | {"q": side(dtype=torch.float32)["q"]}, side()) is PLAIN
    assert chosen(side(), side(device=torch.device("cpu"))) is PLAIN
    assert chosen(side(128), side()) is fused
    assert chosen(side(130), side()) is PLAIN


@pytest.mark.usefixtures("gpu")
def test_an_older_gpu_takes_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert chosen(side(), side()) is PLAIN


@pytest.mark.usefixtures("gpu")
def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    assert chosen(side(), side()) is PLAIN
    monkeypatch.setenv(VARIABLE, "on")
    assert chosen(side(), side()) is fused
    with pytest.raises(MinilmError, match=r"cannot be used: the projections are torch\.float32"):
        chosen(side(), side(dtype=torch.float32))
    monkeypatch.setattr(relation_backend, "_fused", lambda *_: "there is no compiler")
    with pytest.raises(MinilmError, match="cannot be used: there is no compiler"):
        chosen(side(), side())
    monkeypatch.setenv(VARIABLE, "maybe")
    with pytest.raises(MinilmError, match=f"{VARIABLE} must be on or off, not 'maybe'"):
        chosen(side(), side())


@pytest.mark.parametrize(
    ("works", "said"), [(lambda *_: False, "other results than plain torch"), (lambda *_: 1 / 0, "division by zero")]
)
def test_kernels_that_do_not_work_are_left_out_with_a_warning(
    works: Any, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setitem(sys.modules, "minilm_cli.ops.fused_relations", SimpleNamespace(losses_and_gradients=fused))
    monkeypatch.setattr(relation_backend, "agrees", works)
    check = relation_backend._fused.__wrapped__
    assert said in check(*KINDS)
    assert said in caplog.text
    monkeypatch.setattr(relation_backend, "agrees", lambda *_: True)
    assert check(*KINDS) is fused


def test_memory_that_runs_out_says_nothing_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> bool:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setitem(sys.modules, "minilm_cli.ops.fused_relations", SimpleNamespace(losses_and_gradients=fused))
    monkeypatch.setattr(relation_backend, "agrees", full)
    with pytest.raises(torch.OutOfMemoryError):
        relation_backend._fused.__wrapped__(*KINDS)


def test_without_triton_plain_torch_is_taken_silently(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "minilm_cli.ops.fused_relations", None)
    assert "Triton is not installed" in relation_backend._fused.__wrapped__(*KINDS)
    assert not caplog.text


def test_plain_torch_agrees_with_itself() -> None:
    check = (torch.device("cpu"), (torch.bfloat16, 16), (torch.bfloat16, 6))
    assert relation_backend.agrees(PLAIN, *check)

    def wrong(relations: Relations, teacher: ByLetter, student: ByLetter, gradients: ByLetter, dtype: Any) -> Any:
        return PLAIN(relations, teacher, student, gradients, dtype) * 1.001

    assert not relation_backend.agrees(wrong, *check)
