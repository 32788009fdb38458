from __future__ import annotations

from typing import Any

import pytest
import torch

from minilm_cli.base.errors import RunError
from minilm_cli.models.inputs import Inputs
from minilm_cli.training.distiller import Distiller
from minilm_cli.training.memory import out_of_memory

from .distillers import Factory, assert_same, train, weights


def limit_memory(distiller: Distiller, tokens: int) -> None:
    """Let the student run out of memory if a micro-batch has more tokens."""

    def check(_: Any, inputs: tuple[Inputs]) -> None:
        if inputs[0].ids.numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    distiller.student.register_forward_pre_hook(check)


@pytest.mark.parametrize("said", ["CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`", "can't allocate memory"])
def test_other_words_for_it_are_known(said: str) -> None:
    assert out_of_memory(RuntimeError(f"error: {said}"))
    assert not out_of_memory(RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED"))


def test_out_of_memory_halves_the_budget_with_a_warning(factory: Factory, caplog: pytest.LogCaptureFixture) -> None:
    distiller, stream = factory.distiller(), factory.stream(micro_batch_tokens=160)
    limit_memory(distiller, 100)
    reports = train(distiller, stream, last=4)
    assert [report.step for report in reports] == [1, 2, 3, 4]
    assert stream.micro_batch_tokens == 80
    assert caplog.messages == ["Step 1: out of memory; continuing with micro-batches of 80 tokens."]
    undisturbed = factory.distiller()
    train(undisturbed, factory.stream(micro_batch_tokens=80), last=4)
    assert_same(weights(distiller), weights(undisturbed))


def test_out_of_memory_in_an_evaluation_halves_the_budget(factory: Factory, caplog: pytest.LogCaptureFixture) -> None:
    distiller, stream = factory.distiller(), factory.stream(micro_batch_tokens=160, held_out_fraction=0.2)
    steps = distiller.steps(stream, first=1, last=2)
    next(steps)  # the batch of step 2 is already cut
    expected = distiller.evaluate(stream)
    limit_memory(distiller, 100)
    assert distiller.evaluate(stream)["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    assert caplog.messages == ["The evaluation: out of memory; continuing with micro-batches of 80 tokens."]
    assert [report.step for report in steps] == [2]


def test_second_out_of_memory_ends_the_run_with_a_hint(factory: Factory) -> None:
    distiller, stream = factory.distiller(), factory.stream(micro_batch_tokens=160)
    limit_memory(distiller, 50)
    before = weights(distiller)
    with pytest.raises(RunError, match="step 1: out of memory, with micro-batches of 80 tokens") as caught:
        train(distiller, stream, last=4)
    assert "micro_batch_tokens" in str(caught.value.hint)
    assert_same(weights(distiller), before)


def test_out_of_memory_on_the_cpu_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
