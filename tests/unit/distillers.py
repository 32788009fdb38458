"""Distillers and batch streams made from the session's tiny teacher, student config and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from minilm_cli.models.student import build_student
from minilm_cli.models.student_config import student_config
from minilm_cli.models.tap import Tap
from minilm_cli.models.teacher import load_teacher
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.settings.load import load_distill_settings
from minilm_cli.tokens.store import TokenStore
from minilm_cli.training.batches import BatchStream
from minilm_cli.training.distiller import Distiller, StepReport
from minilm_cli.training.distributed import World
from minilm_cli.training.objective import RelationObjective
from minilm_cli.training.optim import LearningRate

HEADS = 12
CPU = torch.device("cpu")


def settings_of(*assignments: str) -> DistillSettings:
    defaults = {"schedule.warmup_steps": "2", "optimizer.lr": "0.01", "training.batch_size": "12"}
    values = defaults | dict(assignment.split("=", 1) for assignment in assignments)
    required = {"teacher.name": "t", "student.config": "s"}
    return load_distill_settings(None, [f"{name}={value}" for name, value in values.items()], required)


class Factory:
    """Makes distillers and streams."""

    def __init__(self, teacher: Path, config: Path, store: Path) -> None:
        self.teacher, self.config, self.store = teacher, config, TokenStore(store)

    def student(self, dropout: float) -> PreTrainedModel:
        config = student_config(str(self.config), AutoConfig.from_pretrained(self.teacher))
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
        config.initializer_range = 0.2
        return build_student(config, seed=42)

    def distiller(
        self,
        *assignments: str,
        dropout: float = 0.0,
        layer: int = 2,
        pairs: Sequence[tuple[int, int]] = (),
        bf16: bool = False,
        steps: int = 10,
        world: World | None = None,
    ) -> Distiller:
        """A distiller from the teacher's layer 3 to the student's `layer`; `assignments` as in `--set`.

        pairs: layers of teacher and student instead.
        """
        theirs, ours = zip(*(pairs or [(3, layer)]), strict=True)
        teacher, _ = load_teacher(str(self.teacher), layer=theirs[-1])
        settings = settings_of(*assignments)
        return Distiller(
            Tap(teacher, theirs),
            Tap(self.student(dropout), ours),
            RelationObjective(settings.relations.weights, HEADS),
            settings.optimizer,
            LearningRate(settings.schedule, settings.optimizer.lr, steps),
            seed=settings.training.seed,
            device=CPU,
            bf16=bf16,
            world=world,
        )

    def stream(self, **options: Any) -> BatchStream:
        defaults = {
            "seed": 42, "batch_size": 12, "micro_batch_tokens": 100, "max_length": 24, "layout": "packed",
            "held_out_fraction": 0.05,
        }  # fmt: skip
        return BatchStream(self.store, **defaults | options)


class FakeWorld(World):
    """One of two ranks. Rank 0 adds what rank 1, which ran before, has contributed: no second process is needed."""

    def __init__(self, rank: int, other: FakeWorld | None = None) -> None:
        super().__init__(rank, 2)
        self.added: list[Tensor] = []
        self._other = other

    def all_reduce(self, tensor: Tensor) -> None:
        self.added.append(tensor.clone())
        if self._other is not None:
            tensor += self._other.added[len(self.added) - 1]

    def all_gather(self, values: list[int]) -> list[int]:
        return values


def weights(distiller: Distiller) -> dict[str, Tensor]:
    """A copy of the student's weights."""
    return {name: tensor.clone() for name, tensor in distiller.student.model.state_dict().items()}


def train(distiller: Distiller, stream: BatchStream, last: int, first: int = 1) -> list[StepReport]:
    return list(distiller.steps(stream, first=first, last=last))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], atol: float) -> None:
    torch.testing.assert_close(one, {name: other[name] for name in one}, rtol=0, atol=atol)
