"""JSON files: read with messages a user can act on, written atomically."""

from __future__ import annotations

import json
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from minilm_cli.base.atomic import _reason, sync, writing
from minilm_cli.base.errors import MinilmError, remedy

#: Bytes of a JSON file that is worth reading; the manifest of a store of terabytes has less.
_MOST_JSON = 2**26


def read_json(path: Path, *, kind: str) -> Any:
    """Parse a JSON file; `kind` names it in the `MinilmError` raised where that fails."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe may never end
            raise MinilmError(f"this {kind} cannot be read as JSON: it is not a file", where=str(path))
        if status.st_size > _MOST_JSON:
            raise MinilmError(f"this {kind} is larger than any that minilm writes", where=str(path))
        text = path.read_text(encoding="utf-8")
        value = parse_json(text, kind=kind, where=str(path))
        if "\\ud" in text.lower():  # half a character can be written so, and nowhere else
            json.dumps(value, ensure_ascii=False).encode()
    except FileNotFoundError:
        raise MinilmError(f"there is no such {kind}", where=str(path)) from None
    except OSError as error:
        raise MinilmError(
            f"this {kind} cannot be read: {_reason(error)}", where=str(path), hint=remedy(error)
        ) from None
    except UnicodeError as error:
        raise MinilmError(f"this {kind} cannot be read as JSON: {error}", where=str(path)) from None
    return value


def parse_json(text: str | bytes, *, kind: str, where: str) -> Any:
    """What JSON says; `kind` names it, and `where` its place, in the `MinilmError` raised where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        if isinstance(error, json.JSONDecodeError) and "\n" not in error.doc:  # its only line has another number
            reason = f"{error.msg.removesuffix(' at')} at character {error.pos + 1}"
        raise MinilmError(f"this {kind} cannot be read as JSON: {reason}", where=where) from None


def first_wrong(error: ValidationError) -> str:
    """The first entry of a file that pydantic found missing or wrong, and why."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, to be read by people too, as `replace_text` does."""
    replace_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a small file; what stood there is replaced at once or not at all. Raises `RunError` if it cannot be."""
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
