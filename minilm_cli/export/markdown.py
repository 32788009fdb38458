"""Markdown that text from elsewhere, such as names and prompts, cannot break."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"[\\`*\[\]<>~&$]|(?<!\w)_|_(?!\w)")


def plain(text: object) -> str:
    """Text that is shown as it is, in one line."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(str(text).split()))


def code(text: str) -> str:
    """Text in one line, in the font of code."""
    text = " ".join(text.splitlines())
    if "`" not in text:
        return f"`{text}`"
    fence = "`" * (1 + max(len(ticks) for ticks in re.findall("`+", text)))
    return f"{fence} {text} {fence}"


def block(language: str, text: str) -> str:
    """Lines of code."""
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def table(rows: Iterable[Sequence[str]], header: Sequence[str] = ("", "")) -> str:
    """A table of cells, which are Markdown; vertical bars in them are shown."""
    lines = [_row(header), "|" + "---|" * len(header), *map(_row, rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in (cell.replace("|", "\\|") for cell in cells))
