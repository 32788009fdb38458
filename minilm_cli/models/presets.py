"""Students by a short name: `l6-h384` in the teacher's family, `bert:l6-h384` in another."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.families import family_of

_PRESET = re.compile(r"(?:([^:/]+):)?l([1-9][0-9]{0,8})-h([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Preset:
    """A number of layers and a width."""

    name: str
    """As it was given."""
    family: str | None
    """`None` for the teacher's."""
    layers: int
    width: int

    @classmethod
    def parse(cls, name: str) -> Preset | None:
        """The preset of this name, or `None` if it is not of their form."""
        found = _PRESET.fullmatch(name)
        return found and cls(name, found[1], int(found[2]), int(found[3]))

    def entries(self, default: PreTrainedConfig, teacher: PreTrainedConfig) -> dict[str, Any]:
        """The entries of the student's configuration; `default` is its family's.

        It has 12 heads where they divide the width, else heads 64 wide, and the teacher's ratio of the feed-forward
        width to the hidden size. In the teacher's family all else is the teacher's, in another as the family has it.
        Raises `MinilmError` if the width has no such heads.
        """
        if default.model_type == teacher.model_type:
            return self._entries_of_teacher(teacher) | family_of(teacher).sizes(teacher, *self._sizes())
        ours, theirs = family_of(default), family_of(teacher)
        entries = dict(ours.preset) | ours.sizes(default, *self._sizes())
        feed_forward = default.attribute_map.get(ours.feed_forward, ours.feed_forward)
        if feed_forward in entries and hasattr(teacher, theirs.feed_forward):
            entries[feed_forward] = round(getattr(teacher, theirs.feed_forward) * self.width / teacher.hidden_size)
        return entries

    def _sizes(self) -> tuple[int, int, int]:
        """Layers, width and heads."""
        heads = 12 if self.width % 12 == 0 else self.width // 64 if self.width % 64 == 0 else 0
        if not heads:
            raise MinilmError(
                f"a width of {self.width} divides neither into 12 heads nor into heads 64 wide",
                where=f"student.config {self.name}",
                hint="Write a config.json with the heads you want.",
            )
        return self.layers, self.width, heads

    @staticmethod
    def _entries_of_teacher(teacher: PreTrainedConfig) -> dict[str, Any]:
        return {
            key: value
            for key, value in teacher.to_diff_dict().items()
            # An entry for each layer is left to the family's default.
            if not (isinstance(value, list) and len(value) == teacher.num_hidden_layers)
            and key not in {"architectures", "transformers_version", "dtype", "_name_or_path", "model_type"}
        }
