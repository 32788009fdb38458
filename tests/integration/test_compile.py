"""Compiled models: the same training, and no compilation after the first steps."""

from __future__ import annotations

import shutil
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from minilm_cli.models.inputs import Layout
from minilm_cli.models.student import build_student
from minilm_cli.models.student_config import student_config
from minilm_cli.models.tap import Tap
from minilm_cli.models.teacher import load_teacher
from minilm_cli.settings.load import load_distill_settings
from minilm_cli.tokens.store import TokenStore
from minilm_cli.training.batches import BatchStream
from minilm_cli.training.distiller import Distiller
from minilm_cli.training.objective import RelationObjective
from minilm_cli.training.optim import LearningRate

STEPS = 12

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("c++") is None, reason="torch compiles for CPUs with the system's C++ compiler"),
    # Warnings of torch's compiler.
    pytest.mark.filterwarnings("ignore:`torch.jit.script.*` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


def distiller(teacher: Path, config: Path, *, compiled: bool) -> Distiller:
    settings = load_distill_settings(None, ["schedule.warmup_steps=2"], {"teacher.name": "t", "student.config": "s"})
    model, _ = load_teacher(str(teacher), layer=1)
    config_of_student = student_config(str(config), AutoConfig.from_pretrained(teacher))
    config_of_student.num_hidden_layers = 1
    config_of_student.hidden_dropout_prob = config_of_student.attention_probs_dropout_prob = 0.0
    return Distiller(
        Tap(model, [1]),
        Tap(build_student(config_of_student, seed=1), [1]),
        RelationObjective(settings.relations.weights, heads=12),
        settings.optimizer,
        LearningRate(settings.schedule, settings.optimizer.lr, STEPS),
        seed=settings.training.seed,
        device=torch.device("cpu"),
        bf16=False,
        compile_models=compiled,
    )


# Generating the code takes most of the time, so the second case only traces the models and runs the traces.
@pytest.mark.parametrize(("layout", "backend"), [("packed", "inductor"), ("padded", "eager")])
def test_compiled_training_is_the_same_and_compiles_only_in_the_first_steps(
    tiny_teacher: Path,
    tiny_student_config: Path,
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    layout: Layout,
    backend: str,
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=backend))
    torch._dynamo.reset()
    frames = torch._dynamo.utils.counters["frames"]
    frames.clear()
    compiled, eager = (
        distiller(tiny_teacher, tiny_student_config, compiled=True),
        distiller(tiny_teacher, tiny_student_config, compiled=False),
    )
    stream = BatchStream(
        TokenStore(tiny_store),
        seed=1,
        batch_size=12,
        micro_batch_tokens=100,
        max_length=24,
        layout=layout,
    )
    compiled_frames = []
    for report, expected in zip(
        compiled.steps(stream, first=1, last=STEPS), eager.steps(stream, first=1, last=STEPS), strict=True
    ):
        compiled_frames.append(dict(frames))
        assert report.loss == pytest.approx(expected.loss, rel=1e-4)
        assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-3)
    shapes = {batch.inputs.ids.shape for step in range(4, STEPS + 1) for batch in stream.step(step).micro_batches}
    assert len(shapes) > 5
    assert compiled_frames[0]["ok"] > 0
    assert compiled_frames[2] == compiled_frames[-1]
    torch._dynamo.reset()
