"""The values that a shell offers after an option: what its setting allows, names of settings, presets and runs.

A shell calls the program anew for each completion, so nothing heavy is imported. Where nothing is offered, the shell
completes names of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from minilm_cli.settings.distill import CHANGEABLE_MID_RUN, DistillSettings
from minilm_cli.settings.flags import Option, choices, setting_fields

#: A function from the beginning of a value to the values that begin so.
Completer = Callable[[str], list[str]]

#: Some student presets, of any number of layers and width.
PRESETS = ("l3-h384", "l6-h384", "l12-h384", "l6-h768")

#: Where `minilm distill` puts runs, newest last by name.
_RUNS = Path("runs")


def completer(option: Option) -> Completer | None:
    """What completes the values of a setting; `None` if they are free."""
    if option.path in _SPECIAL:
        return _SPECIAL[option.path]
    offered = choices(option.field.annotation)
    return _among(offered) if offered else None


def assignments(incomplete: str) -> list[str]:
    """`KEY=` for `distill --set`, and `KEY=VALUE` where the values are few."""
    return _assignments(incomplete, setting_fields(DistillSettings))


def changes(incomplete: str) -> list[str]:
    """The same for `resume --set`: what may change mid-run."""
    return _assignments(incomplete, CHANGEABLE_MID_RUN)


def _assignments(incomplete: str, names: Iterable[str]) -> list[str]:
    path, equals, _ = incomplete.partition("=")
    if not equals:
        return _beginning(incomplete, (f"{name}=" for name in sorted(names)))
    field = setting_fields(DistillSettings).get(path)
    if field is None or path not in names:
        return []
    values = ("true", "false") if field.annotation is bool else choices(field.annotation)
    return _beginning(incomplete, (f"{path}={value}" for value in values))


def _among(offered: Iterable[str]) -> Completer:
    def complete(incomplete: str) -> list[str]:
        return _beginning(incomplete, offered)

    return complete


def _runs(incomplete: str) -> list[str]:
    """The folders of runs in `runs/`."""
    found = list[str]()
    with suppress(OSError):  # `runs` may not be readable
        found = sorted(str(path.parent) for path in _RUNS.glob("[!.]*/settings.json"))
    return _beginning(incomplete, found)


def _students(incomplete: str) -> list[str]:
    """Presets, and configurations in the current folder; nothing in other folders, so that the shell completes them."""
    here, found = Path(), list[str]()
    with suppress(OSError):
        files, folders = here.glob("*config*.json"), (path.parent for path in here.glob("*/config.json"))
        found = sorted(map(str, (*files, *folders)))
    return _beginning(incomplete, [*PRESETS, *found])


def _beginning(incomplete: str, values: Iterable[str]) -> list[str]:
    return [value for value in values if value.startswith(incomplete)]


_SPECIAL: dict[str, Completer] = {"run": _runs, "model": _runs, "student.config": _students}
