"""The model card of an exported student, and its loss curve as a picture. Plain text in, plain text out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

import yaml

from minilm_cli import __version__
from minilm_cli.runs.plan import DataFacts, Plan
from minilm_cli.settings.distill import DistillSettings

CURVE_FILE = "loss.svg"


def model_card(
    settings: DistillSettings,
    plan: Plan,
    records: Sequence[Mapping[str, float]],
    *,
    step: int,
    dtype: str,
    changes: Sequence[tuple[int, str]] = (),
) -> str:
    """`README.md`: teacher, data, settings, losses, what was not trained, how to load it.

    step: of the checkpoint. changes: after which step which setting was changed.
    """
    teacher, student, relations, data = plan.teacher, plan.student, plan.relations, plan.data
    header: dict[str, object] = {"library_name": "transformers", "tags": ["minilm", "distillation", student.family]}
    if teacher.on_hub:
        header["base_model"] = teacher.name
    untrained = student.untrained
    layers = ", ".join(map(str, student.init_from_teacher_layers))
    start = f"the teacher's layers {layers}" if layers else "random weights"
    relation_names = ", ".join(f"{pair.upper()} × {weight:g}" for pair, weight in settings.relations.weights.items())
    optimizer, schedule, training = settings.optimizer, settings.schedule, settings.training
    return f"""---
{yaml.safe_dump(header, sort_keys=True).strip()}
---

# {student.name} distilled from {teacher.name}

A {student.family} encoder of {student.layers} layers, {student.width} wide
({student.parameters:,} parameters, {dtype}), made by minilm {__version__} with MiniLMv2: multi-head self-attention
relation distillation ([arXiv 2012.15828](https://arxiv.org/abs/2012.15828)).

It is a general-purpose encoder to be fine-tuned for a task. Without that, its last hidden states mean little unless it
was started from the teacher (see *Weights that were not trained*).

## How to load it

```python
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
model = AutoModel.from_pretrained("THIS_FOLDER")
states = model(**tokenizer("Some text.", return_tensors="pt")).last_hidden_state
```

## Losses

![Loss over the training steps]({CURVE_FILE})

{_loss_table(records, step)}

The loss of a sequence is the sum over the relations of weight × mean over relation heads and tokens of the KL
divergence of the student's relation from the teacher's, in nats. The training loss is that of one step, with the
student's dropout; the held-out loss is without.

## Teacher and relations

| | |
|---|---|
| teacher | {teacher.name} ({teacher.family}, {teacher.layers} layers, {teacher.width} wide) |
| revision | {settings.teacher.revision or "default"} |
| teacher layer | {teacher.layer} |
| student layer | {student.layer} |
| student started from | {start} |
| relations | {relation_names} |
| relation heads | {relations.heads} ({relations.teacher_head_width} wide in the teacher, \
{relations.student_head_width} in the student) |

## Data

| | |
|---|---|
{_token_rows(data)}
| tokenizer | {data.tokenizer or "unknown: the data was token ids"} |
| held out | {data.held_out:,} sequences |
| longest sequence | {data.max_length} tokens |

## Training

| | |
|---|---|
| steps | {step:,} of {plan.training.steps:,}, {training.batch_size} sequences each |
| optimiser | AdamW, lr {optimizer.lr:g}, betas {optimizer.betas[0]:g}/{optimizer.betas[1]:g}, eps {optimizer.eps:g}, \
weight decay {optimizer.weight_decay:g}, gradient norm at most {optimizer.clip_norm:g} |
| schedule | {schedule.kind}, {schedule.warmup_steps:,} warm-up steps |
| precision | {training.precision} (loss in fp32) |
| seed | {training.seed} |
{"".join(f"| changed after step {after:,} | {change} |{chr(10)}" for after, change in changes)}\

## Weights that were not trained

The loss ends at the queries, keys and values of layer {student.layer}: what comes after them got no gradient and
is as it was at the start ({"copied from the teacher where it has them" if layers else "random"}).
{len(untrained)} of {student.tensors} tensors, {student.untrained_parameters:,} parameters:

{chr(10).join(f"- `{name}`" for name in untrained) or "- none"}
"""


def _token_rows(data: DataFacts) -> str:
    if not data.stores:
        return f"| tokens | {data.name} ({data.sequences:,} sequences, {data.tokens:,} tokens) |"
    return "\n".join(f"| tokens | {store.name} ({store.told}) |" for store in data.stores)


def _loss_table(records: Sequence[Mapping[str, float]], step: int) -> str:
    evaluations = [record for record in records if "eval_loss" in record and record["step"] <= step]
    steps = [record for record in records if "loss" in record and record["step"] <= step]
    rows = ["| | step | all | " + " | ".join(_pairs(evaluations or steps)) + " |"]
    rows.append("|---" * (3 + len(_pairs(evaluations or steps))) + "|")
    for title, chosen, prefix in (("training", steps, "loss"), ("held out", evaluations, "eval_loss")):
        for which, record in (("first", chosen[:1]), ("last", chosen[-1:])):
            for values in record:
                parts = [f"{value:.4f}" for name, value in values.items() if name.startswith(f"{prefix}_")]
                rows.append(
                    f"| {title}, {which} | {int(values['step'])} | {values[prefix]:.4f} | {' | '.join(parts)} |"
                )
    return "\n".join(rows)


def _pairs(records: Sequence[Mapping[str, float]]) -> list[str]:
    names = records[0] if records else ()
    return [name.rpartition("_")[2].upper() for name in names if name.startswith(("loss_", "eval_loss_"))]


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 60, 20, 30, 45


def loss_curve(records: Sequence[Mapping[str, float]], title: str) -> str:
    """The training and held-out loss over the steps, as an SVG picture with a logarithmic loss axis."""
    series = {
        name: [(record["step"], record[key]) for record in records if record.get(key, 0) > 0]
        for name, key in (("training", "loss"), ("held out", "eval_loss"))
    }
    points = [point for line in series.values() for point in line] or [(0, 1.0)]
    last = max(1, *(step for step, _ in points))
    low, high = min(loss for _, loss in points) * 0.95, max(loss for _, loss in points) * 1.05

    def place(step: float, loss: float) -> tuple[float, float]:
        across = step / last
        up = (math.log(loss) - math.log(low)) / (math.log(high) - math.log(low))
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        ' font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="{TOP - 12}" font-size="14">{escape(title)}</text>',
    ]
    for loss in _ticks(low, high):
        x, y = place(0, loss)
        parts.append(f'<line x1="{x}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 6}" y="{y + 4:.1f}" text-anchor="end">{loss:.3g}</text>')
    for quarter in range(5):
        step = round(last * quarter / 4)
        x, y = place(step, low)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{step:,}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">optimiser step</text>')
    for number, (name, colour) in enumerate((("training", "#7aa6d8"), ("held out", "#c0392b"))):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in series[name]))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if name == "held out":
            dots = (place(*point) for point in series[name])
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in dots]
        x = WIDTH - RIGHT - 90 * (2 - number)
        parts.append(
            f'<line x1="{x}" y1="{TOP - 16}" x2="{x + 20}" y2="{TOP - 16}" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(f'<text x="{x + 26}" y="{TOP - 12}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    """Five losses between `low` and `high`, evenly spaced on the logarithmic axis."""
    return [low * (high / low) ** (number / 4) for number in range(5)]
