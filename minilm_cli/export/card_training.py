"""The parts of a model card about the training of a student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from minilm_cli.export.markdown import block, code, plain, table
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.held_out import HeldOut
from minilm_cli.runs.plan import DataFacts, Plan
from minilm_cli.runs.plan_facts import public_name
from minilm_cli.runs.plan_text import relation_weights, start, tapped, vocabulary
from minilm_cli.settings.distill import DistillSettings

Records = Sequence[Mapping[str, float]]
"""Lines of `metrics.jsonl`."""


@dataclass(frozen=True)
class Training:
    """How a checkpoint came about."""

    settings: DistillSettings
    plan: Plan
    records: Records
    """Up to the step."""
    step: int
    """Of the checkpoint."""
    changes: Sequence[tuple[int, str]] = ()
    """After which step which setting was changed."""
    environment: Mapping[str, Any] | None = None
    """Versions and hardware at the start."""

    @classmethod
    def of(cls, run: RunFolder, step: int) -> Training:
        """Read a run's files; raises `MinilmError`."""
        return cls(
            settings=run.settings(),
            plan=run.plan(),
            records=[record for record in run.metrics() if record["step"] <= step],
            step=step,
            changes=[
                (change.step, f"{change.setting} from {change.was} to {change.became}")
                for change in run.changes()
                if change.step < step
            ],
            environment=run.environment(),
        )

    @property
    def title(self) -> str:
        """What was made of what, not yet Markdown."""
        return f"{self.plan.student.name} distilled from {self.plan.teacher.name}"


def training_sections(training: Training, picture: str) -> Iterator[str]:
    """Losses, teacher, data, settings and untrained weights. picture: file of the loss curve."""
    yield _losses(training.records, picture)
    yield _teacher_and_relations(training.settings, training.plan)
    yield _data(training.plan.data)
    yield _training(training)
    yield _settings(training.settings, training.plan)
    yield _untrained(training.plan)


# --- Losses ------------------------------------------------------------------------------------------------------


def _losses(records: Records, picture: str) -> str:
    return f"""## Losses

![Loss over the training steps]({picture})

{_loss_table(records)}
{_outcome(records)}
The loss of a sequence is the sum over the relations of weight × mean over relation heads and tokens of the KL
divergence of the student's relation from the teacher's, in nats. The training loss is that of one step, with the
student's dropout; the held-out loss is without."""


def _loss_table(records: Records) -> str:
    steps = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "eval_loss" in record]
    untrained = evaluations and evaluations[0]["step"] == 0
    chosen = [
        ("held out, untrained student" if untrained else "held out, first", "eval_loss", evaluations[:1]),
        ("held out, last", "eval_loss", evaluations[-1:]),
        ("training, first", "loss", steps[:1]),
        ("training, last", "loss", steps[-1:]),
    ]
    rows = []
    for title, key, found in chosen:
        for record in found:
            losses = [record[key], *(record[part] for part in _parts(record, key))]
            rows.append([title, f"{int(record['step']):,}", *(f"{loss:.4f}" for loss in losses)])
    first: Mapping[str, float] = next(iter(evaluations or steps), {})
    names = [part.rpartition("_")[2].upper() for part in _parts(first, "eval_loss" if evaluations else "loss")]
    return table(rows, ["", "step", "all", *map(plain, names)])


def _parts(record: Mapping[str, float], key: str) -> list[str]:
    """The names of the losses of each relation in a record; key: name of their sum."""
    return [name for name in record if name.startswith(f"{key}_")]


def _outcome(records: Records) -> str:
    """What the table does not say by itself."""
    held_out = HeldOut.of(records)
    said = [] if held_out is None else list(filter(None, (held_out.warning, held_out.best_before)))
    return f"\n**{' '.join(said)}**\n" if said else ""


# --- Tables ------------------------------------------------------------------------------------------------------


def _teacher_and_relations(settings: DistillSettings, plan: Plan) -> str:
    teacher, relations = plan.teacher, plan.relations
    shape = f"{teacher.family}, {teacher.layers} layers, {teacher.width} wide"
    widths = f"{relations.teacher_head_width} wide in the teacher, {relations.student_head_width} in the student"
    rows = [
        ("teacher", f"{plain(teacher.name)} ({plain(shape)})"),
        ("revision", plain(settings.teacher.revision or "default") if teacher.on_hub else "none: a local folder"),
        ("weights", f"SHA-256 {code(teacher.weights_sha256)}, up to layer {teacher.layer}, without the pooler"),
        *_layers(plan),
        ("student started from", plain(start(plan.student))),
        *(("before", plain(line)) for line in plan.student.init_lineage),
        ("relations", relation_weights(settings.relations.weights)),
        ("relation heads", f"{relations.heads} ({widths})"),
    ]
    if plan.vocabulary is not None:
        rows.append(("vocabulary", vocabulary(plan.vocabulary)))
    if teacher.license:
        rows.insert(3, ("licence", plain(teacher.license_name or teacher.license)))
    return f"## Teacher and relations\n\n{table(rows)}"


