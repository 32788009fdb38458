"""The sample of public-domain text that comes with the package, a sentence or verse a line."""

from __future__ import annotations

from pathlib import Path

SAMPLE = Path(__file__).parents[1] / "data" / "public-domain-sample.txt"
