"""Writes docs/figures.md and its plots from docs/figures/figures.json, which `python -m tests.benchmarks` measures.

python -m tests.benchmarks --output docs/figures/figures.json  measure
python -m tests.benchmarks.page                                write the page
python -m tests.benchmarks.page --check                        fail if the page is not up to date

What `python -m tests.gpu` measured is in it too, if docs/figures/gpu.json is there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.plots import bar_chart, log_plot
from tests.benchmarks.tables import cells, titles

DOCS = Path(__file__).parents[2] / "docs"
FIGURES, GPU_FIGURES = "figures/figures.json", "figures/gpu.json"

Figures = Mapping[str, Any]


def pages(figures: Figures, gpu: Figures | None = None) -> dict[str, str]:
    """The text of the page and of each plot, by path below docs/. gpu: what `tests.gpu` measured."""
    losses = figures["relation_loss"]
    lines = (("minilm", ""), ("plain", "plain_"))
    per_token = {
        name: [(row["length"], 1e3 * row[f"{prefix}ms"] / (row["length"] * row["batch"])) for row in losses]
        for name, prefix in lines
    }
    memory = {name: [(row["length"], row[f"{prefix}extra_mb"]) for row in losses] for name, prefix in lines}
    # The row of the larger batch is a different task.
    rates = {row["name"]: row["sequences_per_second"] for row in figures["training"] if "times_faster" in row}
    across = "length of the sequences, tokens"
    return {
        "figures.md": _page(figures, gpu),
        "figures/loss-time.svg": log_plot("Relation loss and gradient: time per token, µs", across, per_token),
        "figures/loss-memory.svg": log_plot("Relation loss and gradient: extra memory, MB", across, memory),
        "figures/training.svg": bar_chart("Training: sequences per second", rates),
    }


def _page(figures: Figures, gpu: Figures | None) -> str:
    quick = figures["quick"]
    rounds = "once" if quick else "in turn, in three rounds"
    medians = "" if quick else " Figures are medians over the rounds, also the ratios."
    provisional = "These are the provisional figures of a quick run, good for orders of magnitude.\n\n" if quick else ""
    larger = "" if quick else " The last row is for memory: one step on 256 sequences of 512 tokens, without padding."
    return f"""<!-- Written by tests/benchmarks/page.py from {FIGURES}. Edit that, not this. -->

# Figures

The speed and the memory of minilm, compared with plain code that does the same. The plain code is
`tests/benchmarks/plain.py`: a training step the way MiniLMv2 is usually written.

{provisional}## Conditions

{_conditions(figures["machine"])}

Each measurement runs in a separate process, because of its peak memory. MB are millions of bytes.

## Relation loss

The loss of all three relations and its gradient, on {_tokens(figures["relation_loss"])} tokens in all, cut into
sequences of different lengths. The plain code computes the scores of the whole batch and lets autograd differentiate
them. Both in fp32, without a model.

{_table(figures, "relation_loss")}

Times are medians of at least three runs{"" if quick else " and two seconds"}, after a warm-up run. Extra
memory is the peak beyond the inputs and their gradients.

![Time per token over the length of the sequences](figures/loss-time.svg)

![Extra memory over the length of the sequences](figures/loss-memory.svg)

## Training

Whole training steps: batch, teacher, student, loss, gradients, optimiser. The plain trainer pads the batch to its
longest sequence, runs both models to their end and is in fp32.

{_table(figures, "training")}

The trainers were measured {rounds}: {"one step" if quick else "six steps"} after a warm-up
step.{medians} The share of the GEMM rate is the arithmetic that a step needs, without padding, divided by what the
machine could do in that time in the matrix products of a layer in the same precision.{larger}

![Sequences per second of each trainer](figures/training.svg)

## Families

A training step of students of 3 layers, 192 wide, with teachers of 6 layers, 384 wide, in fp32: batches of 256
sequences of median 40 tokens, random weights. BERT with padded batches shows what padding alone costs; MPNet, DeBERTa,
RoFormer and MegatronBERT compute attention with their own code. ConvBERT's batches have sequences of one length. The
last column compares with as many tokens in sequences of one length, by the same models: what different lengths cost.

{_table(figures, "families")}

They were measured {"once" if quick else "in turn, in two rounds"}{_alone(figures, "families")}.{medians}

## Tokenisation

Text to token ids with the tokenizer of all-MiniLM-L6-v2, at most 128 tokens a line, on the English sample that comes
with the package, repeated{"" if quick else " to about 10 MB"}. The plain way calls the fast tokenizer of transformers
line by line, in one process, and writes lists of ids as gzipped JSON lines; tokenizers alone is that library's
`encode_batch_fast`, whose ids are counted and thrown away; `minilm tokenize` writes a token store, and each worker has
a core.

