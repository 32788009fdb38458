"""The table of the README from finished runs: parameters, size, held-out loss and speed, for teacher and student.

python -m tests.benchmarks.students RUN...

Speed is that of `transformers` on the CPU with all cores, in fp32, on the sample of the package, in batches
of 32 sentences sorted by length: teacher and student in turn, the fastest of three rounds each.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from minilm_cli.cli.demo import SAMPLE
from minilm_cli.runs.folder import RunFolder

SENTENCES, BATCH, ROUNDS = 512, 32, 3


def batches(tokenizer: Path) -> list[Mapping[str, torch.Tensor]]:
    """The sample's first lines, tokenised and padded."""
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()[:SENTENCES]
    encode = AutoTokenizer.from_pretrained(tokenizer)
    ordered = sorted(lines, key=len)
    return [
        encode(ordered[begin : begin + BATCH], padding=True, truncation=True, max_length=128, return_tensors="pt")
        for begin in range(0, SENTENCES, BATCH)
    ]


@torch.inference_mode()
def seconds(model: Any, inputs: list[Mapping[str, torch.Tensor]]) -> float:
    """Time to encode all batches once."""
    started = time.perf_counter()
    for batch in inputs:
        model(**batch)
    return time.perf_counter() - started


def row(run: RunFolder) -> str:
    """A row of the table."""
    settings, plan = run.settings(), run.plan()
    models = [AutoModel.from_pretrained(name).eval() for name in (settings.teacher.name, run.student)]
    inputs = [batches(tokenizer) for tokenizer in (run.tokenizer, run.student_tokenizer)]
    times = [[seconds(*pair) for pair in zip(models, inputs, strict=True)] for _ in range(ROUNDS)]
    teacher, student = (min(rounds) for rounds in zip(*times, strict=True))
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    losses = [record["eval_loss"] for record in run.metrics() if "eval_loss" in record]
    start = "its layers" if plan.student.init_from_teacher_layers else "random weights"
    tokens = "" if plan.vocabulary is None else f" with {plan.vocabulary.tokens:,} tokens"
    cells = (
        f"{plan.teacher.name} ({plan.teacher.layers} × {plan.teacher.width})"
        f" → {plan.student.layers} × {plan.student.width}{tokens}, from {start}, {plan.training.steps:,} steps",
        " → ".join(f"{count / 1e6:.1f} M" for count in counts),
        " → ".join(f"{count * 4 / 1e6:.0f}" for count in counts),
        f"{losses[0]:.3f} → {losses[-1]:.3f}",
        f"{teacher / student:.1f} ×",
    )
    return f"| {' | '.join(cells)} |"


def main(words: list[str]) -> None:
    """Print the table of these runs."""
    print("| teacher → student | parameters | MB | held-out loss | speed on a CPU |\n|---|---:|---:|---:|---:|")
    for word in words:
        print(row(RunFolder(Path(word))))


if __name__ == "__main__":
    main(sys.argv[1:])
