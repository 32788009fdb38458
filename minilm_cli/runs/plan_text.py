"""A plan in words: the tables of a dry run, and the lines that a run begins with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minilm_cli.runs.plan import (
    DataFacts,
    Plan,
    StartFacts,
    StudentFacts,
    TeacherFacts,
    TrainingFacts,
    VocabularyFacts,
)

Rows = list[tuple[str, str]]
"""Names and values."""


def tables(plan: Plan, *, verbose: bool = False) -> dict[str, Rows]:
    """All facts by section; each parameter that is not trained is named if `verbose`."""
    found = {
        "teacher": [*_facts(plan.teacher)],
        "student": [*_student(plan, verbose=verbose)],
        "relations": [*_facts(plan.relations)],
        "data": [*_facts(plan.data, without={"stores"})],
        "training": [*_facts(plan.training)],
    }
    found["data"] += [(store.name, store.described) for store in plan.data.stores]
    if plan.measured is not None:
        found["measured"] = [*_facts(plan.measured, without={"hours_in_all"})]
        hours = f"{plan.measured.hours_in_all:,.2f}"
        found["measured"].append(("hours in all", "less than 0.01" if hours == "0.00" else hours))
    return found


def banner(plan: Plan, output: str) -> Rows:
    """What is trained on what, how long and where, in a line each; `output` is the run folder."""
    teacher, student, relations = plan.teacher, plan.student, plan.relations
    return [
        ("run folder", output),
        ("teacher", f"{teacher.name}: {_shape(teacher)}; {_learnt(teacher)}"),
        ("student", f"{_shape(student)}{_compression(plan)}; {_learning(student)}, from {start(student)}"),
        *(() if plan.vocabulary is None else (("vocabulary", vocabulary(plan.vocabulary)),)),
        ("relations", f"{relation_weights(relations.weights)}; {relations.heads} heads"),
        ("data", _data(plan.data)),
        ("training", _training(plan.training)),
        ("hardware", _hardware(plan.training)),
    ]


def start(student: StudentFacts) -> str:
    """The initial weights."""
    if student.init_from is not None:
        return f"the weights of {student.init_from}"
    layers = ", ".join(map(str, student.init_from_teacher_layers))
    share = student.init_share_kept
    fitted = "" if share is None else f", fitted to its size ({share:.0%} of their hidden states kept)"
    return f"the teacher's layers {layers}{fitted}" if layers else "random weights"


def vocabulary(facts: VocabularyFacts) -> str:
    """The tokens that are kept, and what becomes of the data's others."""
    unknown = f", {facts.share_unknown:.2%} as the unknown one" if facts.share_unknown else ""
    read = f"{facts.share_split:.2%} of the data's tokens are read as smaller ones{unknown}"
    return f"{facts.tokens:,} of the teacher's {facts.teacher_tokens:,} tokens; {read}"


def tapped(model: TeacherFacts | StudentFacts) -> list[int]:
    """Every tapped layer."""
    return model.tapped_layers or [model.layer]


def relation_weights(weights: Mapping[str, float]) -> str:
    """The relations and their weights: `QQ × 1, KK × 1`."""
    return ", ".join(f"{pair.upper()} × {weight:g}" for pair, weight in weights.items())


def megabytes(parameters: int) -> str:
    """The size of a model's weights in fp32."""
    size = parameters * 4 / 1e6
    return f"{size:,.0f} MB" if size >= 10 else f"{size:.2g} MB"  # noqa: PLR2004  # two digits say enough


# --- Tables ------------------------------------------------------------------------------------------------------


