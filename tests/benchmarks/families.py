"""The speed of a training step by family, with random weights: `… .families NAME LAYOUT BATCH STEPS`.

Teacher of 6 layers, 384 wide, student of 3, 192 wide, sequences with a median of 40 tokens. Prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import torch

from minilm_cli.models.inputs import Layout
from minilm_cli.models.student import build_student
from minilm_cli.models.tap import Tap
from minilm_cli.models.trials import common_layout
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.tokens.mixture import Mixture
from minilm_cli.tokens.store import TokenStore
from minilm_cli.training.batches import BatchStream
from minilm_cli.training.distiller import Distiller
from minilm_cli.training.micro_batch_budget import untried
from minilm_cli.training.objective import RelationObjective
from minilm_cli.training.optim import LearningRate
from tests.benchmarks.measure import VOCABULARY, store
from tests.families import FAMILIES
from tests.unit.model_configs import small

LONGEST = 128

CPU = torch.device("cpu")


def tap(name: str, layers: int, width: int) -> Tap:
    """A model of the family with random weights, tapped at its last layer."""
    case = next(case for case in FAMILIES if case.name == name)
    sizes = {
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "intermediate_size": 4 * width,
        "d_ff": 4 * width,
        "head_dim": width // 12,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2 * LONGEST,
        "layer_types": None,
        "relative_attention_num_buckets": 32,
        "max_relative_positions": -1,
        "position_buckets": 256,
    }
    wanted = case.config | dict.fromkeys(case.wider, width) | {"hidden_size": width}
    known = small(name)
    chosen = wanted | {key: value for key, value in sizes.items() if hasattr(known, key)}
    return Tap(build_student(small(name, **chosen), seed=0), [layers])


def distiller(name: str) -> Distiller:
    """A student of the family, with its teacher."""
    teacher, student = tap(name, 6, 384), tap(name, 3, 192)
    settings = DistillSettings.model_validate({"teacher": {"name": "-"}, "student": {"config": "-"}})
    return Distiller(
        teacher,
        student,
        RelationObjective(settings.relations.weights, 12),
        settings.optimizer,
        LearningRate(settings.schedule, settings.optimizer.lr, 1000),
        seed=0,
        device=CPU,
        bf16=False,
    )


def rate(distiller: Distiller, tokens: TokenStore, layout: Layout, batch: int, steps: int) -> tuple[float, float]:
    """Real tokens a second over the steps, after one that is not counted, and the share of padding."""
    stream = BatchStream(
        tokens, seed=0, batch_size=batch, max_length=LONGEST, micro_batch_tokens=untried(CPU), layout=layout
    )
    reports = distiller.steps(stream, first=1, last=1 + steps)
    next(reports)
    started, seen, padded = time.perf_counter(), 0, 0
    for report in reports:
        seen, padded = seen + report.tokens, padded + report.padded_tokens
    return seen / (time.perf_counter() - started), 1 - seen / padded


def measure(name: str, wanted: str, batch: int, steps: int) -> dict[str, float]:
    """The speed with sequences of median 40 tokens, and that of as many tokens in sequences of one length.

    wanted: a layout, or `auto`.
    """
    model = distiller(name)
    layout = common_layout(model.teacher, model.student) if wanted == "auto" else cast(Layout, wanted)
    with tempfile.TemporaryDirectory() as folder:
        ragged = store(Path(folder) / "ragged", 4 * batch, LONGEST)
        even = store(Path(folder) / "even", 4 * batch, round(Mixture([ragged]).mean_length(LONGEST)), None)
        found, padding = rate(model, ragged, layout, batch, steps)
        unpadded, _ = rate(model, even, layout, batch, steps)
    return {"tokens_per_second": found, "padding": padding, "of_one_length": found / unpadded}


if __name__ == "__main__":
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as `minilm` sets it
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
