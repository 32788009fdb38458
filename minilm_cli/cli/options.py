"""The options of a command, derived from its settings model: nothing is declared here that a field declares."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.cli.completion import completer
from minilm_cli.settings.flags import Option, options
from minilm_cli.settings.validation import SettingError

Typed = dict[str, Any]
"""What was typed, by dotted path: text, a list of text, or a bool. Parsing it is left to the settings model."""

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]


def options_of(model: type[BaseModel]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command: it gets the options that the fields of `model` declare, besides the parameters of its own.

    Its first parameter, a `Typed`, receives what the user typed. An error about one of these settings names its flag.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        declared = {option.path.replace(".", "_"): option for option in options(model)}
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

        def run(**arguments: Any) -> None:
            values = {option.path: arguments.pop(name) for name, option in declared.items()}
            typed = {path: value for path, value in values.items() if value not in (None, [])}
            with _naming_flags({option.path: option.name for option in declared.values() if option.path in typed}):
                command(typed, **arguments)

        parameters = [*(_parameter(name, option) for name, option in declared.items()), *own]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # as functools.wraps sets it
        run.declared = declared  # type: ignore[attr-defined]  # read by the help
        return run

    return decorate


def _parameter(name: str, option: Option) -> inspect.Parameter:
    kind = bool if option.is_switch else list[str] if option.flag.repeatable else str
    complete = None if option.is_switch else completer(option)
    if option.is_argument:
        info = typer.Argument(metavar=option.name, show_default=option.default or False, autocompletion=complete)
    else:
        info = typer.Option(
            *(name for name in (option.flag.name, option.flag.short) if name),
            metavar=None if option.is_switch else option.metavar,
            show_default=option.default or False,
            rich_help_panel=option.panel,
            autocompletion=complete,
        )
    default = inspect.Parameter.empty if option.is_argument and option.required else None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind | None, info], default=default
    )


@contextmanager
def _naming_flags(names: Mapping[str, str]) -> Iterator[None]:
    """Within the block, an error about one of these settings (by dotted path) names its flag instead.

    Later checks, such as of the device, put the dotted path in front of a `MinilmError`.
    """
    try:
        yield
    except MinilmError as error:
        for path, flag in names.items():
            if error.where == path and (isinstance(error, SettingError) or "." in path):  # no file named `output`
                error.where = flag
            elif error.where is None and error.message.startswith(f"{path}: "):
                error.where, error.message = flag, error.message.removeprefix(f"{path}: ")
        raise
