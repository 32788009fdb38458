from __future__ import annotations

import math
import re
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.training import nonfinite
from minilm_cli.training.batches import BatchStream
from minilm_cli.training.distiller import Distiller, StepNotFinite
from minilm_cli.training.nonfinite import Finding, NotFinite, examine, explain

from .distillers import Factory, FakeWorld, assert_same, train, weights

ERROR = NotFinite(Finding(step=7, sequences=[40, 3]), math.nan, 1.0)
SEQUENCES = {40: np.array([2, 5, 9, 3], dtype=np.uint16), 3: np.array([2, 3], dtype=np.uint16)}
STUDENT = {"encoder.weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.5])}


def fail(distiller: Distiller, stream: BatchStream, step: int = 1) -> NotFinite:
    """The error that training `step` ends with."""
    with pytest.raises(StepNotFinite) as caught:
        train(distiller, stream, first=step, last=step)
    return explain(distiller, caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_loss_stops_before_the_optimiser_step(factory: Factory, value: float) -> None:
    distiller, stream = factory.distiller(), factory.stream()
    train(distiller, stream, last=1)
    moments = {name: tensor.clone() for name, tensor in distiller.state()["optimizer"].items()}
    token = int(factory.store.sequence(int(stream.step_indices(2)[3]), 24)[1])
    with torch.no_grad():
        distiller.student.model.embeddings.word_embeddings.weight[token] = value
    before = weights(distiller)
    error = fail(distiller, stream, step=2)
    assert re.match(r"step 2: the loss is .*; the step was not taken", error.message)
    affected = [index for index in stream.step_indices(2).tolist() if token in factory.store.sequence(index, 24)]
    finding = error.finding
    assert sorted(finding.sequences) == sorted(affected)
    assert list(finding.relations) == ["qq", "kk", "vv"]
    assert list(finding.weights) == ["embeddings.word_embeddings.weight"]
    assert not finding.teacher
    assert not finding.gradients
    assert_same(before, weights(distiller))
    assert_same(moments, distiller.state()["optimizer"])


def test_nonfinite_gradient_stops_before_the_optimiser_step(factory: Factory) -> None:
    distiller, stream = factory.distiller(), factory.stream()
    before = weights(distiller)
    name = "encoder.layer.0.attention.self.query.weight"
    distiller.student.model.get_parameter(name).register_hook(lambda gradient: gradient * math.inf)
    error = fail(distiller, stream)
    assert re.match(r"step 1: the loss is .* and the gradient norm (nan|inf)", error.message)
    assert_same(before, weights(distiller))
    finding = error.finding
    assert list(finding.gradients) == [name]
    assert sorted(finding.sequences) == sorted(stream.step_indices(1).tolist())
    assert not finding.relations
    assert not finding.weights


def test_only_nonfinite_relations_are_named(factory: Factory) -> None:
    distiller, stream = factory.distiller(), factory.stream()
    with torch.no_grad():
        distiller.student.model.get_parameter("encoder.layer.1.attention.self.value.bias")[0] = math.nan
    assert list(fail(distiller, stream).finding.relations) == ["vv"]


def test_nonfinite_teacher_is_named_as_the_cause(factory: Factory) -> None:
    distiller, stream = factory.distiller(), factory.stream()
    token = int(factory.store.sequence(int(stream.step_indices(1)[0]), 24)[1])
    distiller.teacher.model.embeddings.word_embeddings.weight[token] = math.inf
    error = fail(distiller, stream)
    assert "The teacher's own relations are not finite" in error.message
    assert error.finding.teacher
    assert all(token in factory.store.sequence(index, 24) for index in error.finding.sequences)


def test_examining_a_finite_step_finds_nothing_and_leaves_no_gradients(factory: Factory) -> None:
    distiller, stream = factory.distiller(), factory.stream()
    assert examine(distiller, 1, stream.step(1)) == Finding(1, sequences=[], relations=[], weights=[], gradients=[])
    assert all(parameter.grad is None for parameter in distiller.student.parameters())


def test_every_rank_detects_a_nonfinite_loss(factory: Factory) -> None:
    for rank in (0, 1):
        distiller = factory.distiller(world=FakeWorld(rank))
        with torch.no_grad():
            next(iter(distiller.student.parameters())).fill_(math.nan)
        assert fail(distiller, factory.stream(rank=rank, ranks=2)).exit_status == 1


def test_finding_describes_only_what_is_known() -> None:
    finding = Finding(step=7, sequences=[3, 5], relations=["qq", "vv"])
    assert finding.described() == "Relations: qq, vv. Sequences of the token store: 3, 5."
    assert Finding(step=7).described() == ""
    assert "The teacher's own" in Finding(step=7, sequences=[3], teacher=True).described()
    assert "encoder.weight" in Finding(step=7, gradients=["encoder.weight"]).described()
    assert "that are not finite: a" in Finding(step=7, weights=["a"]).described()


def test_long_lists_in_a_finding_are_shortened() -> None:
    text = Finding(step=7, sequences=range(256)).described()
    assert "0, 1, 2" in text
    assert "(256 in all)" in text
    assert len(text) < 100


def test_message_names_the_step() -> None:
    message = NotFinite(Finding(step=7), math.nan, math.inf).message
    assert message == "step 7: the loss is nan and the gradient norm inf; the step was not taken."


def test_sequences_and_student_are_saved(tmp_path: Path) -> None:
    file = tmp_path / "saved.safetensors"
    nonfinite.keep(file, ERROR, SEQUENCES, STUDENT)
    step, student = nonfinite.read(file)
    assert step == 7
    assert_same(student, STUDENT)
    tensors = load_file(file)
    assert tensors["indices"].tolist() == [40, 3]
    assert tensors["lengths"].tolist() == [4, 2]
    assert tensors["input_ids"].tolist() == [[2, 5, 9, 3], [2, 3, 0, 0]]
    assert [path.name for path in tmp_path.iterdir()] == ["saved.safetensors"]


def test_existing_file_is_replaced_and_sequences_may_be_absent(tmp_path: Path) -> None:
    nonfinite.keep(tmp_path / "saved", ERROR, SEQUENCES, STUDENT)
    nonfinite.keep(tmp_path / "saved", ERROR, {}, {"only": torch.zeros(1)})
    assert list(load_file(tmp_path / "saved")) == ["student.only"]


def test_write_error_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonfinite, "save_file", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(RunError, match="No space left"):
        nonfinite.keep(tmp_path / "saved", ERROR, SEQUENCES, STUDENT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 100, "no step"], ids=["missing", "empty", "noise", "no step"])
def test_other_files_are_refused(tmp_path: Path, content: bytes | str | None) -> None:
    file = tmp_path / "saved"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        save_file(STUDENT, file)
    with pytest.raises(MinilmError, match="this file is not one of a step that was not finite") as caught:
        nonfinite.read(file)
    assert caught.value.where == str(file)
