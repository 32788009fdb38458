"""Starting weights of a student, copied from its teacher."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.families import family_of
from minilm_cli.models.layers import spaced_by_pairs


def init_from_teacher(
    student: PreTrainedModel, layers: Sequence[int], teacher: PreTrainedModel, teacher_layers: Sequence[int]
) -> None:
    """Copy evenly spaced teacher layers, and the embeddings, into a student of the same family and widths.

    layers, teacher_layers: those that are compared, in pairs. Each student layer of a pair starts as its teacher layer,
    and those before it as layers evenly spaced up to that (see `spaced_by_pairs`); student layers above the last keep
    their random weights. Raises `MinilmError` if a tensor does not fit.
    """
    ours, theirs = family_of(student.config), family_of(teacher.config)
    if ours != theirs:
        raise MinilmError(
            f"--init teacher: the student is of the family {ours.name!r} and the teacher of {theirs.name!r}",
            hint="Use --init random, or a student of the teacher's family.",
        )
    sources = _sources(student, layers, teacher, teacher_layers)
    state, chosen = teacher.state_dict(), student.state_dict()
    for name, wanted in sources.items():
        # In T5, the first layer has the biases of relative positions for all layers.
        source = wanted if wanted in state else name
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


def _sources(
    student: PreTrainedModel, layers: Sequence[int], teacher: PreTrainedModel, teacher_layers: Sequence[int]
) -> dict[str, str]:
    """The teacher's tensor that each of the student's starts from, by name."""
    family = family_of(student.config)
    ours = family.layer_stack(student, student.config.num_hidden_layers)
    theirs = family.layer_stack(teacher, teacher_layers[-1])
    sources = {name: name for name in student.state_dict()}
    if ours is None or theirs is None:
        return sources
    chosen = spaced_by_pairs(layers, teacher_layers)
    for name in list(sources):
        if not name.startswith(f"{ours[0]}."):
            continue
        number, _, rest = name.removeprefix(f"{ours[0]}.").partition(".")
        if int(number) < len(chosen):
            sources[name] = f"{theirs[0]}.{chosen[int(number)] - 1}.{rest}"
        else:
            del sources[name]
    return sources
