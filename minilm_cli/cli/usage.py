"""`--help`, drawn with rich: a panel for each group of options.

Typer's own help cuts names and defaults at 80 columns.
"""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from rich.console import Console

#: Columns of the help: narrower would cut names, and longer lines are hard to read.
_NARROWEST, _WIDEST = 60, 120


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
    def title(self) -> str:
        """Names and metavar."""
        return f"{', '.join(self.names)} {self.metavar}".strip()


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
                help=parameter.help or "",
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


class Command(TyperCommand):
    """A command with our help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help into `formatter`."""
        formatter.write(_page(self, ctx))


class Group(TyperGroup):
    """The program with our help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help into `formatter`."""
        formatter.write(_page(self, ctx))


def _page(command: Any, context: typer.Context) -> str:
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    console.width = min(max(console.width, _NARROWEST), _WIDEST)
    panels: dict[str, list[Row]] = {}
    for row in rows(command, context):
        panels.setdefault(row.panel, []).append(row)
    panels["Options"] = panels.pop("Options")  # last
    for name, subcommand in getattr(command, "commands", {}).items():
        panels.setdefault("Commands", []).append(Row(names=(name,), help=subcommand.help))
    width = max(len(row.title) for group in panels.values() for row in group)
    with console.capture() as captured:
        console.print(f"Usage: {usage(command, context)}\n", style="bold", markup=False)
        console.print(f"{command.help}\n", markup=False)
        for title, group in panels.items():
            _print_panel(console, title, group, width)
    return captured.get()


def _print_panel(console: Console, title: str, group: list[Row], width: int) -> None:
    """Print a panel: names and metavars in a column of `width`, the meanings next to it."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for row in group:
        name = Text.assemble((", ".join(row.names), "bold cyan"), (f" {row.metavar}", "yellow"), no_wrap=True)
        meaning = Text(_wrapped(row, console.width - width - 6))  # borders and padding take 6 columns
        meaning.highlight_regex(r"\[required\]$", "red")
        meaning.highlight_regex(r"\[default:[^\]]*\]$", "dim")
        table.add_row(name, meaning)
    table.columns[0].width = width
    console.print(Panel(table, title=title, title_align="left", border_style="dim"))


def _wrapped(row: Row, width: int) -> str:
    """The help of an option in lines of `width`; `[default: …]` stays on one line if it fits."""
    default = f"[default: {row.default}]" if row.default else ""
    bracket = "[required]" if row.required else default
    if len(bracket) <= width:  # rich breaks lines at no-break spaces, textwrap does not
        bracket = bracket.replace(" ", "\u00a0")
    return "\n".join(textwrap.wrap(f"{row.help} {bracket}", width, break_on_hyphens=False))
