"""The student's configuration: a file or a preset, completed from the teacher and checked against it."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from minilm_cli.base.errors import MinilmError, remedy
from minilm_cli.base.jsonio import read_json
from minilm_cli.models.checks import check_numbers, refuse_decoder, refuse_unsuitable
from minilm_cli.models.families import Family, family_of, other_words
from minilm_cli.models.hub import quiet, reason
from minilm_cli.models.size import count_parameters, weightless
from minilm_cli.models.student import building

logger = logging.getLogger(__name__)

#: What a student config may leave to the teacher, because it must fit the teacher's tokens.
_FROM_TEACHER = (
    "vocab_size",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "cls_token_id",
    "sep_token_id",
    "max_position_embeddings",
    "type_vocab_size",
)

#: Entries of many a config.json that this transformers ignores, and that do not change the model.
_NO_EFFECT = {
    "architectures",
    "auto_map",
    "gradient_checkpointing",
    "model_type",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}

_PRESET = re.compile(r"l([1-9][0-9]{0,8})-h([1-9][0-9]{0,8})")


def student_config(source: str, teacher: PreTrainedConfig) -> PreTrainedConfig:
    """The student's configuration; vocabulary, positions and token types that it leaves out are the teacher's.

    source: a `config.json`, a folder that has one, or a preset `lN-hM` (the teacher's family with N layers of width M,
    12 heads where they divide M, else heads 64 wide, and every other width in the teacher's proportion).
    Raises `MinilmError` for a file that is not a configuration, a misspelt or wrong entry, or another vocabulary.
    """
    if preset := _PRESET.fullmatch(source):
        values, where = _preset_values(int(preset[1]), int(preset[2]), teacher), source
    else:
        path = _find(source)
        values, where = _read(path), str(path)
    family = values.setdefault("model_type", teacher.model_type)
    with _valid(values, where):
        default = AutoConfig.for_model(family)
    known = default.to_dict().keys() | default.attribute_map.keys()
    if not preset:  # what a teacher's config.json has besides is not the user's
        _check_names(values, known, family_of(default), where)
    for name in _FROM_TEACHER:
        if values.get(name) is None and name in known and (theirs := _of_teacher(teacher, name)) is not None:
            values[name] = theirs
    with _valid(values, where):
        config = AutoConfig.for_model(family, **{key: value for key, value in values.items() if key != "model_type"})
        config.to_json_string(use_diff=False)  # as the run will save it
    _check_against(teacher, config, where)
    _check_sizes(config, where)
    refuse_decoder(config, "student", where)
    _check_memory(config, where)
    return config


def saved_config(path: Path) -> PreTrainedConfig:
    """A student's configuration from the file that a run keeps it in; raises `MinilmError` if it cannot be read."""
    with _valid(_read(path), str(path)):
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
    return config


# --- From a file or a preset -------------------------------------------------------------------------------------


def _find(source: str) -> Path:
    path = Path(source)
    try:
        if path.is_dir():
            return path / "config.json"
        if path.exists():
            return path
    except OSError as error:
        message = f"this student config cannot be read: {error.strerror}"
        raise MinilmError(message, where=source, hint=remedy(error)) from None
    hint = "Name a config.json, a folder that has one, or a preset such as l6-h384."
    raise MinilmError("there is no such student config", where=source, hint=hint)


def _read(path: Path) -> dict[str, Any]:
    values = read_json(path, kind="student config")
    if not isinstance(values, dict):
        raise MinilmError("a student config is a JSON object", where=str(path))
    return values


def _preset_values(layers: int, width: int, teacher: PreTrainedConfig) -> dict[str, Any]:
    heads = 12 if width % 12 == 0 else width // 64 if width % 64 == 0 else 0
    if not heads:
        raise MinilmError(
            f"a width of {width} divides neither into 12 heads nor into heads 64 wide",
            where=f"student.config l{layers}-h{width}",
            hint="Write a config.json with the heads you want.",
        )
    values = {
        key: value
        for key, value in teacher.to_diff_dict().items()
        # An entry for each layer is left to the family's default.
        if not (isinstance(value, list) and len(value) == teacher.num_hidden_layers)
        and key not in {"architectures", "transformers_version", "dtype", "_name_or_path"}
    }
    return {"model_type": teacher.model_type, **values, **family_of(teacher).sizes(teacher, layers, width, heads)}


# --- Checks ------------------------------------------------------------------------------------------------------


@contextmanager
def _valid(values: Mapping[str, Any], where: str) -> Iterator[None]:
    """Check what can be known of a student config without its family's code, and report what that code refuses."""
    family = values.get("model_type")
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        raise MinilmError(f"model_type: there is no family {family!r} in transformers", where=where)
    check_numbers(values, where)
    try:
        with quiet():
            yield
    except Exception as error:  # anything that a family's own validation raises
        raise MinilmError(f"this student config is not valid for {family}: {reason(error)}", where=where) from error


def _check_names(values: Mapping[str, Any], known: Collection[str], family: Family, where: str) -> None:
    """Refuse an entry that the family lacks and another family has, or that is misspelt; warn of other unknown ones.

    An entry that stands next to the one it might mean is not a mistake, only without effect.
    """
    ignored = []
    for name, value in values.items():
        if name in known or name in _NO_EFFECT or name.startswith("_"):
            continue
        meant = next((word for word in other_words(name) if word in known), None)
        if meant is None:
            meant = next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.8)), None)
        if meant is not None and meant not in values:
            hint = f"Did you mean {meant!r}?"
            raise MinilmError(f"there is no entry {name!r} in the family {family.name}", where=where, hint=hint)
        if (name, value) != ("position_embedding_type", "absolute"):  # all that transformers 5 has, and the old default
            ignored.append(name)
    if ignored:
        logger.warning("%s: %s models have no %s: ignored.", where, family.name, ", ".join(ignored))


