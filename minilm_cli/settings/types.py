"""Number types and base classes of all settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

#: Characters of a wrong value that are shown.
LONGEST_SHOWN = 200


def _no_bool(value: Any) -> Any:
    """`true` is no number, whatever Python says."""
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004  # pydantic takes ValueErrors
    return value


_Number = BeforeValidator(_no_bool)


PositiveInt = Annotated[int, Field(gt=0, le=2**62), _Number]


NonNegativeInt = Annotated[int, Field(ge=0, le=2**62), _Number]


PositiveFloat = Annotated[float, Field(gt=0), _Number]


NonNegativeFloat = Annotated[float, Field(ge=0), _Number]


Weight = Annotated[float, Field(gt=0, le=10**6), _Number]


Share = Annotated[float, Field(ge=0, lt=1), _Number]


InAStep = Annotated[int, Field(gt=0, le=2**24), _Number]
"""What fp32 can count: processes tell each other such numbers so."""


Length = Annotated[int, Field(ge=2, le=2**21), _Number]


def _encodable(path: str | Path) -> str:
    """A path for a message of pydantic's, which takes no half characters."""
    return str(path).encode(errors="replace").decode()


def _cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Section(BaseModel):
    """A group of settings: frozen, and strict about names."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )
    ONLY_READ: ClassVar[frozenset[str]] = frozenset()
    """The names of files that may be no UTF-8, as those on disk may: nothing is written with them."""

    @field_validator("*")
    @classmethod
    def _can_be_named(cls, value: Any, info: ValidationInfo) -> Any:
        """Paths and names are given to the system, and written as UTF-8."""
        for name in value if isinstance(value, tuple | dict) else (value,):
            if isinstance(name, str | Path):
                text = str(name)
                if "\0" in text:
                    raise ValueError("must have no null character")
                try:
                    os.fsencode(text) if info.field_name in cls.ONLY_READ else text.encode()
                except UnicodeEncodeError:
                    raise ValueError("must be Unicode text") from None
        return value


class Flags(Section):
    """Settings that no file holds: what is wrong with one is told as it is typed."""

    TYPED: ClassVar[Mapping[str, str]] = {}
    """How, for those that are typed otherwise than by a flag of their name."""


def _short(value: str | float | bool) -> str:
    # Python writes no integer of thousands of digits, but in hexadecimal.
    text = hex(value) if isinstance(value, int) and value.bit_length() > LONGEST_SHOWN else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
