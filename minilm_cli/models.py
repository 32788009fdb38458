"""Teacher and student: loading, configuration, starting weights, choice of layers, and the checks of all these.

Ignores the tokens and the training. Everything a user can get wrong here is told as a `MinilmError` before any work.
"""

from __future__ import annotations

import copy
import difflib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import gcd, isfinite
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from minilm_cli.errors import MinilmError, remedy
from minilm_cli.files import read_json
from minilm_cli.hub import loading, quiet, reason
from minilm_cli.seeding import derive
from minilm_cli.taps import ATTENTION, first_position, position_table

logger = logging.getLogger(__name__)

#: Layers found best for the big teachers (MiniLMv2, section 4.1 and table 8); for others the last is the rule.
_BEST_LAYER = {("bert", 24): 21, ("roberta", 24): 19, ("xlm-roberta", 24): 19}

_LARGE_WIDTH = 1024

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

#: What libraries make one by one: of a billion they would, until memory is gone.
_AT_MOST = {"num_hidden_layers": 1000, "num_labels": 100_000}

_PRESET = re.compile(r"l([1-9][0-9]{0,8})-h([1-9][0-9]{0,8})")


def read_teacher_config(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The teacher's configuration, and the entries of its config.json as they stand there.

    name: Hub name or local folder. Raises `MinilmError` if it cannot be loaded, or is not that of an encoder.
    """
    with loading("teacher", name, revision):
        values, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    _check_numbers(values, name)
    with loading("teacher", name, revision):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    _check_teacher(config, name)
    return config, values


def load_teacher(
    name: str,
    *,
    layer: int | str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    config: PreTrainedConfig | None = None,
) -> tuple[PreTrainedModel, int]:
    """The teacher in fp32 and evaluation mode, without the layers above the tapped one; and that layer, 1-based.

    name: Hub name or local folder. layer: 1-based, negative from the last, or `auto`. config: what
    `read_teacher_config` gave, if it was read before.
    Raises `MinilmError` if it cannot be loaded, lacks weights, computes no numbers, or has no such layer.
    """
    if config is None:
        config, _ = read_teacher_config(name, revision=revision, trust_remote_code=trust_remote_code)
    with loading("teacher", name, revision):
        model, report = AutoModel.from_pretrained(
            name,
            config=config,
            revision=revision,
            trust_remote_code=trust_remote_code,
            attn_implementation=ATTENTION,
            dtype=torch.float32,
            output_loading_info=True,
        )
    _refuse_causal(model, "teacher", name)
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing or report["mismatched_keys"]:
        first = missing[0] if missing else min(report["mismatched_keys"])[0]
        raise MinilmError(
            f"the teacher's weights do not fill the model its config describes: {first} is missing", where=name
        )
    layers = model.config.num_hidden_layers
    if layer == "auto":
        layer = _BEST_LAYER.get((model.config.model_type, layers), layers)
    number = resolve_layer(int(layer), layers, setting="teacher.layer")
    _check_weights(model, name)
    _try_out(model, "teacher", name)
    drop_layers_above(model, number)
    return cast(PreTrainedModel, model.eval().requires_grad_(False)), number


def _check_teacher(config: PreTrainedConfig, where: str) -> None:
    _refuse_decoder(config, "teacher", where)
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value < 1:
            raise MinilmError(f"{name} is {value} in the teacher's config.json", where=where)
    padding, vocabulary = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    if padding is not None and vocabulary is not None and not 0 <= padding < vocabulary:
        raise MinilmError(
            f"pad_token_id is {padding} in the teacher's config.json, and its vocab_size {vocabulary}",
            where=where,
            hint="Write the id of its tokenizer's padding token there.",
        )


def _refuse_decoder(config: PreTrainedConfig, side: str, where: str) -> None:
    if config.is_encoder_decoder:
        raise MinilmError(f"the {side} has a decoder, and only encoders can be distilled", where=where)
    if getattr(config, "is_decoder", False):
        raise MinilmError(
            f"is_decoder is true, so the {side} is a causal model and not an encoder",
            where=where,
            hint="Set is_decoder to false if it was trained as an encoder, or choose another model.",
        )


def _refuse_causal(model: PreTrainedModel, side: str, where: str) -> None:
    if any(getattr(module, "is_causal", False) for module in model.modules()):
        raise MinilmError(
            f"the {side} ({model.config.model_type}) is a causal model and not an encoder",
            where=where,
            hint="Choose an encoder, such as BERT or RoBERTa.",
        )


def _check_weights(model: PreTrainedModel, where: str) -> None:
    for name, tensor in model.state_dict().items():
        # The sum is finite if they all are, and takes no memory.
        if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise MinilmError(
                f"the teacher's weights are damaged: {name} has values that are not finite numbers",
                where=where,
                hint="Is it whole? Take another copy of it.",
            )


def _try_out(model: PreTrainedModel, side: str, where: str) -> None:
    """Have a model read one token: a config may describe what can be built and cannot be computed."""
    family = model.config.model_type
    training = model.training
    model.train(False)
    try:
        with quiet(), torch.no_grad():
            found: torch.Tensor = model(input_ids=torch.ones((1, 1), dtype=torch.long))[0]
    except Exception as error:  # whatever a family's own code raises at an odd entry
        raise MinilmError(f"the {side} ({family}) cannot compute: {reason(error)}", where=where) from error
    model.train(training)
    if not found.isfinite().all():
        raise MinilmError(
            f"the {side} ({family}) computes what is not a finite number",
            where=where,
            hint="Look for odd values among the numbers of its config.json.",
        )


def resolve_layer(layer: int, layers: int, *, setting: str) -> int:
    """A 1-based layer from one that may count from the last; raises `MinilmError` if there is no such layer."""
    number = layer if layer > 0 else layers + 1 + layer
    if not 1 <= number <= layers:
        raise MinilmError(f"{setting}: there is no layer {layer} in a model of {layers}")
    return number


def drop_layers_above(model: PreTrainedModel, layer: int) -> None:
    """Free the layers that a tap on `layer` never runs, and the pooler."""
    stack = layer_stack(model, model.config.num_hidden_layers)
    if stack is not None:
        del stack[1][layer:]
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]  # as transformers itself does without one


def layer_stack(model: PreTrainedModel, layers: int) -> tuple[str, nn.ModuleList] | None:
    """The list of the model's `layers` layers and its name, or `None` where they share weights (ALBERT)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return name, module
    return None


def student_config(source: str, teacher: PreTrainedConfig) -> PreTrainedConfig:
    """The student's configuration, what it leaves out of vocabulary, positions and token types taken from the teacher.

    source: a `config.json`, a folder that has one, or a preset `lN-hM` (the teacher's family with N layers of width M,
    12 heads where they divide M, else heads 64 wide, and a feed-forward part of 4 M).
    Raises `MinilmError` for a file that is none, a misspelt or wrong entry, or a vocabulary that is not the teacher's.
    """
    if preset := _PRESET.fullmatch(source):
        values, where = _preset_values(int(preset[1]), int(preset[2]), teacher), source
    else:
        path = _find_config(source)
        values, where = _read_config(path), str(path)
    family = values.setdefault("model_type", teacher.model_type)
    with _valid(values, where):
        known = AutoConfig.for_model(family).to_dict().keys()
    _refuse_misspelt(values, known, where)
    for name in _FROM_TEACHER:
        if values.get(name) is None and name in known and (theirs := _of_teacher(teacher, name)) is not None:
            values[name] = theirs
    with _valid(values, where):
        config = AutoConfig.for_model(family, **{key: value for key, value in values.items() if key != "model_type"})
        config.to_json_string(use_diff=False)  # as the run will keep it
    _check_student(config, teacher, where)
    _check_size(config, where)
    return config


def _of_teacher(teacher: PreTrainedConfig, name: str) -> int | None:
    """An entry of the teacher's; a family without token types may say that it has 0 of them."""
    value: int | None = getattr(teacher, name, None)
    return None if name == "type_vocab_size" and value == 0 else value


def _find_config(source: str) -> Path:
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


def saved_config(path: Path) -> PreTrainedConfig:
    """A student's configuration from the file that a run keeps it in; raises `MinilmError` if that cannot be read."""
    with _valid(_read_config(path), str(path)):
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
    return config


def _read_config(path: Path) -> dict[str, Any]:
    values = read_json(path, kind="student config")
    if not isinstance(values, dict):
        raise MinilmError("a student config is a JSON object", where=str(path))
    return values


@contextmanager
def _valid(values: Mapping[str, Any], where: str) -> Iterator[None]:
    """Check what can be known of a student config before its family looks at it, and tell what that says of it."""
    family = values.get("model_type")
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        raise MinilmError(f"model_type: there is no family {family!r} in transformers", where=where)
    _check_numbers(values, where)
    try:
        with quiet():
            yield
    except Exception as error:  # whatever a family's own validation raises
        raise MinilmError(f"this student config is not valid for {family}: {reason(error)}", where=where) from error


def _check_numbers(values: Mapping[str, Any], where: str) -> None:
    """Refuse what no config.json has for good, before its family makes something of it."""
    family = values.get("model_type")
    names = CONFIG_MAPPING[family].attribute_map if isinstance(family, str) and family in CONFIG_MAPPING else {}
    most = _AT_MOST | {names[name]: number for name, number in _AT_MOST.items() if name in names}
    parts = [values]
    for part in parts:
        for name, value in part.items():
            if isinstance(value, float) and not isfinite(value):
                raise MinilmError(f"{name} must be a finite number, not {value}", where=where)
            if isinstance(value, int) and value > most.get(name, value):
                raise MinilmError(f"{name} is {value}, and must be at most {most[name]}", where=where)
            if isinstance(value, dict):  # a config within the config
                parts.append(value)


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
        # What depends on the number of layers is left to the family's own default.
        if not (isinstance(value, list) and len(value) == teacher.num_hidden_layers)
        and key not in {"architectures", "transformers_version", "dtype", "_name_or_path"}
    }
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    values |= {teacher.attribute_map.get(name, name): size for name, size in sizes.items()}
    feed_forward = teacher.attribute_map.get("intermediate_size", "intermediate_size")
    values[feed_forward if hasattr(teacher, feed_forward) else "hidden_dim"] = 4 * width
    if hasattr(teacher, "num_key_value_heads"):
        values["num_key_value_heads"] = heads
    return {"model_type": teacher.model_type, **values}


