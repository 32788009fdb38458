"""Settings from files, `--set` and flags, and messages about what is wrong with them."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from minilm_cli.base.errors import MinilmError, remedy
from minilm_cli.settings.distill import CHANGEABLE_MID_RUN, DistillSettings
from minilm_cli.settings.types import Flags, _encodable, _short

#: Characters of a settings file: thirty times what all settings take. Parsing YAML takes hundreds of times as much.
LONGEST_FILE = 2**16

#: What parsers raise. PyYAML takes a value to be what its tag says it is: `!!bool x` is a KeyError.
_NOT_PARSED = (
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


Model = TypeVar("Model", bound=BaseModel)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted paths: `{"optimizer": {"lr": 1}}` becomes `{"optimizer.lr": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, Mapping) and dotted not in ("relations.weights", "data.path"):
            flat.update(flatten(value, f"{dotted}."))
        else:
            flat[dotted] = value
    return flat


def setting_names(model: type[BaseModel] = DistillSettings, prefix: str = "") -> list[str]:
    """The dotted path of every setting, in the order they are declared."""
    names = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += setting_names(field.annotation, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return names


class _Loader(yaml.SafeLoader):
    """The safe loader; it refuses a key given twice, where the last would count, and merging.

    A few lines that merge one another make mappings of billions of entries.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not read", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
        super().flatten_mapping(node)


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506  # it is a safe loader