def _of_teacher(teacher: PreTrainedConfig, name: str) -> int | None:
    """An entry of the teacher's; a family without token types may say that it has 0 of them."""
    value: int | None = getattr(teacher, name, None)
    return None if name == "type_vocab_size" and value == 0 else value


def _check_against(teacher: PreTrainedConfig, config: PreTrainedConfig, where: str) -> None:
    """Teacher and student read the same tokens."""
    if not hasattr(config, "vocab_size"):
        raise MinilmError(f"this is not a text encoder, but a {family_of(config).name} model", where=where)
    if config.vocab_size != teacher.vocab_size:
        raise MinilmError(
            f"vocab_size is {config.vocab_size}, and the teacher's is {teacher.vocab_size}",
            where=where,
            hint="Teacher and student read the same tokens: leave vocab_size out, and it is taken from the teacher.",
        )
    for name in ("pad_token_id", "type_vocab_size"):
        ours, theirs = getattr(config, name, None), _of_teacher(teacher, name)
        if ours is not None and theirs is not None and ours != theirs:
            raise MinilmError(
                f"{name} is {ours}, and the teacher's is {theirs}",
                where=where,
                hint=f"Leave {name} out, and it is taken from the teacher.",
            )


def _check_sizes(config: PreTrainedConfig, where: str) -> None:
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        value = getattr(config, name, 1 if name == "intermediate_size" else None)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MinilmError(f"{name} must be a whole number above 0, not {value!r}", where=where)
    if config.hidden_size % config.num_attention_heads:
        raise MinilmError(
            f"{config.num_attention_heads} attention heads do not divide a hidden size of {config.hidden_size}",
            where=where,
        )


def _check_memory(config: PreTrainedConfig, where: str) -> None:
    """Count the student's parameters without making them; raises `MinilmError` if memory is too small for them."""
    with building(config, "student", where):
        model = weightless(config)
    assert model is not None, "a student's family is one of transformers'"
    refuse_unsuitable(model, "student", where)
    parameters = count_parameters(model)
    needed, memory = parameters * 4 / 2**30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if needed > memory:
        raise MinilmError(
            f"the student would have {parameters:,} parameters: {needed:,.0f} GiB, and this machine has {memory:,.0f}",
            where=where,
            hint="Lower its layers, its widths or its positions.",
        )
    if family_of(config).longest_input(model) in (0, 1):
        raise MinilmError(
            f"max_position_embeddings is {config.max_position_embeddings}, which leaves the student no room for text",
            where=where,
        )
