"""Scores of a student on a task while it is trained: by its embeddings as they are, so that it takes little time."""

from __future__ import annotations

import copy
import logging
from functools import cache

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minilm_cli.base.packages import require
from minilm_cli.evaluate.candidate import MEAN, Embed, embedding
from minilm_cli.evaluate.frozen import needs_probe, score_frozen
from minilm_cli.evaluate.reading import read_task
from minilm_cli.export.source import longest_text
from minilm_cli.export.tokenizer_files import fit_tokenizer
from minilm_cli.models.sentence_head import SentenceHead, read_head
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.settings.evaluate import LabelledData
from minilm_cli.training.loop import Judge

logger = logging.getLogger(__name__)


def judge_for(settings: DistillSettings) -> Judge | None:
    """What scores the student of a run on `evaluation.task`; `None` without one. Raises `MinilmError`."""
    spec, teacher = settings.evaluation.task, settings.teacher
    if spec is None:
        return None
    require("evaluate", "--eval-task")
    task = read_task(spec, LabelledData(), training=False)
    if probes := needs_probe(task):
        task = read_task(spec, LabelledData(), training=True)
    logger.info("Scored during training: %s.", task.found)
    head = read_head(teacher.name, teacher.revision) or MEAN

    @cache  # it is the same student at each evaluation
    def prepared(
        student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[SentenceHead, int | None, Embed]:
        fitted, own = head.fitted(student.config.hidden_size), copy.deepcopy(tokenizer)
        fit_tokenizer(own, student)
        return fitted, longest_text(own, fitted), embedding(student, own, fitted)

    def judge(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        fitted, longest, embed = prepared(student, tokenizer)
        was_training = student.training
        student.eval()
        try:
            scores = score_frozen(task, embed, fitted, longest, probes=probes)
        finally:
            student.train(was_training)
        return {f"task_{metric}": score for metric, score in scores.items()}

    return judge