def _parse_json(text: str) -> Any:
    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) < len(pairs):
            (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
            raise ValueError(f"{name} is given twice")
        return seen

    return json.loads(text, object_pairs_hook=mapping)


def read_settings_file(path: Path) -> dict[str, Any]:
    """Parse a `.yaml`, `.toml` or `.json` settings file into nested dictionaries; raises `MinilmError`."""
    parsers: dict[str, Callable[[str], Any]] = {
        ".yaml": _parse_yaml,
        ".yml": _parse_yaml,
        ".toml": tomllib.loads,
        ".json": _parse_json,
    }
    parser = parsers.get(path.suffix.lower())
    if parser is None:
        raise MinilmError("a settings file ends in .yaml, .toml or .json", where=str(path))
    if path.exists() and not path.is_file():  # a pipe may never end
        raise MinilmError("the settings file cannot be read: it is not a file", where=str(path))
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST_FILE + 1)
    except FileNotFoundError:
        raise MinilmError("there is no such settings file", where=str(path)) from None
    except OSError as error:
        message = f"the settings file cannot be read: {error.strerror}"
        raise MinilmError(message, where=str(path), hint=remedy(error)) from None
    except UnicodeDecodeError as error:
        raise MinilmError(f"the settings file cannot be read: {error}", where=str(path)) from None
    if len(text) > LONGEST_FILE:
        raise MinilmError(f"the settings file is longer than {LONGEST_FILE:,} characters", where=str(path))
    try:
        value = parser(text)
    except _NOT_PARSED as error:
        message = " ".join(str(error).split())
        raise MinilmError(f"the settings file cannot be parsed: {message}", where=str(path)) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MinilmError("a settings file holds a mapping of names to values", where=str(path))
    return value


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` strings of `--set` as dotted paths; the values are read as YAML. Raises `MinilmError`."""
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip("."):
            raise MinilmError(
                f"--set wants KEY=VALUE, not {assignment!r}", hint="For example: --set optimizer.weight_decay=0.1"
            )
        if key in parsed:
            raise MinilmError(f"--set gives {key} twice")
        try:
            parsed[key] = _parse_yaml(text)
        except _NOT_PARSED:
            parsed[key] = text
    return parsed


def combine(flags: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Flags that are given (not `None`) and `--set` assignments, by dotted path; none may be given both ways."""
    given = {dotted: value for dotted, value in flags.items() if value is not None}
    assigned = parse_assignments(assignments)
    for dotted in assigned.keys() & given.keys():
        raise MinilmError(f"{dotted} is given by its flag and by --set", hint="Give it once.")
    return given | assigned


def _merge(into: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, name = dotted.split(".")
    for section in sections:
        child = into.setdefault(section, {})
        if not isinstance(child, dict):
            raise _unknown(dotted, None)
        into = child
    into[name] = value


def validate(model: type[Model], values: Mapping[str, Any], *, where: str | None = None) -> Model:
    """Build `model` from plain values; raises `MinilmError` in the user's terms."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explain(model, error, where) from None


def load_distill_settings(
    file: Path | None = None, assignments: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> DistillSettings:
    """Settings from a file, overridden by `--set` assignments and flags (dotted paths; `None` is not given).

    A list for `data.path` is one of words, PATH or PATH:WEIGHT.
    Raises `MinilmError` for a file that cannot be read, an unknown or twice given setting, or a wrong value.
    """
    # A section with nothing in it, as where all its lines are commented out, is read as null.
    read = read_settings_file(file) if file else {}
    values = {name: {} if value is None and name != "output" else value for name, value in read.items()}
    overrides = combine(flags or {}, assignments)
    # Of the two ways to say how long to train, the command line's replaces the file's.
    for name, other in (("training.steps", "training.epochs"), ("training.epochs", "training.steps")):
        if name in overrides and other not in overrides and isinstance(values.get("training"), dict):
            values["training"].pop(other.partition(".")[2], None)
    for dotted, value in overrides.items():
        _merge(values, dotted, value)
    where, data = str(file) if file else None, values.get("data")
    if isinstance(data, dict) and isinstance(words := data.get("path"), list) and _all_words(words):
        data["path"] = _typed_stores(words, where)
    for required, flag in (("teacher.name", "--teacher"), ("student.config", "--student-config")):
        section, name = required.split(".")
        if not isinstance(values.get(section, {}), dict) or values.get(section, {}).get(name) is None:
            raise MinilmError(f"{flag} is missing", hint=f"Give {flag}, or {required} in a settings file (--config).")
    return validate(DistillSettings, values, where=where)


def _all_words(values: list[Any]) -> TypeGuard[list[str]]:
    return all(isinstance(value, str) for value in values)


def _typed_stores(words: Sequence[str], where: str | None) -> tuple[Path, ...] | dict[Path, float]:
    """What words name: the weight is what follows the last colon, unless there is a file of the whole name."""
    stores: dict[Path, float | None] = {}
    for word in words:
        name, _, number = word.rpartition(":")
        weight = None
        if name and not os.path.lexists(word):
            try:
                weight = float(number)
            except ValueError:
                if os.path.lexists(name):
                    raise MinilmError(
                        f"data.path: {_encodable(word)}: {_encodable(number)!r} is not a weight", where=where
                    ) from None
        path = Path(word if weight is None else name)
        if path in stores:
            raise MinilmError(
                f"data.path: {_encodable(path)} is given twice", where=where, hint="Give each token store once."
            )
        stores[path] = weight
    weights = {path: weight for path, weight in stores.items() if weight is not None}
    if not weights:
        return tuple(stores)
    for path in stores:
        if path not in weights:
            raise MinilmError(
                f"data.path: {_encodable(path)} has no weight, and another has",
                where=where,
                hint="Give all a weight, or none.",
            )
    return weights


def change_mid_run(settings: DistillSettings, changes: Mapping[str, Any]) -> DistillSettings:
    """A run's settings with `changes` (dotted paths); raises `MinilmError` for what may not change mid-run."""
    values = settings.model_dump()
    for dotted, value in changes.items():
        if dotted not in setting_names():
            raise _unknown(dotted, None)
        if dotted not in CHANGEABLE_MID_RUN:
            raise MinilmError(
                f"{dotted} may not change while a run goes on",
                hint="These may: " + ", ".join(sorted(CHANGEABLE_MID_RUN)) + ".",
            )
        if dotted == "training.steps" and value is None:
            raise MinilmError("training.steps: a number of steps is wanted")
        _merge(values, dotted, value)
    return validate(DistillSettings, values)


def _unknown(dotted: str, where: str | None, known: Sequence[str] | None = None) -> MinilmError:
    known = setting_names() if known is None else known
    # A name without its section is as close as it gets: `lr` is meant to be `optimizer.lr`.
    near = [name for name in known if name.rpartition(".")[2] == dotted.rpartition(".")[2]]
    near += difflib.get_close_matches(dotted, known, n=1)
    hint = f"Did you mean {near[0]}?" if near else "The reference page “Settings” lists all there are."
    return MinilmError(f"there is no setting {dotted or 'without a name'}", where=where, hint=hint)


def _explain(model: type[BaseModel], error: ValidationError, where: str | None) -> MinilmError:
    """The first thing wrong, in the user's terms."""
    first = error.errors(include_url=False)[0]
    # pydantic names the branch of a union it tried last (`int`, `literal[...]`): no part of a setting's path.
    known = setting_names(model)
    dotted = ""
    for part in first["loc"]:
        candidate = f"{dotted}.{part}" if dotted else str(part)
        if first["type"] != "extra_forbidden" and not any(
            n == candidate or n.startswith(candidate + ".") for n in known
        ):
            break
        dotted = candidate
    if first["type"] == "extra_forbidden":
        return _unknown(dotted, where, known)
    reasons = [
        entry["msg"].removeprefix("Value error, ")
        for entry in error.errors(include_url=False)
        if entry["loc"][: len(dotted.split("."))] == tuple(dotted.split("."))
    ] or [first["msg"].removeprefix("Value error, ")]
    reasons = [reason.replace("Input should be", "must be") for reason in reasons]
    message = " or ".join(dict.fromkeys(reason[0].lower() + reason[1:] for reason in reasons))
    given = first["input"]
    shown = f" (given: {_short(given)})" if isinstance(given, str | int | float | bool) else ""
    name = dotted
    if dotted and issubclass(model, Flags):
        name = model.TYPED.get(dotted, f"--{dotted.replace('_', '-')}")
    return MinilmError(f"{name}: {message}{shown}" if name else message, where=where)