def _student(plan: Plan, *, verbose: bool) -> Iterator[tuple[str, str]]:
    student = plan.student
    special = {"tensors", "untrained", "untrained_parameters", "embedding_parameters"}
    yield from _facts(student, without={*special, *StartFacts.model_fields})
    if plan.vocabulary is not None:
        yield "vocabulary", vocabulary(plan.vocabulary)
    yield "size on disk", f"{megabytes(student.parameters)} in fp32"
    if (embeddings := student.embedding_parameters) is not None:
        yield "in embeddings", _part(embeddings, student.parameters)
        yield "in layers", _part(student.parameters - embeddings, student.parameters)
    if speedup := _speedup(plan):
        yield "arithmetic", f"the teacher takes {speedup:.1f} times as many operations per token"
    yield "initial weights", start(student)
    yield "not trained", _untrained(student)
    if verbose:
        yield "not trained, by name", ", ".join(student.untrained)


def _part(count: int, parameters: int) -> str:
    return f"{count:,} parameters, {megabytes(count)} ({count / parameters:.0%})"


def _untrained(student: StudentFacts) -> str:
    end = ", and random until fine-tuning" if student.has_random_tail else ""
    return (
        f"{len(student.untrained)} of {student.tensors} tensors, {student.untrained_parameters:,} parameters: what"
        f" comes after the queries, keys and values of layer {student.layer}. They stay as initialised{end}."
    )


def _facts(facts: Any, without: set[str] | frozenset[str] = frozenset()) -> Iterator[tuple[str, str]]:
    for key, value in facts:
        if value not in (None, []) and not key.endswith("_sha256") and key not in without:
            yield key.replace("_", " "), _shown(value)


def _shown(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case list():
            return ", ".join(map(str, value))
        case dict():
            return ", ".join(f"{key}={number:g}" for key, number in value.items())
        case _:
            return str(value)


# --- Lines -------------------------------------------------------------------------------------------------------


def _shape(model: TeacherFacts | StudentFacts) -> str:
    total = (model.total_parameters or model.parameters) if isinstance(model, TeacherFacts) else model.parameters
    return f"{model.family}, {model.layers} layers, {model.width} wide, {_millions(total)} parameters"


def _learnt(teacher: TeacherFacts) -> str:
    layers = tapped(teacher)
    if len(layers) > 1:
        return f"layers {_listed(layers)} are learnt"
    return f"layer {teacher.layer} is learnt{f', {teacher.layer_reason}' if teacher.layer_reason else ''}"


def _learning(student: StudentFacts) -> str:
    layers = tapped(student)
    return f"layers {_listed(layers)} learn" if len(layers) > 1 else f"layer {student.layer} learns"


def _listed(numbers: Sequence[int]) -> str:
    """Several numbers in words: `3, 6 and 12`."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 10**6 else f"{count:,}"


def _compression(plan: Plan) -> str:
    total, speedup = plan.teacher.total_parameters, _speedup(plan)
    smaller = f"{total / plan.student.parameters:.1f} × smaller" if total else ""
    faster = f"{speedup:.1f} × less arithmetic" if speedup else ""
    said = ", ".join(filter(None, (smaller, faster)))
    return f" ({said})" if said else ""


def _speedup(plan: Plan) -> float | None:
    """How many times the student's arithmetic the teacher's is, per token."""
    theirs, ours = plan.teacher.operations_per_token, plan.student.operations_per_token
    return theirs / ours if theirs and ours else None


def _data(data: DataFacts) -> str:
    amount = f"{data.sequences:,} sequences of up to {data.max_length} tokens, {data.tokens:,} in all"
    return f"{data.name}: {amount}; {data.held_out:,} sequences held out"


def _training(training: TrainingFacts) -> str:
    said = f"{training.steps:,} steps of {training.batch_size:,} sequences ({training.epochs:.3g} epochs)"
    if training.learning_rate is None:
        return said
    after = "constant" if training.schedule == "constant" else f"{training.schedule} decay"
    return f"{said}; rate {training.learning_rate:g} after {training.warmup_steps:,} warm-up steps, then {after}"


def _hardware(training: TrainingFacts) -> str:
    processes = f"{training.processes} process{'es' if training.processes > 1 else ''}"
    tokens = f"micro-batches of {training.micro_batch_tokens:,} tokens"
    return f"{training.device}, {training.precision}, {processes}; {tokens}"
