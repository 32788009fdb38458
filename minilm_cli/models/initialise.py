"""Starting weights of a student, copied from its teacher."""

from __future__ import annotations

from transformers import PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.families import layer_stack


def init_from_teacher(student: PreTrainedModel, layer: int, teacher: PreTrainedModel, teacher_layer: int) -> None:
    """Copy evenly spaced teacher layers, and the embeddings, into a student of the same family and widths.

    Student layer i, up to the trained one (`layer`), starts as teacher layer round(i × teacher_layer / layer); student
    layers above it keep their random weights. Raises `MinilmError` if a tensor does not fit.
    """
    ours, theirs = layer_stack(student, student.config.num_hidden_layers), layer_stack(teacher, teacher_layer)
    if student.config.model_type != teacher.config.model_type:
        raise MinilmError(
            f"--init teacher: the student is of the family {student.config.model_type!r} and the teacher of"
            f" {teacher.config.model_type!r}",
            hint="Use --init random, or a student of the teacher's family.",
        )
    state = teacher.state_dict()
    chosen = student.state_dict()
    for name in list(chosen):
        source = name
        if ours and theirs and name.startswith(ours[0] + "."):
            number, _, rest = name.removeprefix(ours[0] + ".").partition(".")
            if int(number) >= layer:
                continue
            source = f"{theirs[0]}.{evenly_spaced(layer, teacher_layer)[int(number)] - 1}.{rest}"
        if source not in state:
            if "pooler" in name:
                continue
            raise MinilmError(f"--init teacher: the teacher has no {source}", hint="Use --init random.")
        if state[source].shape != chosen[name].shape:
            raise MinilmError(
                f"--init teacher: {name} is {tuple(chosen[name].shape)} in the student and"
                f" {tuple(state[source].shape)} in the teacher",
                hint="Starting from the teacher needs a student of its widths; use --init random for another.",
            )
        chosen[name] = state[source]
    student.load_state_dict(chosen)


def evenly_spaced(layers: int, of: int) -> list[int]:
    """`layers` 1-based layers out of `of`, evenly spaced, ending with the last: 3 of 6 are 2, 4 and 6."""
    return [max(1, round(number * of / layers)) for number in range(1, layers + 1)]
