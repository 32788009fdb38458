"""Fixtures of the unit tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .distillers import Factory


@pytest.fixture(scope="module")
def factory(tiny_teacher: Path, tiny_student_config: Path, tiny_store: Path) -> Factory:
    from .distillers import Factory

    return Factory(tiny_teacher, tiny_student_config, tiny_store)