def _layers(plan: Plan) -> list[tuple[str, str]]:
    theirs, ours = (", ".join(map(str, tapped(model))) for model in (plan.teacher, plan.student))
    if not plan.student.tapped_layers:
        return [("teacher layer", theirs), ("student layer", ours)]
    return [("teacher layers", theirs), ("student layers", f"{ours}; the loss is the mean over the pairs of layers")]


def _data(data: DataFacts) -> str:
    stores: list[tuple[str, str]] = []
    for store in data.stores:
        stores += [("tokens", f"{plain(store.name)} ({store.described})"), _manifest(store.manifest_sha256)]
    if not stores:
        counts = f"{data.sequences:,} sequences, {data.tokens:,} tokens"
        stores = [("tokens", f"{plain(data.name)} ({counts})"), _manifest(data.manifest_sha256)]
    rows = [
        *stores,
        ("tokenizer", plain(data.tokenizer or "unknown: the data was token ids")),
        ("held out", f"{data.held_out:,} sequences"),
        ("longest sequence", f"{data.max_length} tokens"),
    ]
    return f"## Data\n\n{table(rows)}"


def _manifest(checksum: str) -> tuple[str, str]:
    return "manifest of the token store", f"SHA-256 {code(checksum)}"


def _training(of: Training) -> str:
    optimizer, schedule, training = of.settings.optimizer, of.settings.schedule, of.settings.training
    warmup = of.plan.training.warmup_steps if schedule.warmup_steps == "auto" else schedule.warmup_steps
    rows = [
        ("steps", f"{of.step:,} of {of.plan.training.steps:,}, {training.batch_size} sequences each"),
        (
            "optimiser",
            f"AdamW, lr {optimizer.lr:g}, betas {optimizer.betas[0]:g}/{optimizer.betas[1]:g}, eps {optimizer.eps:g},"
            f" weight decay {optimizer.weight_decay:g}, gradient norm at most {optimizer.clip_norm:g}",
        ),
        ("schedule", f"{schedule.kind}, {warmup or 0:,} warm-up steps"),
        ("precision", f"{training.precision} (loss in fp32)"),
        ("seed", f"{training.seed}"),
        *((f"changed after step {after:,}", plain(change)) for after, change in of.changes),
        ("hardware", plain(f"{of.plan.training.device}, processes: {of.plan.training.processes}")),
    ]
    named = {name: (of.environment or {}).get(name) for name in ("minilm", "python", "torch", "transformers")}
    if versions := ", ".join(f"{name} {version}" for name, version in named.items() if version):
        rows.append(("versions", plain(versions)))
    return f"## Training\n\n{table(rows)}"


def _settings(settings: DistillSettings, plan: Plan) -> str:
    """All settings as a file for `minilm distill --config`; of local paths the last part, as the rest is private."""
    values = settings.model_dump(mode="json", exclude={"output": True, "reporting": True})
    values["teacher"]["name"] = plan.teacher.name
    values["student"]["config"] = Path(settings.student.config or "").name
    values["student"]["init"] = public_name(settings.student.init)
    if isinstance(kept := settings.student.keep_vocab, str):
        values["student"]["keep_vocab"] = Path(kept).name
    values["evaluation"]["task"] = public_name(settings.evaluation.task)
    names = [path.name for path in settings.data.paths]
    weights = settings.data.weights
    values["data"]["path"] = names if weights is None else dict(zip(names, weights, strict=True))
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return f"<details><summary>All settings</summary>\n\n{block('yaml', text)}\n\n</details>"


# --- What was not trained ----------------------------------------------------------------------------------------


def _untrained(plan: Plan) -> str:
    student = plan.student
    if not student.has_random_tail:
        begin = f"from {start(student)}"
        advice = "The layers before them have changed since. Fine-tuning on a task adapts them to each other."
    else:
        begin = "random"
        advice = (
            "Fine-tune the model on a task, which trains them too, before its outputs are used. A student of the"
            " teacher's family can start from the teacher's layers instead (`minilm distill --init teacher`)."
        )
    return f"""## Weights that were not trained

The loss ends at the queries, keys and values of layer {student.layer}: what comes after them got no gradient and
is as it was at the start ({begin}). {advice}

{len(student.untrained)} of {student.tensors} tensors, {student.untrained_parameters:,} parameters:

{chr(10).join(f"- {code(name)}" for name in student.untrained) or "- none"}"""
