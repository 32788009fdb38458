"""The samples of public-domain text that come with the package."""

from __future__ import annotations

from pathlib import Path

_DATA = Path(__file__).parents[1] / "data"

#: A sentence or verse a line.
SAMPLE = _DATA / "public-domain-sample.txt"

#: 900 of its lines, and which of three books each is from.
BOOKS = _DATA / "public-domain-books.tsv"
