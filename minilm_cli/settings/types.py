"""Number types, text helpers and the base class of all settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

#: Characters of a wrong value that a message shows.
LONGEST_SHOWN = 200


def _refuse_bool(value: Any) -> Any:
    """Python counts `True` as a number; a settings file does not."""
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004  # pydantic expects a ValueError
    return value


#: Metadata of every number type: `true` and `false` are not numbers.
NotBool = BeforeValidator(_refuse_bool)

PositiveInt = Annotated[int, Field(gt=0, le=2**62), NotBool]
NonNegativeInt = Annotated[int, Field(ge=0, le=2**62), NotBool]
PositiveFloat = Annotated[float, Field(gt=0), NotBool]
NonNegativeFloat = Annotated[float, Field(ge=0), NotBool]
Share = Annotated[float, Field(ge=0, lt=1), NotBool]
Length = Annotated[int, Field(ge=2, le=2**21), NotBool]

InAStep = Annotated[int, Field(gt=0, le=2**24), NotBool]
"""A count that is exact in fp32, in which the processes add such counts up."""


def encodable(path: str | Path) -> str:
    """A path as valid Unicode: pydantic's messages cannot hold lone surrogates."""
    return str(path).encode(errors="replace").decode()


def shortened(value: str | float | bool) -> str:
    """The `repr` of a value, cut to `LONGEST_SHOWN` characters."""
    # Python refuses to write integers of thousands of digits in decimal.
    text = hex(value) if isinstance(value, int) and value.bit_length() > LONGEST_SHOWN else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


class Section(BaseModel):
    """A group of settings: frozen, and strict about names."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        defer_build=True,  # `--help` reads the fields, but validates nothing
    )

    PANEL: ClassVar[str] = "Options"
    """Heading of these settings in `--help`."""
    ONLY_READ: ClassVar[frozenset[str]] = frozenset()
    """Fields that name files which are only read: such a name may be any bytes, as on disk. Others are UTF-8."""

    @field_validator("*")
    @classmethod
    def _check_text(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse paths and names that the system would refuse, or that cannot be written as UTF-8."""
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