{_table(figures, "tokenisation")}

They were measured {rounds}, net of what starting takes: by the difference between two sizes of text.{medians} Memory
is that of all processes together.

It does not grow with the text (two workers):

{_table(figures, "tokenisation_memory")}

Opening a token store does not read it, and the time of a random batch of 256 sequences does not depend on its size:

{_table(figures, "token_store")}

## On a GPU

{_gpu(gpu)}

## Start

The CPU time of `minilm --help`, mean of five calls.

{_table(figures, "help")}

## How to measure again

The first command measures, and the second writes this page from [the figures]({FIGURES}):

```bash
python -m tests.benchmarks --output docs/{FIGURES}
python -m tests.benchmarks.page
```
"""


def _gpu(report: Figures | None) -> str:
    if report is None:
        return f"Not measured. `python -m tests.gpu` measures it in a few minutes; its `--output` is `{GPU_FIGURES}`."
    losses = [
        (name, *(_number(row.get(key)) for key in ("chunks_ms", "fused_ms", "difference")))
        for name, row in report["losses"].items()
    ]
    steps = [
        (f"{name}, {trainer}", *(_number(row.get(key)) for key in ("sequences_per_second", "step_ms", "peak_gb")))
        for name, trainers in report["training"].items()
        if isinstance(trainers, dict)
        for trainer, row in trainers.items()
        if isinstance(row, dict)
    ]
    profile = report["profile"]
    exact = "equals" if all(report["resumption"]["equal"].values()) else "does not equal"
    return f"""On {report["device"]}, by `python -m tests.gpu`. Loss and gradient of relations, in bf16; sequences ×
length:

{_markdown(("batch", "in chunks, ms", "fused, ms", "difference"), losses)}

The fused loss is within {report["parity"]["worst_loss"]:.1g} of float64, its gradient within
{report["parity"]["worst_gradient"]:.1g}. Whole steps of 256 sequences, BERT-base → 6 × 384:

{_markdown(("lengths", "sequences/s", "step, ms", "peak, GB"), steps)}

A run that was killed and resumed {exact} one that was not, to the last bit. In a step at median 128 the device starts
{profile["launches_per_step"]:,.0f} kernels and has nothing to do for {profile["idle_share"]:.0%}."""


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _conditions(machine: Mapping[str, Any]) -> str:
    memory = f"{machine['memory_gb']:.0f} GB" if "memory_gb" in machine else "unknown"
    rows = (
        ("processor", f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} used by torch"),
        ("memory", memory),
        ("torch", machine["torch"]),
        ("date", machine["date"]),
        ("teacher", "BERT-base's shape: 12 layers, 768 wide; random weights"),
        ("student", "BERT of 6 layers, 384 wide; random weights"),
        ("relations", "QQ, KK and VV of the last layers, 48 heads"),
        ("training batch", "32 sequences; lengths log-normal with median 40, at most 128"),
    )
    return _markdown(("condition", "value"), rows, alignment="---")


def _alone(figures: Figures, section: str) -> str:
    """On which machine and when a section was measured, if not with the others."""
    machine = figures.get("measured_alone", {}).get(section)
    return f" on {machine['processor']}, {machine['cores']} cores, on {machine['date']}" if machine else ""


def _tokens(losses: Iterable[Mapping[str, int]]) -> str:
    return " or ".join(f"{total:,}" for total in sorted({row["length"] * row["batch"] for row in losses}))


def _table(figures: Figures, section: str) -> str:
    return _markdown(titles(section), cells(section, figures[section]))


def _markdown(head: Iterable[str], rows: Iterable[Iterable[str]], *, alignment: str = "---:") -> str:
    """A table; `alignment` is that of all columns but the first."""
    head = list(head)
    lines = [head, ["---", *[alignment] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str]) -> int:
    """Write the page and its plots, or compare them; returns the exit status."""
    figures, gpu = (
        json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        for file in (DOCS / FIGURES, DOCS / GPU_FIGURES)
    )
    expected = pages(figures, gpu)
    if arguments == ["--check"]:
        files = {str(path.relative_to(DOCS)): path for path in (DOCS / "figures.md", *DOCS.glob("figures/*.svg"))}
        current = {name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()}
        stale = sorted(name for name in expected.keys() | current.keys() if expected.get(name) != current.get(name))
        for name in stale:
            print(f"docs/{name} is not up to date: run python -m tests.benchmarks.page", file=sys.stderr)
        return 1 if stale else 0
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    for name, text in expected.items():
        (DOCS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
