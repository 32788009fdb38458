"""The table of families in the documentation, from the families that are tested.

python -m tests.families_page          write it into docs/families.md
python -m tests.families_page --check  fail if the page has another
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedModel

from minilm_cli.models.families import family_of, is_rotary
from minilm_cli.models.projections import uses_registry
from tests.families import FAMILIES, FamilyCase

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
_BEGIN, _END = "<!-- families -->\n", "<!-- /families -->\n"

_LAYOUTS = {"packed": "packed", "padded": "padded", "equal": "of one length"}


def main(arguments: list[str]) -> int:
    """Write the table, or compare it; returns the exit status."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(_BEGIN)
    after = rest.split(_END)[1]
    wanted = f"{before}{_BEGIN}{table()}{_END}{after}"
    if arguments == ["--check"]:
        return int(page != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


def table() -> str:
    """All families, a row each, and those that cannot be fitted to another size."""
    rows = [
        ("family, `model_type`", "read at, batches", "positions", "trained weights"),
        ("---",) * 4,
        *(_row(case) for case in FAMILIES),
    ]
    copied = ", ".join(case.title for case in FAMILIES if not case.fitted)
    note = (
        f"\n**Only copied** with `--init teacher`, so that the student needs the teacher's widths and heads: {copied}."
        " All others can be of another size.\n"
    )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows) + note


def _row(case: FamilyCase) -> tuple[str, ...]:
    model = case.model()
    read_at = "attention" if uses_registry(model) else "projections"
    positions = ", ".join(_positions(model))
    return f"{case.title}<br>`{case.name}`", f"{read_at}, {_LAYOUTS[case.layout]}", positions, case.real


def _positions(model: PreTrainedModel) -> Iterator[str]:
    family = family_of(model.config)
    if is_rotary(model.config):
        yield "rotary"
    elif family.position_table(model) is not None:
        yield f"table, from {family.first_position(model)}"
    if any("rel_embeddings" in name or "relative_attention_bias" in name for name, _ in model.named_parameters()):
        yield "relative"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
