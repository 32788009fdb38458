from __future__ import annotations

import re
import tomllib
from pathlib import Path

import minilm_cli
from minilm_cli.base.packages import EXTRAS, missing_package

PACKAGE = Path(minilm_cli.__file__).parent


def test_the_packages_of_an_extra_are_those_that_it_installs() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    installed = {extra: [re.split(r"[^\w.-]", requirement)[0] for requirement in extras[extra]] for extra in extras}
    assert {extra: tuple(installed[extra]) for extra in EXTRAS} == EXTRAS


def test_the_hint_is_right_in_any_shell_and_from_a_clone() -> None:
    error = missing_package("sentences", "--split-sentences", where="--split-sentences")
    assert str(error) == "--split-sentences: --split-sentences needs the package sentencex\npip install sentencex"
    for file in PACKAGE.rglob("*.py"):
        assert "minilm-cli[" not in file.read_text(encoding="utf-8"), file
