"""How settings are typed on the command line.

A setting's `Flag` stands in the `Annotated` metadata of its field, next to its type, default and docstring. The
commands, `--help`, the reference pages and the messages all read it from there.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from minilm_cli.settings.types import Section

#: What stands for a value of each type.
_METAVARS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Flag:
    """The command line's name of a setting, and what its field does not say."""

    name: str
    """`--lr`, `--compile/--no-compile`, or for an argument a name without dashes: `INPUT`."""
    short: str = ""
    """A second name: `-o`."""
    metavar: str = ""
    """What stands for the value; by default derived from the field's type."""
    default: str = ""
    """Words for a default that the field does not hold, such as `all cores`."""
    repeatable: bool = False
    """Whether it may be given several times, each adding a value."""


@dataclass(frozen=True)
class Option:
    """A setting that has a flag."""

    model: type[BaseModel]
    """The model that has the field."""
    path: str
    """Dotted path of the setting."""
    flag: Flag
    field: FieldInfo
    panel: str
    """Heading under which `--help` lists it."""

    @property
    def name(self) -> str:
        """What messages call it: `--lr`, `--compile`, `INPUT`."""
        return self.flag.name.partition("/")[0]

    @property
    def is_argument(self) -> bool:
        """Whether it is given by position."""
        return not self.flag.name.startswith("-")

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.field.annotation is bool

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.field.is_required() and not self.flag.default

    @property
    def help(self) -> str:
        """The first sentence of the field's docstring, without backticks."""
        text = docstrings(self.model)[self.path.rpartition(".")[2]]
        sentence = re.match(r".*?\.(?=\s|$)", text)
        return (sentence.group() if sentence else text).replace("`", "")

    @property
    def metavar(self) -> str:
        """What stands for the value: `N`, `auto|N`, `linear|cosine|constant`."""
        return self.flag.metavar or _metavar(self.field.annotation)

    @property
    def default(self) -> str:
        """The default as it would be typed; empty if there is none to show."""
        if self.flag.default:
            return self.flag.default
        value = self.field.get_default()
        if isinstance(value, bool) and "/" in self.flag.name:
            on, off = self.flag.name.replace("--", "").split("/")
            return on if value else off
        return "" if self.field.is_required() or value is False else as_typed(value)


def options(model: type[BaseModel], prefix: str = "") -> Iterator[Option]:
    """The settings of a model that have a flag, in the order of their declaration."""
    for name, field in model.model_fields.items():
        if section := section_of(field):
            yield from options(section, f"{prefix}{name}.")
        for flag in field.metadata:
            if isinstance(flag, Flag):
                yield Option(model, f"{prefix}{name}", flag, field, model.PANEL if issubclass(model, Section) else "")


def setting_names(model: type[BaseModel]) -> list[str]:
    """The dotted path of every setting of a model, in the order of their declaration."""
    return list(setting_fields(model))


def setting_fields(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """The field of every setting of a model by its dotted path, in the order of their declaration."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        if section := section_of(field):
            found |= setting_fields(section, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = field
    return found


def choices(annotation: Any) -> tuple[str, ...]:
    """The words that a type allows: `("auto",)` of `Literal["auto"] | int`."""
    if get_origin(annotation) is Literal:
        return tuple(word for word in get_args(annotation) if isinstance(word, str))
    if get_origin(annotation) in (Union, UnionType, Annotated, tuple):
        return tuple(word for argument in get_args(annotation) for word in choices(argument))
    return ()


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The string below each field of a model, as one line.

    pydantic has `use_attribute_docstrings`, which takes 50 ms at every start of the program.
    """
    found = {}
    for field, below in pairwise(_classes(model.__module__)[model.__name__].body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that holds further settings."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def as_typed(value: Any) -> str:
    """A value of a setting as text: `0.0006`, `qq=1,kk=1`; nothing for `None` and empty lists."""
    if value is None or value == ():
        return ""
    if isinstance(value, Mapping):
        return ",".join(f"{key}={number:g}" for key, number in value.items())
    if isinstance(value, tuple):
        return " ".join(map(as_typed, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _metavar(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "|".join(arguments)
    if origin in (Union, UnionType):
        return "|".join(_metavar(argument) for argument in arguments if argument is not NoneType)
    if origin in (Annotated, tuple):
        return _metavar(arguments[0])
    return _METAVARS.get(annotation, "")
