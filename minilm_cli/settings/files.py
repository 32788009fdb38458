"""Settings files (`.yaml`, `.toml`, `.json`) as nested dictionaries."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from minilm_cli.base.errors import MinilmError, remedy

#: Characters in a settings file: thirty times what all settings need. PyYAML needs hundreds of times as much memory.
LONGEST_FILE = 2**16

#: What the parsers raise. PyYAML trusts its tags: `!!bool x` is a KeyError.
PARSE_ERRORS = (
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class _Loader(yaml.SafeLoader):
    """The safe loader, without duplicate keys, of which only the last would count, and without merge keys.

    A few lines that merge one another make mappings of billions of entries.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not allowed", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
        super().flatten_mapping(node)


def parse_yaml(text: str) -> Any:
    """A YAML document; raises one of `PARSE_ERRORS`."""
    return yaml.load(text, _Loader)  # noqa: S506  # derived from the safe loader


def _parse_json(text: str) -> Any:
    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for name, value in pairs:
            if name in seen:
                raise ValueError(f"{name} is given twice")
            seen[name] = value
        return seen

    return json.loads(text, object_pairs_hook=mapping)


_PARSERS: dict[str, Callable[[str], Any]] = {
    ".yaml": parse_yaml,
    ".yml": parse_yaml,
    ".toml": tomllib.loads,
    ".json": _parse_json,
}


def read_settings_file(path: Path) -> dict[str, Any]:
    """Parse a settings file into nested dictionaries; raises `MinilmError`."""
    parser = _PARSERS.get(path.suffix.lower())
    if parser is None:
        raise MinilmError("a settings file ends in .yaml, .toml or .json", where=str(path))
    if path.exists() and not path.is_file():  # a pipe may never end
        raise MinilmError("the settings file cannot be read: it is not a file", where=str(path))
    text = _read(path)
    try:
        value = parser(text)
    except PARSE_ERRORS as error:
        message = " ".join(str(error).split())
        raise MinilmError(f"the settings file cannot be parsed: {message}", where=str(path)) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MinilmError("a settings file must be a mapping of names to values", where=str(path))
    return value


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST_FILE + 1)
    except FileNotFoundError:
        raise MinilmError("there is no such settings file", where=str(path)) from None
    except OSError as error:
        message = f"the settings file cannot be read: {error.strerror}"
        raise MinilmError(message, where=str(path), hint=remedy(error)) from None
    except UnicodeDecodeError as error:
        raise MinilmError(f"the settings file cannot be read: {error}", where=str(path)) from None
    if len(text) > LONGEST_FILE:
        raise MinilmError(f"the settings file is longer than {LONGEST_FILE:,} characters", where=str(path))
    return text