def _refuse_misspelt(values: Mapping[str, Any], known: Any, where: str) -> None:
    """An entry the family does not know is harmless and common, unless it looks like one that it does know."""
    for name in values:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if name not in known and near and near[0] not in values and not name.startswith("_"):
            raise MinilmError(f"there is no entry {name!r}", where=where, hint=f"Did you mean {near[0]!r}?")


def _check_student(config: PreTrainedConfig, teacher: PreTrainedConfig, where: str) -> None:
    if not hasattr(config, "vocab_size"):
        raise MinilmError(f"this is no text encoder, but a {config.model_type} model", where=where)
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
                f"{name} is {ours}, and the teacher's is {theirs}", where=where, hint=f"Leave {name} out to take that."
            )
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        value = getattr(config, name, 1 if name == "intermediate_size" else None)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MinilmError(f"{name} must be a whole number above 0, not {value!r}", where=where)
    if config.hidden_size % config.num_attention_heads:
        raise MinilmError(
            f"{config.num_attention_heads} attention heads do not divide a hidden size of {config.hidden_size}",
            where=where,
        )
    _refuse_decoder(config, "student", where)


def _check_size(config: PreTrainedConfig, where: str) -> None:
    """Count the student's parameters before there are any; raises `MinilmError` if memory is too small for them."""
    with _building(config, where), torch.device("meta"):
        model = _random_model(copy.deepcopy(config))
    _refuse_causal(model, "student", where)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    needed, memory = parameters * 4 / 2**30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if needed > memory:
        raise MinilmError(
            f"the student would have {parameters:,} parameters: {needed:,.0f} GiB, and this machine has {memory:,.0f}",
            where=where,
            hint="Lower its layers, its widths or its positions.",
        )
    if longest_input(model) in (0, 1):
        raise MinilmError(
            f"max_position_embeddings is {config.max_position_embeddings}, which leaves the student no room for text",
            where=where,
        )


