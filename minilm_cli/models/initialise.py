"""Starting weights of a student: those of teacher layers, or of another model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.families import family_of
from minilm_cli.models.inputs import Inputs
from minilm_cli.models.layer_maps import RelationHeads
from minilm_cli.models.layers import spaced_by_pairs
from minilm_cli.models.shrink import shrink
from minilm_cli.models.state import unshared_state

logger = logging.getLogger(__name__)


def init_from_teacher(
    student: PreTrainedModel,
    layers: Sequence[int],
    teacher: PreTrainedModel,
    teacher_layers: Sequence[int],
    *,
    sample: Inputs,
    relations: RelationHeads,
) -> float | None:
    """Start a student of the teacher's family from evenly spaced teacher layers and the embeddings.

    layers, teacher_layers: those that are compared, in pairs. Each student layer of a pair starts as its teacher layer,
    and those before it as layers evenly spaced up to that (see `spaced_by_pairs`); student layers above the last keep
    their random weights. A student of the teacher's widths and heads gets copies. Any other is fitted to what the
    teacher computes of the sample (see `models.shrink`), so that the relations of tapped layers are kept; returns the
    share of the hidden states' second moments that its width keeps then.
    Raises `MinilmError` if the families differ, or this one cannot be of another size.
    """
    ours, theirs = family_of(student.config), family_of(teacher.config)
    if ours != theirs:
        raise MinilmError(
            f"--init teacher: the student is of the family {ours.name!r} and the teacher of {theirs.name!r}",
            hint="Use --init random, or a student of the teacher's family.",
        )
    wanted, state = _sources(student, layers, teacher, teacher_layers), teacher.state_dict()
    copied = {name: found for name, source in wanted.items() if (found := _source(name, source, state)) is not None}
    chosen = student.state_dict()
    same_heads = ours.head_sizes(student.config) == theirs.head_sizes(teacher.config)
    if same_heads and all(tensor.shape == chosen[name].shape for name, tensor in copied.items()):
        student.load_state_dict(chosen | copied)
        return None
    chosen_layers = spaced_by_pairs(layers, teacher_layers)
    logger.info("Fitting the student to the teacher's layers %s.", ", ".join(map(str, chosen_layers)))
    return shrink(student, teacher, chosen_layers, teacher_layers, sample, relations)


def init_from_model(student: PreTrainedModel, model: PreTrainedModel, name: str) -> None:
    """Start a student from the weights of a model of its configuration; raises `MinilmError` if they do not fit.

    name: of the model, for messages.
    """
    ours, theirs = unshared_state(student), model.state_dict()
    for key, tensor in ours.items():
        if "pooler" in key:
            continue
        found = theirs.get(key)
        if found is None or found.shape != tensor.shape:
            other_rows = found is not None and found.shape[1:] == tensor.shape[1:] and "embedding" in key
            there = "absent" if found is None else f"{tuple(found.shape)}"
            raise MinilmError(
                f"--init: {key} is {tuple(tensor.shape)} in the student and {there} in this model",
                where=name,
                hint=f"Keep its tokens: --keep-vocab {name}"
                if other_rows
                else "Give its config.json as --student-config.",
            )
    student.load_state_dict({key: theirs.get(key, tensor) for key, tensor in student.state_dict().items()})


def _source(name: str, wanted: str, state: Mapping[str, Tensor]) -> Tensor | None:
    """The teacher's tensor; `None` for that of a pooler, which it may lack. Raises `MinilmError` if it has no other."""
    # In T5, the first layer has the biases of relative positions for all layers.
    found = state.get(wanted, state.get(name))
    if found is None and "pooler" not in name:
        raise MinilmError(f"--init teacher: the teacher has no {wanted}", hint="Use --init random.")
    return found


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
