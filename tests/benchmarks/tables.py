"""The columns, units and digits of the benchmark tables, on the terminal and in the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Column(NamedTuple):
    """A column: the key in the JSON, the title with its unit, the format of a value."""

    key: str
    title: str
    shown: str


TABLES = {
    "relation_loss": (
        Column("length", "length, tokens", "{:,}"),
        Column("batch", "batch", "{:,}"),
        Column("ms", "minilm, ms", "{:,.1f}"),
        Column("plain_ms", "plain, ms", "{:,.1f}"),
        Column("times_faster", "times faster", "{:.2f}"),
        Column("extra_mb", "minilm, extra MB", "{:,.0f}"),
        Column("plain_extra_mb", "plain, extra MB", "{:,.0f}"),
    ),
    "training": (
        Column("name", "trainer", "{}"),
        Column("sequences_per_second", "sequences/s", "{:,.1f}"),
        Column("tokens_per_second", "tokens/s", "{:,.0f}"),
        Column("times_faster", "times faster", "{:.2f}"),
        Column("share_of_gemm", "share of GEMM rate", "{:.0%}"),
        Column("peak_mb", "peak MB", "{:,.0f}"),
    ),
    "families": (
        Column("name", "family", "{}"),
        Column("tokens_per_second", "tokens/s", "{:,.0f}"),
        Column("times_faster", "relative to BERT, packed", "{:.2f}"),
        Column("padding", "padding", "{:.0%}"),
        Column("of_one_length", "relative to sequences of one length", "{:.2f}"),
    ),
    "tokenisation": (
        Column("name", "tokeniser", "{}"),
        Column("tokens_per_second", "tokens/s", "{:,.0f}"),
        Column("mb_per_second", "MB of text/s", "{:.2f}"),
        Column("times_faster", "times faster", "{:.2f}"),
        Column("peak_mb", "peak MB", "{:,.0f}"),
    ),
    "tokenisation_memory": (
        Column("megabytes", "text, MB", "{:,.0f}"),
        Column("tokens", "tokens", "{:,}"),
        Column("peak_mb", "peak MB", "{:,.0f}"),
    ),
    "token_store": (
        Column("sequences", "sequences", "{:,}"),
        Column("open_seconds", "to open, s", "{:.3f}"),
        Column("extra_mb", "memory it takes, MB", "{:,.0f}"),
        Column("batch_ms", "a batch of 256, ms", "{:.2f}"),
    ),
    "help": (Column("cpu_seconds", "CPU s of minilm --help", "{:.2f}"),),
}


def titles(section: str) -> list[str]:
    """The titles of a section's columns."""
    return [column.title for column in TABLES[section]]


def cells(section: str, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The values of a section's rows as text; a missing value is a dash."""
    return [
        [column.shown.format(row[column.key]) if column.key in row else "–" for column in TABLES[section]]
        for row in rows
    ]