def build_student(config: PreTrainedConfig, *, seed: int) -> PreTrainedModel:
    """A student in fp32 with the random weights that its family starts from, the same for the same seed.

    Raises `MinilmError` if the family cannot build a model of this configuration, or such a model cannot compute.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "student"))
        with _building(config, "student.config"):
            model = _random_model(config)
        _try_out(model, "student", "student.config")
    return model


def _random_model(config: PreTrainedConfig) -> PreTrainedModel:
    model: PreTrainedModel = AutoModel.from_config(  # type: ignore[no-untyped-call]  # it has no types
        config, attn_implementation=ATTENTION, dtype=torch.float32
    )
    return model


@contextmanager
def _building(config: PreTrainedConfig, where: str) -> Iterator[None]:
    try:
        with quiet():
            yield
    except Exception as error:  # whatever a family's own code raises
        raise MinilmError(f"the student ({config.model_type}) cannot be built: {reason(error)}", where=where) from error


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


def relation_heads(wanted: int | str, teacher_widths: set[int], student_widths: set[int]) -> int:
    """The number of relation heads (MiniLMv2, section 4.1: 48, or 64 for a 1024-wide teacher).

    The widths are those of the projections in use; heads divide every one. `auto` takes the divisor nearest to the
    paper's number. Raises `MinilmError` if a wanted number does not divide.
    """
    common = gcd(*teacher_widths, *student_widths)
    if wanted != "auto":
        if common % int(wanted):
            sides = (("teacher", teacher_widths), ("student", student_widths))
            side, width = next((s, w) for s, widths in sides for w in sorted(widths) if w % int(wanted))
            near = min(_divisors(common), key=lambda divisor: (abs(divisor - int(wanted)), -divisor))
            raise MinilmError(
                f"relations.heads: {wanted} does not divide the {side}'s width of {width}",
                hint=f"The nearest number that divides teacher and student is {near}.",
            )
        return int(wanted)
    target = 64 if _LARGE_WIDTH in teacher_widths else 48
    return min(_divisors(common), key=lambda divisor: (abs(divisor - target), -divisor))


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def longest_input(model: PreTrainedModel) -> int | None:
    """The most tokens the model has positions for, or `None` if it has no table of positions."""
    table = position_table(model)
    return None if table is None else table.num_embeddings - first_position(model)


def unshared_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's state without a second name for a tensor it shares."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen.add(tensor.data_ptr())
            state[name] = tensor
    return state


def refuse_others(given: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Raise `MinilmError` if tensors of a checkpoint have not the names and shapes of ours."""
    theirs, wanted = ({name: tuple(tensor.shape) for name, tensor in side.items()} for side in (given, ours))
    for name in sorted(theirs.keys() | wanted.keys()):
        if theirs.get(name) != wanted.get(name):
            raise MinilmError(
                f"the checkpoint is of another student: {name} is {theirs.get(name, 'absent')} there and"
                f" {wanted.get(name, 'absent')} in the student"
            )
