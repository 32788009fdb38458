"""The student's configuration: a file or a preset, completed from the teacher and checked against it."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from minilm_cli.base.errors import MinilmError, remedy
from minilm_cli.base.jsonio import read_json
from minilm_cli.models.checks import check_numbers, refuse_decoder, refuse_unsuitable
from minilm_cli.models.families import Family, family_of, other_words
from minilm_cli.models.hub import quiet, reason
from minilm_cli.models.inherited import inherited_entries, read_as_many
from minilm_cli.models.presets import Preset
from minilm_cli.models.size import count_parameters, weightless
from minilm_cli.models.student import building
from minilm_cli.models.vocabulary import SPECIAL_IDS, refuse_other_tokens

logger = logging.getLogger(__name__)

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


def student_config(
    source: str, teacher: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None, *, trimmed: bool = False
) -> PreTrainedConfig:
    """The student's configuration; what it leaves out of vocabulary, positions and token types fits the teacher.

    source: a `config.json`, a folder that has one, or a `Preset`. tokenizer: the teacher's. It names the special
    tokens, which the teacher's configuration does without it, and one next to the config.json is compared with it.
    trimmed: the vocabulary will be trimmed, so what the source says of its own is left out.
    Raises `MinilmError` for a file that is not a configuration, a misspelt or wrong entry, or another vocabulary.
    """
    preset = Preset.parse(source)
    if preset is None:
        path = _find(source)
        values, where = _read(path), str(path)
        if trimmed:
            values = {name: value for name, value in values.items() if name not in ("vocab_size", *SPECIAL_IDS)}
    else:
        values, where = {"model_type": preset.family or teacher.model_type}, source
    default = _family_default(values, teacher, where)
    known = {*default.to_dict(), *default.attribute_map}
    if preset is None:
        _check_names(values, known, family_of(default), where)
    else:
        with _valid(values, where):
            values |= preset.entries(default, teacher)
    inherited = inherited_entries(teacher, tokenizer)
    left_out = [name for name in inherited if name in known and values.get(name) is None]
    values |= {name: inherited[name] for name in left_out}
    with _valid(values, where):
        config = AutoConfig.for_model(**values)
        config.to_json_string(use_diff=False)  # as the run will save it
    if preset is None and tokenizer is not None and not trimmed:
        refuse_other_tokens(tokenizer, path.parent)
    _check_tokens(config, teacher, tokenizer, where)
    _check_sizes(config, default, where)
    refuse_decoder(config, "student", where)
    if "max_position_embeddings" in left_out:
        read_as_many(config.max_position_embeddings, config, _weightless(config, where))
    _check_model(config, tokenizer, where)
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
    hint = "Name a config.json, a folder that has one, or a preset such as l6-h384 or bert:l6-h384."
    raise MinilmError("there is no such student config", where=source, hint=hint)


def _read(path: Path) -> dict[str, Any]:
    values = read_json(path, kind="student config")
    if not isinstance(values, dict):
        raise MinilmError("a student config is a JSON object", where=str(path))
    return values


def _family_default(values: dict[str, Any], teacher: PreTrainedConfig, where: str) -> PreTrainedConfig:
    """The configuration that a student's family has by default, the teacher's family if it names none."""
    family = values.setdefault("model_type", teacher.model_type)
    with _valid(values, where):
        default: PreTrainedConfig = AutoConfig.for_model(family)
    if not hasattr(default, "vocab_size"):
        raise MinilmError(f"this is not a text encoder, but a {family} model", where=where)
    return default


# --- Checks ------------------------------------------------------------------------------------------------------


@contextmanager
def _valid(values: Mapping[str, Any], where: str) -> Iterator[None]:
    """Check what can be known of a student config without its family's code, and report what that code refuses."""
    family = values.get("model_type")
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        raise MinilmError(
            f"model_type: there is no family {family!r} in transformers", where=where, hint=_near_families(str(family))
        )
    check_numbers(values, where)
    try:
        with quiet():
            yield
    except MinilmError:
        raise
    except Exception as error:  # anything that a family's own validation raises
        raise MinilmError(f"this student config is not valid for {family}: {reason(error)}", where=where) from error


def _near_families(name: str) -> str:
    """A hint with the families of text encoders whose names are like this one."""
    encoders = MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys() - MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.keys()
    near = difflib.get_close_matches(name.lower(), sorted(encoders), cutoff=0.75)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    return "Families have the names that transformers gives them in model_type, such as bert, roberta or modernbert."


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


def _check_tokens(
    config: PreTrainedConfig, teacher: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None, where: str
) -> None:
    """Teacher and student read the same tokens.

    Their numbers of token types may differ: training uses the first alone, and an exported tokenizer gives as many as
    the student has.
    """
    if config.vocab_size != teacher.vocab_size:
        raise MinilmError(
            f"vocab_size is {config.vocab_size}, and the teacher's is {teacher.vocab_size}",
            where=where,
            hint="Teacher and student read the same tokens: leave vocab_size out, and it is taken from the teacher."
            " For a student that keeps only some of them, give --keep-vocab too.",
        )
    # The padding's embedding is not trained, and RoBERTa's positions skip it: it must be no other token.
    padding = [getattr(side, "pad_token_id", None) for side in (config, tokenizer, teacher)]
    theirs = [value for value in padding[1:] if value is not None]
    if padding[0] is not None and theirs and padding[0] not in theirs:
        raise MinilmError(
            f"pad_token_id is {padding[0]}, and the teacher's is {theirs[0]}",
            where=where,
            hint="Leave pad_token_id out, and it is taken from the teacher.",
        )
    for name in SPECIAL_IDS:
        value = getattr(config, name, None)
        if isinstance(value, int) and not 0 <= value < config.vocab_size:
            raise MinilmError(
                f"{name} is {value}, and the teacher's vocabulary has {config.vocab_size} tokens",
                where=where,
                hint=f"Leave {name} out, and it is taken from the teacher.",
            )


def _check_sizes(config: PreTrainedConfig, default: PreTrainedConfig, where: str) -> None:
    optional = {"intermediate_size", "type_vocab_size"}
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "type_vocab_size"):
        value = getattr(config, name, 1 if name in optional else None)
        # DeBERTa has 0 token types by default.
        lowest = 0 if name == "type_vocab_size" and getattr(default, name, None) == 0 else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise MinilmError(f"{name} must be a whole number above {lowest - 1}, not {value!r}", where=where)
    if config.hidden_size % config.num_attention_heads:
        raise MinilmError(
            f"{config.num_attention_heads} attention heads do not divide a hidden size of {config.hidden_size}",
            where=where,
        )


def _weightless(config: PreTrainedConfig, where: str) -> PreTrainedModel:
    """The student without weights; raises `MinilmError` if its family cannot build it."""
    with building(config, "student", where):
        model = weightless(config)
    assert model is not None, "a student's family is one of transformers'"
    return model


def _check_model(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None, where: str) -> None:
    """Check the student without weights; raises `MinilmError` if it is no encoder, too large, or reads nothing."""
    model = _weightless(config, where)
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
    _warn_of_padding(config, model, tokenizer)


def _warn_of_padding(
    config: PreTrainedConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Warn of a family whose padding is fixed, as MPNet's is, where that id is another token of the teacher's."""
    fixed = getattr(model.get_input_embeddings(), "padding_idx", None)
    if fixed is not None and fixed != config.pad_token_id and tokenizer is not None:
        logger.warning(
            "%s models take token %d for padding, so the teacher's token %r gets no embedding of its own.",
            family_of(config).name,
            fixed,
            tokenizer.convert_ids_to_tokens(fixed),
        )
