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
from minilm_cli.training.batches import BatchStream
from minilm_cli.training.distiller import Distiller
from minilm_cli.training.micro_batch_budget import untried
from minilm_cli.training.objective import RelationObjective
from minilm_cli.training.optim import LearningRate
from tests.benchmarks.measure import VOCABULARY, store
from tests.families import FAMILIES
from tests.unit.model_configs import small

LONGEST = 128


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


def measure(name: str, wanted: str, batch: int, steps: int) -> dict[str, float]:
    """Tokens a second over the steps, after one that is not counted. wanted: a layout, or `auto`."""
    teacher, student = tap(name, 6, 384), tap(name, 3, 192)
    layout = common_layout(teacher, student) if wanted == "auto" else cast(Layout, wanted)
    settings = DistillSettings.model_validate({"teacher": {"name": "-"}, "student": {"config": "-"}})
    device = torch.device("cpu")
    distiller = Distiller(
        teacher,
        student,
        RelationObjective(settings.relations.weights, 12),
        settings.optimizer,
        LearningRate(settings.schedule, settings.optimizer.lr, 1000),
        seed=0,
        device=device,
        bf16=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        tokens = store(Path(folder), 4 * batch, LONGEST)
        stream = BatchStream(
            tokens, seed=0, batch_size=batch, max_length=LONGEST, micro_batch_tokens=untried(device), layout=layout
        )
        reports = distiller.steps(stream, first=1, last=1 + steps)
        next(reports)
        started, seen, padded = time.perf_counter(), 0, 0
        for report in reports:
            seen, padded = seen + report.tokens, padded + report.padded_tokens
        took = time.perf_counter() - started
    return {"tokens_per_second": seen / took, "padding": 1 - seen / padded}


if __name__ == "__main__":
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as `minilm` sets it
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
