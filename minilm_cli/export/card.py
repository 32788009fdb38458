"""The model card of an exported student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from minilm_cli import __version__
from minilm_cli.export.formats import Source
from minilm_cli.export.loss_curve import loss_curve
from minilm_cli.runs.held_out import HeldOut
from minilm_cli.runs.plan import DataFacts, Plan
from minilm_cli.runs.plan_text import relation_weights, start
from minilm_cli.settings.distill import DistillSettings

CURVE_FILE = "loss.svg"


def write_card(source: Source, folder: Path) -> None:
    """Write `README.md` and the loss curve of an export into its folder."""
    run, step = source.run, source.checkpoint.step
    records = [record for record in run.metrics() if record["step"] <= step]
    plan = run.plan()
    changes = [
        (change.step, f"{change.setting} from {change.was} to {change.became}")
        for change in run.changes()
        if change.step < step
    ]
    card = model_card(run.settings(), plan, records, step=step, dtype=source.dtype, changes=changes)
    (folder / "README.md").write_text(card, encoding="utf-8")
    title = f"{plan.student.name} from {plan.teacher.name}"
    (folder / CURVE_FILE).write_text(loss_curve(records, title), encoding="utf-8")


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
    sections = (
        _introduction(plan, dtype),
        _LOADING,
        _losses(records, step),
        _teacher_and_relations(settings, plan),
        _data(plan.data),
        _training(settings, plan, step, changes),
        _untrained(plan),
    )
    return "\n\n".join(sections) + "\n"


def _introduction(plan: Plan, dtype: str) -> str:
    teacher, student = plan.teacher, plan.student
    header: dict[str, object] = {"library_name": "transformers", "tags": ["minilm", "distillation", student.family]}
    if teacher.on_hub:
        header["base_model"] = teacher.name
    return f"""---
{yaml.safe_dump(header, sort_keys=True).strip()}
---

# {student.name} distilled from {teacher.name}

A {student.family} encoder of {student.layers} layers, {student.width} wide
({student.parameters:,} parameters, {dtype}), made by minilm {__version__} with MiniLMv2: multi-head self-attention
relation distillation ([arXiv 2012.15828](https://arxiv.org/abs/2012.15828)).

It is a general-purpose encoder to be fine-tuned for a task. Without that, its last hidden states mean little unless it
was started from the teacher (see *Weights that were not trained*)."""


_LOADING = """## How to load it

```python
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
model = AutoModel.from_pretrained("THIS_FOLDER")
states = model(**tokenizer("Some text.", return_tensors="pt")).last_hidden_state
```"""


def _losses(records: Sequence[Mapping[str, float]], step: int) -> str:
    return f"""## Losses

![Loss over the training steps]({CURVE_FILE})

{_loss_table(records, step)}
{_outcome(records)}
The loss of a sequence is the sum over the relations of weight × mean over relation heads and tokens of the KL
divergence of the student's relation from the teacher's, in nats. The training loss is that of one step, with the
student's dropout; the held-out loss is without."""


def _outcome(records: Sequence[Mapping[str, float]]) -> str:
    """What the table does not say by itself."""
    held_out = HeldOut.of(records)
    said = [] if held_out is None else list(filter(None, (held_out.warning, held_out.best_before)))
    return f"\n**{' '.join(said)}**\n" if said else ""


def _teacher_and_relations(settings: DistillSettings, plan: Plan) -> str:
    teacher, relations = plan.teacher, plan.relations
    return f"""## Teacher and relations

| | |
|---|---|
| teacher | {teacher.name} ({teacher.family}, {teacher.layers} layers, {teacher.width} wide) |
| revision | {settings.teacher.revision or "default"} |
| teacher layer | {teacher.layer} |
| student layer | {plan.student.layer} |
| student started from | {start(plan.student)} |
| relations | {relation_weights(settings.relations.weights)} |
| relation heads | {relations.heads} ({relations.teacher_head_width} wide in the teacher, \
{relations.student_head_width} in the student) |"""


def _data(data: DataFacts) -> str:
    return f"""## Data

| | |
|---|---|
{_token_rows(data)}
| tokenizer | {data.tokenizer or "unknown: the data was token ids"} |
| held out | {data.held_out:,} sequences |
| longest sequence | {data.max_length} tokens |"""


def _training(settings: DistillSettings, plan: Plan, step: int, changes: Sequence[tuple[int, str]]) -> str:
    optimizer, schedule, training = settings.optimizer, settings.schedule, settings.training
    warmup = plan.training.warmup_steps if schedule.warmup_steps == "auto" else schedule.warmup_steps
    rows = [
        ("steps", f"{step:,} of {plan.training.steps:,}, {training.batch_size} sequences each"),
        (
            "optimiser",
            f"AdamW, lr {optimizer.lr:g}, betas {optimizer.betas[0]:g}/{optimizer.betas[1]:g}, eps {optimizer.eps:g},"
            f" weight decay {optimizer.weight_decay:g}, gradient norm at most {optimizer.clip_norm:g}",
        ),
        ("schedule", f"{schedule.kind}, {warmup or 0:,} warm-up steps"),
        ("precision", f"{training.precision} (loss in fp32)"),
        ("seed", f"{training.seed}"),
        *((f"changed after step {after:,}", change) for after, change in changes),
    ]
    return "## Training\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _untrained(plan: Plan) -> str:
    student = plan.student
    start = "copied from the teacher where it has them" if student.init_from_teacher_layers else "random"
    return f"""## Weights that were not trained

The loss ends at the queries, keys and values of layer {student.layer}: what comes after them got no gradient and
is as it was at the start ({start}).
{len(student.untrained)} of {student.tensors} tensors, {student.untrained_parameters:,} parameters:

{chr(10).join(f"- `{name}`" for name in student.untrained) or "- none"}"""


def _token_rows(data: DataFacts) -> str:
    if not data.stores:
        return f"| tokens | {data.name} ({data.sequences:,} sequences, {data.tokens:,} tokens) |"
    return "\n".join(f"| tokens | {store.name} ({store.described}) |" for store in data.stores)


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
