"""Validation with messages in the user's terms: the setting's dotted path, what is wrong, what was given."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from minilm_cli.base.errors import MinilmError
from minilm_cli.settings.flags import setting_names
from minilm_cli.settings.types import shortened

Model = TypeVar("Model", bound=BaseModel)

#: Reasons for kinds of pydantic errors whose own message says more about parsers than about the value.
_REASONS = {
    "model_type": "must be a mapping of names to values",
    **dict.fromkeys(("bool_parsing", "bool_type"), "must be true or false"),
    **dict.fromkeys(("float_parsing", "float_type"), "must be a number"),
    "tuple_type": "must be a list",
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "must be a whole number"),
}


class SettingError(MinilmError):
    """A setting given on the command line is wrong; `where` is its dotted path."""


def validate(
    model: type[Model], values: Mapping[str, Any], *, where: str | None = None, overrides: Collection[str] = ()
) -> Model:
    """Build `model` from nested values; raises `MinilmError` about the first that is wrong.

    where: the file that the values are from, but for `overrides`: the dotted paths given on the command line.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explain(model, error, where, overrides) from None


def setting_error(path: str, reason: str, where: str | None = None, *, hint: str | None = None) -> MinilmError:
    """The error about a setting: of a file `where`, else of the command line."""
    if where is None:
        return SettingError(reason, where=path or None, hint=hint)
    return MinilmError(f"{path}: {reason}" if path else reason, where=where, hint=hint)


def unknown_setting(path: str, known: Sequence[str], where: str | None = None) -> MinilmError:
    """The error for a dotted path that names no setting, with the closest of the `known` ones."""
    # The right name in the wrong section, or without one, is the best guess: `lr` is meant to be `optimizer.lr`.
    near = [name for name in known if name.rpartition(".")[2] == path.rpartition(".")[2]]
    near += difflib.get_close_matches(path, known, n=1)
    hint = f"Did you mean {near[0]}?" if near else "The reference page “Settings” lists them all."
    return MinilmError(f"there is no setting {path or 'without a name'}", where=where, hint=hint)


def _explain(
    model: type[BaseModel], error: ValidationError, where: str | None, overrides: Collection[str]
) -> MinilmError:
    known = setting_names(model)
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["type"] == "extra_forbidden":
        path = ".".join(map(str, first["loc"]))
        return unknown_setting(path, known, None if path in overrides else where)
    path = _path(first["loc"], known)
    where = None if path in overrides else where
    # One value may be wrong in several ways: a union has an error for each of its types.
    about = (entry for entry in errors if _path(entry["loc"], known) == path)
    first_reason, *others = dict.fromkeys(_reason(entry["type"], entry["msg"]) for entry in about)
    reasons = [first_reason, *(other.removeprefix("must be ") for other in others)]
    given = first["input"]
    shown = f" (given: {shortened(given)})" if isinstance(given, str | int | float | bool) else ""
    return setting_error(path, " or ".join(reasons) + shown, where)


def _path(location: tuple[int | str, ...], known: Sequence[str]) -> str:
    """The setting that a pydantic error is about; the rest of its location names list items and types of a union."""
    path = ""
    for part in location:
        longer = f"{path}.{part}" if path else str(part)
        if not any(name == longer or name.startswith(f"{longer}.") for name in known):
            break
        path = longer
    return path


def _reason(kind: str, message: str) -> str:
    if kind in _REASONS:
        return _REASONS[kind]
    reason = message.removeprefix("Value error, ").replace("Input should be", "must be")
    return reason[0].lower() + reason[1:]
