"""JSON files: errors that a user can fix, and atomic writes."""

from __future__ import annotations

import json
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from minilm_cli.base.atomic import sync
from minilm_cli.base.errors import MinilmError, reason, remedy
from minilm_cli.base.write_errors import writing

#: Largest file that is read; the manifest of a store of terabytes is smaller.
_MAX_BYTES = 2**26


def read_json(path: Path, *, kind: str) -> Any:
    """The content of a JSON file; raises `MinilmError`, which calls the file a `kind`, if it cannot be read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe may never end
            raise MinilmError(f"this {kind} cannot be read as JSON: it is not a file", where=str(path))
        if status.st_size > _MAX_BYTES:
            raise MinilmError(f"this {kind} is larger than any that minilm writes", where=str(path))
        text = path.read_text(encoding="utf-8")
        value = parse_json(text, kind=kind, where=str(path))
        if "\\ud" in text.lower():  # an escaped lone surrogate could not be printed or written later
            json.dumps(value, ensure_ascii=False).encode()
    except FileNotFoundError:
        raise MinilmError(f"there is no such {kind}", where=str(path)) from None
    except OSError as error:
        raise MinilmError(f"this {kind} cannot be read: {reason(error)}", where=str(path), hint=remedy(error)) from None
    except UnicodeError as error:
        raise MinilmError(f"this {kind} cannot be read as JSON: {error}", where=str(path)) from None
    return value


def parse_json(text: str | bytes, *, kind: str, where: str) -> Any:
    """The value of a JSON text; raises `MinilmError` about the `kind` of text at `where` if it is not valid."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        if isinstance(error, json.JSONDecodeError) and "\n" not in error.doc:  # `where` has the line number
            why = f"{error.msg.removesuffix(' at')} at character {error.pos + 1}"
        raise MinilmError(f"this {kind} cannot be read as JSON: {why}", where=where) from None


def first_wrong(error: ValidationError) -> str:
    """The first missing or wrong entry that pydantic found in a file, and why it is wrong."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; see `replace_text`."""
    replace_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a small file atomically, replacing an existing one; raises `RunError` if it cannot be written."""
    temporary = path.with_name(f".tmp-{path.name}")
    with writing(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
