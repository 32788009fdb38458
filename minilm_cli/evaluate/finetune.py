"""Fine-tuning of an encoder with a new head on labelled texts, as GLUE's tasks are done.

The head is the one that transformers gives the family for sequence classification. AdamW; linear warm-up over a tenth
of the steps, then linear decay to zero; the settings are those of BERT (arXiv 1810.04805, appendix A.3), as MiniLM uses
them (arXiv 2002.10957, section 4.2). Scores are predicted on the scale that has mean 0 and deviation 1 in training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.seeding import derive
from minilm_cli.evaluate.candidate import Candidate
from minilm_cli.evaluate.scores import METRICS
from minilm_cli.evaluate.task import LabelledTask, Split
from minilm_cli.models.auto import has_separate_encoder
from minilm_cli.models.hub import quiet
from minilm_cli.settings.distill import OptimizerSettings, ScheduleSettings
from minilm_cli.settings.evaluate import FineTuning
from minilm_cli.training.micro_batch_budget import untried
from minilm_cli.training.micro_batches import padded_sizes
from minilm_cli.training.optim import LearningRate, Optimizer

#: Tokens that texts are cut to by default, as for GLUE.
LENGTH = 128

#: Learning rates that are tried, and that of `--quick`.
_RATES, _QUICK_RATES = (1e-5, 2e-5, 4e-5), (4e-5,)

#: Numbers of epochs that are tried, for large and for small data, and that of `--quick`.
_EPOCHS, _MORE_EPOCHS, _QUICK_EPOCHS = (3, 5), (3, 5, 10), (3,)

#: What a micro-batch costs besides its tokens, in tokens: every weight is converted to bf16, and every gradient added.
_MICRO_BATCH_COST = 256

#: Texts from which on data is large, and gets fewer epochs.
_LARGE = 10_000

logger = logging.getLogger(__name__)

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Setting:
    """What the dev split chooses among."""

    lr: float
    epochs: int


def settings_to_try(tuning: FineTuning, texts: int) -> list[Setting]:
    """The grid, for so many texts to train on."""
    rates, epochs = tuning.lr or _RATES, tuning.epochs or (_EPOCHS if texts >= _LARGE else _MORE_EPOCHS)
    if tuning.quick:
        rates, epochs = tuning.lr or _QUICK_RATES, tuning.epochs or _QUICK_EPOCHS
    return [Setting(lr, count) for lr in rates for count in epochs]


@dataclass(frozen=True)
class _Encoded:
    """The token ids of a split, and its labels."""

    rows: list[dict[str, list[int]]]
    lengths: Indices
    labels: Tensor


def refuse_untrainable(candidate: Candidate) -> None:
    """Raise `MinilmError` about a model that cannot be fine-tuned."""
    hint = "Use --zero-shot or --probe."
    if candidate.source is None:
        raise MinilmError("an ONNX model cannot be fine-tuned", where=candidate.name, hint=hint)
    config = candidate.source.model.config
    # The head of an encoder-decoder family reads the decoder's states, which the student does not have.
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or has_separate_encoder(config):
        message = f"transformers has no head for sequence classification on {config.model_type} encoders"
        raise MinilmError(message, where=candidate.name, hint=hint)


class FineTuner:
    """Fine-tunes copies of one model on one task."""

    def __init__(
        self,
        candidate: Candidate,
        task: LabelledTask,
        *,
        device: torch.device,
        bf16: bool,
        batch_size: int,
        max_length: int | None,
    ) -> None:
        """candidate: one that `refuse_untrainable` allows. max_length: tokens that texts are cut to."""
        assert candidate.source is not None
        self._name = candidate.name
        self._encoder, self._source = candidate.source.model, candidate.source
        self._task, self._device, self._bf16, self._batch_size = task, device, bf16, batch_size
        self.length = candidate.length(min(LENGTH, candidate.longest or LENGTH) if max_length is None else max_length)
        self._splits = {name: self._encode(split) for name, split in task.splits.items()}
        scores = np.array(task.splits["train"].labels, dtype=np.float64)
        self._mean, self._deviation = (0.0, 1.0) if task.classes else (float(scores.mean()), float(scores.std()))

    @property
    def cut(self) -> float:
        """The share of the texts to train on that are as long as the longest, so probably cut."""
        return float((self._splits["train"].lengths >= (self.length or np.inf)).mean())

    def steps(self, setting: Setting) -> int:
        """Optimiser steps of one training."""
        return setting.epochs * -(-len(self._splits["train"].rows) // self._batch_size)

    def train(self, setting: Setting, seed: int, done: Callable[[int], object]) -> dict[str, dict[str, float]]:
        """Train a copy and return its scores by split and metric; exact for a seed on one machine.

        done: is told each step. Raises `RunError` if the loss is not finite.
        """
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(derive(seed, "fine-tuning"))
            model = self._build().to(self._device)
            self._take_steps(model, setting, seed, done)
            return {name: self._score(model, name) for name in self._splits if name != "train"}

    def _take_steps(self, model: PreTrainedModel, setting: Setting, seed: int, done: Callable[[int], object]) -> None:
        rate = LearningRate(ScheduleSettings(warmup_steps=self.steps(setting) // 10), setting.lr, self.steps(setting))
        optimizer = Optimizer(dict(model.named_parameters()), OptimizerSettings(lr=setting.lr), rate)
        train = self._splits["train"]
        model.train()
        step = 0
        for epoch in range(setting.epochs):
            order = np.random.default_rng(derive(seed, "order", epoch)).permutation(len(train.rows))
            for begin in range(0, len(order), self._batch_size):
                step += 1
                some = order[begin : begin + self._batch_size]
                total = 0.0
                for part in self._cut(train, some):
                    loss = self._loss(self._logits(model, train, part), train.labels[part].to(self._device)) / len(some)
                    loss.backward()  # type: ignore[no-untyped-call]  # it has no types
                    total += loss.item()
                if not np.isfinite(total):
                    raise RunError(
                        f"the loss of fine-tuning is not finite with the learning rate {setting.lr:g}",
                        where=f"{self._name} on {self._task.name}",
                        hint="Leave out this learning rate (--lr), or use --precision fp32.",
                    )
                optimizer.clip()
                optimizer.step(step)
                optimizer.zero_grad()
                done(step)

    def _score(self, model: PreTrainedModel, name: str) -> dict[str, float]:
        split = self._splits[name]
        logits = np.zeros((len(split.rows), max(1, len(self._task.classes))), dtype=np.float32)
        model.eval()
        with torch.inference_mode():
            for part in self._cut(split, np.arange(len(split.rows))):
                logits[part] = self._logits(model, split, part).cpu().numpy()
        predicted = logits.argmax(1) if self._task.classes else logits[:, 0]
        if self._task.classes and name == self._task.scored and len({*predicted.tolist()}) == 1:
            logger.warning(
                "%s: after fine-tuning, every prediction on %s is the class %s.",
                self._name,
                self._task.name,
                self._task.classes[predicted[0]],
            )
        truth = np.array(self._task.splits[name].labels)
        return {metric: METRICS[metric](truth, predicted) for metric in self._task.metrics}

    def _build(self) -> PreTrainedModel:
        """The encoder with a new head."""
        config = deepcopy(self._encoder.config)
        config.num_labels = max(1, len(self._task.classes))
        with quiet():
            model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
        model.base_model.load_state_dict(self._encoder.state_dict(), strict=False)
        return model

    def _encode(self, split: Split) -> _Encoded:
        found = self._source.tokenizer(
            list(split.texts),
            None if split.pairs is None else list(split.pairs),
            truncation=self.length is not None,
            max_length=self.length,
        )
        names = ["input_ids", *(["token_type_ids"] if self._source.takes_token_types else [])]
        rows = [dict(zip(names, row, strict=True)) for row in zip(*(found[name] for name in names), strict=True)]
        labels = torch.tensor(split.labels, dtype=torch.long if self._task.classes else torch.float32)
        return _Encoded(rows, np.array([len(ids) for ids in found["input_ids"]]), labels)

    def _cut(self, split: _Encoded, indices: Indices) -> Iterator[Indices]:
        """Micro-batches of texts of about the same length."""
        order = indices[np.argsort(-split.lengths[indices], kind="stable")]
        begin = 0
        for size in padded_sizes(split.lengths[order], untried(self._device), cost=_MICRO_BATCH_COST):
            yield order[begin : begin + size]
            begin += size

    def _logits(self, model: nn.Module, split: _Encoded, part: Indices) -> Tensor:
        inputs = self._source.tokenizer.pad([split.rows[index] for index in part], return_tensors="pt").to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            logits: Tensor = model(**inputs).logits
        return logits.float()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum over the texts."""
        if self._task.classes:
            return nn.functional.cross_entropy(logits, labels, reduction="sum")
        return nn.functional.mse_loss(logits[:, 0], (labels - self._mean) / self._deviation, reduction="sum")


def best_setting(scores: Mapping[Setting, float]) -> Setting:
    """The setting with the best score on the dev split; of equal ones the first."""
    return max(scores, key=lambda setting: scores[setting])
