"""`--help`, drawn with rich: one panel a group of options, names never cut.

Typer's own drawing cuts names and defaults at 80 columns.
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

#: Columns of the widest help; longer lines are hard to read.
WIDEST = 120

_NO_BREAK = "\u00a0"


@dataclass(frozen=True)
class Row:
    """An option or argument as the help and the reference pages show it."""

    names: tuple[str, ...]
    metavar: str
    help: str
    default: str
    required: bool
    panel: str
    path: str
    """Dotted path of its setting; empty if it has none."""


def rows(command: Any, context: typer.Context) -> list[Row]:
    """What a command takes, `--help` included."""
    declared = getattr(command.callback, "declared", {})
    found = []
    for parameter in command.get_params(context):
        option = declared.get(parameter.name)
        is_argument = parameter.param_type_name == "argument"
        argument = f"{parameter.metavar}{'...' if parameter.nargs < 0 else ''}"
        default = parameter.show_default
        if default is True:
            default = "" if parameter.default in (None, False) else str(parameter.default)
        found.append(
            Row(
                names=(argument,) if is_argument else (*parameter.opts, *parameter.secondary_opts),
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
    console.width = min(console.width, WIDEST)
    panels: dict[str, list[tuple[str, str, str]]] = {}
    for row in rows(command, context):
        panels.setdefault(row.panel, []).append((", ".join(row.names), row.metavar, _meaning(row)))
    panels["Options"] = panels.pop("Options")  # last
    for name, subcommand in getattr(command, "commands", {}).items():
        panels.setdefault("Commands", []).append((name, "", subcommand.help))
    with console.capture() as captured:
        console.print(f"Usage: {usage(command, context)}\n", style="bold", markup=False)
        console.print(f"{command.help}\n", markup=False)
        width = max(len(name) + 1 + len(metavar) for lines in panels.values() for name, metavar, _ in lines)
        for title, lines in panels.items():
            _print_panel(console, title, lines, width)
    return captured.get()


def _meaning(row: Row) -> str:
    default = f"[default: {row.default}]" if row.default else ""
    bracket = "[required]" if row.required else default
    return f"{row.help} {bracket.replace(' ', _NO_BREAK)}".strip()


def _print_panel(console: Console, title: str, lines: list[tuple[str, str, str]], width: int) -> None:
    """Print a panel of options: names and metavar in a column of `width`, their meaning next to it."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    room = max(console.width - width - 6, 10)  # borders and padding take 6 columns
    for name, metavar, meaning in lines:
        # textwrap, unlike rich, does not break at no-break spaces: `[default: tokens]` stays on one line.
        wrapped = Text("\n".join(textwrap.wrap(meaning, room, break_on_hyphens=False)))
        wrapped.highlight_regex(r"\[required\]$", "red")
        wrapped.highlight_regex(r"\[default:[^\]]*\]$", "dim")
        table.add_row(Text.assemble((name, "bold cyan"), " ", (metavar, "yellow"), no_wrap=True), wrapped)
    table.columns[0].width = width
    console.print(Panel(table, title=title, title_align="left", border_style="dim"))
