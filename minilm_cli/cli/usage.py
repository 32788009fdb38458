"""`--help`: a panel for each group of options, with names and defaults that are never cut.

Typer's own panels cut both at 80 columns. These are drawn without rich, whose import would take a quarter of the time.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from minilm_cli.base.errors import MinilmError
from minilm_cli.cli import suggestions

#: Where the documentation is published.
DOCUMENTATION = "https://minilm-cli.github.io/minilm/"

#: Columns of the help: narrower would cut names, and longer lines are hard to read.
_NARROWEST, _WIDEST = 60, 120

_DIMMED = re.compile(r"\[(default:.*|required)\]")


@dataclass(frozen=True)
class Row:
    """An option or argument as the help and the reference pages show it."""

    names: tuple[str, ...]
    help: str
    metavar: str = ""
    default: str = ""
    required: bool = False
    panel: str = ""
    path: str = ""
    """Dotted path of its setting."""

    @property
    def name(self) -> str:
        """All names: `--output, -o`."""
        return ", ".join(self.names)


def rows(command: Any, context: typer.Context) -> list[Row]:
    """What a command takes, `--help` included."""
    declared = getattr(command.callback, "declared", {})
    found = []
    for parameter in command.get_params(context):
        option = declared.get(parameter.name)
        is_argument = parameter.param_type_name == "argument"
        if is_argument:
            names = (f"{parameter.metavar}{'...' if parameter.nargs < 0 else ''}",)
        else:  # sorted: typer has the names of --help in a set
            names = (*sorted(parameter.opts, key=len, reverse=True), *parameter.secondary_opts)
        default = parameter.show_default
        if default is True:
            default = "" if parameter.default in (None, False) else str(parameter.default)
        found.append(
            Row(
                names=names,
                metavar="" if is_argument else parameter.metavar or "",
                help=option.help if option else parameter.help or "",
                default=default or "",
                required=option.required if option else parameter.required,
                panel="Arguments" if is_argument else parameter.rich_help_panel or "Options",
                path=option.path if option else "",
            )
        )
    return found


def usage(command: Any, context: typer.Context) -> str:
    """The form of a command line: `minilm export [RUN] [OPTIONS]`."""
    if isinstance(command, TyperGroup):
        return f"{context.command_path} [OPTIONS] COMMAND [ARGUMENTS]"
    arguments = [row for row in rows(command, context) if row.panel == "Arguments"]
    names = [row.names[0] if row.required else f"[{row.names[0]}]" for row in arguments]
    return " ".join([context.command_path, *names, "[OPTIONS]"])


def documentation(command: Any) -> str:
    """The address of the page about a command, or about the program."""
    return DOCUMENTATION if isinstance(command, TyperGroup) else f"{DOCUMENTATION}reference/{command.name}/"


def option_hint(name: str, context: Any) -> str | None:
    """What may be meant by an option that the command of this context lacks; `None` if there is no guess."""
    commands = context.find_root().command.commands
    elsewhere = {other: _options(command, context) for other, command in commands.items()}
    elsewhere.pop(context.info_name, None)
    return suggestions.option_hint(name, _options(context.command, context), elsewhere)


def _options(command: Any, context: Any) -> list[str]:
    return [name for parameter in command.get_params(context) for name in parameter.opts if name.startswith("-")]


class Command(TyperCommand):
    """A command with our help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help into `formatter`."""
        formatter.write(_page(self, ctx))


class Group(TyperGroup):
    """The program with our help."""

    def get_params(self, ctx: Any) -> Any:
        """The program's own options, with a default where typer would build a pydantic validator: 25 ms."""
        parameters: list[Any] = super().get_params(ctx)
        for parameter in parameters:
            if parameter.is_flag and parameter.default is None:
                parameter.default = False
        return parameters

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` begin with; raises `MinilmError` with a suggestion if there is none."""
        if args[0] not in self.commands and not ctx.resilient_parsing:
            raise MinilmError(f"no such command: {args[0]}", hint=suggestions.command_hint(args[0], self.commands))
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help into `formatter`."""
        formatter.write(_page(self, ctx))


def _page(command: Any, context: typer.Context) -> str:
    panels: dict[str, list[Row]] = {}
    for row in rows(command, context):
        panels.setdefault(row.panel, []).append(row)
    panels["Options"] = panels.pop("Options")  # last
    for name, subcommand in getattr(command, "commands", {}).items():
        panels.setdefault("Commands", []).append(Row(names=(name,), help=subcommand.help))
    columns = min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)
    width = max(len(f"{row.name} {row.metavar}") for group in panels.values() for row in group)
    lines = [typer.style(f"Usage: {usage(command, context)}", bold=True), ""]
    lines += [*textwrap.wrap(command.help, columns), ""]
    for title, group in panels.items():
        lines += _panel(title, group, width, columns)
    examples = command.epilog.splitlines()
    lines += ["", typer.style("Example:" if len(examples) == 1 else "Examples:", bold=True)]
    lines += [f"  {example}" for example in examples]
    lines += ["", f"Documentation: {documentation(command)}"]
    return "\n".join(lines) + "\n"


def _panel(title: str, group: list[Row], width: int, columns: int) -> Iterator[str]:
    """The lines of a panel: names and metavars in a column of `width`, the meanings next to it."""
    room = columns - width - 6  # for the border and the space between the columns
    border = typer.style("│", dim=True)
    yield typer.style(f"╭─ {title} {'─' * (columns - len(title) - 5)}╮", dim=True)
    for row in group:
        left = typer.style(row.name, fg="cyan", bold=True) + f" {row.metavar}".ljust(width - len(row.name))
        for line in _wrapped(row, room):
            right = _DIMMED.sub(lambda found: typer.style(found[0], dim=True), line.ljust(room))
            yield f"{border} {left}  {right} {border}"
            left = " " * width
    yield typer.style(f"╰{'─' * (columns - 2)}╯", dim=True)


def _wrapped(row: Row, width: int) -> list[str]:
    """The help of an option in lines of `width`; `[default: …]` stays on one line if it fits."""
    default = f"[default: {row.default}]" if row.default else ""
    bracket = "[required]" if row.required else default
    if len(bracket) <= width:  # textwrap does not break lines at no-break spaces
        bracket = bracket.replace(" ", "\u00a0")
    lines = textwrap.wrap(f"{row.help} {bracket}", width, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines]
