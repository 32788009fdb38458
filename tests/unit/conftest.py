"""Fixtures of the unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from .distillers import Factory


@pytest.fixture(scope="module")
def factory(tiny_teacher: Path, tiny_student_config: Path, tiny_store: Path) -> Factory:
    return Factory(tiny_teacher, tiny_student_config, tiny_store)
