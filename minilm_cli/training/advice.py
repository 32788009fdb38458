"""Warnings about a plan that is valid but rarely meant."""

from __future__ import annotations

from collections.abc import Iterator

from minilm_cli.runs.plan import Plan
from minilm_cli.training.objective import NARROWEST_HEAD


def advice(plan: Plan) -> Iterator[str]:
    """What is odd about a plan, each with the option that changes it."""
    yield from _about_training(plan)
    yield from _about_student(plan)


def _about_training(plan: Plan) -> Iterator[str]:
    training, sequences = plan.training, plan.data.sequences - plan.data.held_out
    if training.warmup_steps is not None and training.warmup_steps >= training.steps:
        yield (
            f"The warm-up of {training.warmup_steps} steps does not end within the run's {training.steps}: see"
            " --warmup-steps."
        )
    if training.batch_size > sequences:
        yield (
            f"A batch of {training.batch_size:,} sequences is larger than the training data of {sequences:,}: each"
            f" sequence comes {training.batch_size / sequences:.3g} times in every step. See --batch-size."
        )


def _about_student(plan: Plan) -> Iterator[str]:
    teacher, student, relations = plan.teacher, plan.student, plan.relations
    width = min(relations.teacher_head_width, relations.student_head_width)
    if width < NARROWEST_HEAD:
        yield (
            f"With {relations.heads} relation heads, each is {width} wide, which says little about how two tokens"
            " relate: see --relation-heads."
        )
    if student.layers > teacher.layers:
        yield f"The student has {student.layers} layers, more than the teacher, which has {teacher.layers}."
    elif teacher.total_parameters is not None and student.parameters > teacher.total_parameters:
        yield (
            f"The student has {student.parameters:,} parameters, more than the teacher, which has"
            f" {teacher.total_parameters:,}."
        )
