"""Settings of `minilm distill` from a file, `--set` and flags."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from minilm_cli.base.errors import MinilmError
from minilm_cli.settings.distill import CHANGEABLE_MID_RUN, DistillSettings
from minilm_cli.settings.files import PARSE_ERRORS, parse_yaml, read_settings_file
from minilm_cli.settings.flags import options, setting_names
from minilm_cli.settings.types import encodable
from minilm_cli.settings.validation import setting_error, unknown_setting, validate

_NAMES = tuple(setting_names(DistillSettings))


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted paths: `{"optimizer": {"lr": 1}}` becomes `{"optimizer.lr": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and path not in _NAMES:
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` strings of `--set` as dotted paths; the values are read as YAML. Raises `MinilmError`."""
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip("."):
            raise MinilmError(
                f"--set needs KEY=VALUE, not {assignment!r}", hint="For example: --set optimizer.weight_decay=0.1"
            )
        if path in parsed:
            raise MinilmError(f"--set gives {path} twice", hint="Give it once.")
        try:
            parsed[path] = parse_yaml(text)
        except PARSE_ERRORS:
            parsed[path] = text
    return parsed


def combine(flags: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Flags that are given (not `None`) and `--set` assignments, by dotted path.

    Raises `MinilmError` for a setting that is given both ways.
    """
    given = {path: value for path, value in flags.items() if value is not None}
    assigned = parse_assignments(assignments)
    for path in assigned.keys() & given.keys():
        raise setting_error(path, "given both by its own option and by --set", hint="Give it once.")
    return given | assigned


#: Settings of which one is given, by section.
_ALTERNATIVES = {"training": ("steps", "epochs"), "student": ("config", "max_mb", "max_params")}


def load_distill_settings(
    file: Path | None = None, assignments: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> DistillSettings:
    """Settings from a file, overridden by `--set` assignments and flags (by dotted path; `None` is not given).

    If `data.path` is a list of text, each item is PATH or PATH:WEIGHT.
    Raises `MinilmError` for an unreadable file, and for a setting that is unknown, missing, wrong or given twice.
    """
    read = read_settings_file(file) if file else {}
    # A section whose lines are all commented out is read as null.
    values = {name: {} if value is None and name != "output" else value for name, value in read.items()}
    overrides = combine(flags or {}, assignments)
    _override_alternatives(values, overrides)
    for path, value in overrides.items():
        merge(values, path, value)
    where = str(file) if file else None
    _split_weights(values, None if "data.path" in overrides else where)
    _refuse_missing(values)
    return validate(DistillSettings, values, where=where, overrides=overrides)


def change_mid_run(settings: DistillSettings, changes: Mapping[str, Any]) -> DistillSettings:
    """A run's settings with `changes` (by dotted path); raises `MinilmError` for what must not change mid-run."""
    values = settings.model_dump()
    for path, value in changes.items():
        if path not in _NAMES:
            raise unknown_setting(path, _NAMES)
        if path not in CHANGEABLE_MID_RUN:
            changeable = ", ".join(sorted(CHANGEABLE_MID_RUN))
            raise setting_error(path, "cannot change when a run is resumed", hint=f"These can: {changeable}.")
        if path == "training.steps" and value is None:
            raise setting_error(path, "must be a number of steps")
        merge(values, path, value)
    return validate(DistillSettings, values)


def _override_alternatives(values: dict[str, Any], overrides: Collection[str]) -> None:
    """Of settings that exclude each other, one on the command line replaces any in the file."""
    for section, names in _ALTERNATIVES.items():
        given = values.get(section)
        if isinstance(given, dict) and any(f"{section}.{name}" in overrides for name in names):
            for name in names:
                given.pop(name, None)


def merge(into: dict[str, Any], path: str, value: Any) -> None:
    """Put the value of a dotted path into nested settings."""
    *sections, name = path.split(".")
    for section in sections:
        child = into.setdefault(section, {})
        if not isinstance(child, dict):
            raise unknown_setting(path, _NAMES)
        into = child
    into[name] = value


def _refuse_missing(values: Mapping[str, Any]) -> None:
    for option in options(DistillSettings):
        section, _, name = option.path.partition(".")
        inside = values.get(section)
        if option.required and (inside is None or (isinstance(inside, dict) and inside.get(name) is None)):
            hint = f"Give {option.name}, or {option.path} in a settings file (--config)."
            raise MinilmError(f"{option.name} is missing", hint=hint)
    student = values.get("student") or {}
    if isinstance(student, dict) and all(student.get(name) is None for name in _ALTERNATIVES["student"]):
        hint = "Give it, or --max-mb or --max-params, or student.config in a settings file (--config)."
        raise MinilmError("--student-config is missing", hint=hint)


def _split_weights(values: Mapping[str, Any], where: str | None) -> None:
    """Split the items of a list of token stores into path and weight.

    The weight follows the last colon, unless a file has the whole name.
    """
    data = values.get("data")
    if not isinstance(data, dict):
        return
    words = data.get("path")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return
    stores: dict[Path, float | None] = {}
    for word in words:
        path, weight = _split_weight(word, where)
        if path in stores:
            hint = "Give each token store once."
            raise setting_error("data.path", f"{encodable(path)} is given twice", where, hint=hint)
        stores[path] = weight
    weights = {path: weight for path, weight in stores.items() if weight is not None}
    for path in stores:
        if weights and path not in weights:
            hint = "Give a weight for each token store, or for none."
            raise setting_error("data.path", f"{encodable(path)} has no weight, but another has", where, hint=hint)
    data["path"] = weights or tuple(stores)


def _split_weight(word: str, where: str | None) -> tuple[Path, float | None]:
    name, _, number = word.rpartition(":")
    if not name or os.path.lexists(word):
        return Path(word), None
    try:
        return Path(name), float(number)
    except ValueError:
        if os.path.lexists(name):
            reason = f"{encodable(word)}: {encodable(number)!r} is not a weight"
            raise setting_error("data.path", reason, where) from None
        return Path(word), None
