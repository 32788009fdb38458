"""Strategies that damage bytes and JSON values, without regard to their meaning."""

from __future__ import annotations

import copy
import json
from functools import partial
from typing import Any

from hypothesis import strategies as st

#: Bytes that are difficult for parsers.
PIECES = (
    *(b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\n", b"\r", b"\x1b[31m", b'"', b"'", b"#", b",", b":", b"=", b"-", b"%"),
    *(b"[", b"]", b"{", b"}", b"[" * 100_000, b"[[" * 200, b'{"a":' * 300, b"- " * 400, b"{a: " * 200),
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-0", b"9" * 400, b"9" * 5000, b"0x" + b"f" * 5000),
    *(b"\\u0000", b"\\ud800", b"\xed\xa0\x80", b'"\\ud800\\udc00"', b"1" + b":59" * 400, b"1" + b":59" * 400 + b".5"),
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 10**4299])
    | st.floats()
    | st.text(st.characters(), max_size=9)
    | st.sampled_from(["\0", "../..", "/", "nan", "x" * 5000]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)


def nested(depth: int) -> list[Any]:
    """Lists nested to this depth."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


ANY_JSON = JSON | st.integers(50, 400).map(nested)


def _flipped(part: bytes, bits: int) -> bytes:
    return bytes(byte ^ bits for byte in part)


@st.composite
def damaged(draw: st.DrawFn, content: bytes, pieces: tuple[bytes, ...] = PIECES) -> bytes:
    """`content` with bytes flipped, removed, repeated or replaced (perhaps by one of `pieces`), or cut short."""
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(content)))
        end = draw(st.integers(begin, min(len(content), begin + 16))) if draw(st.integers(0, 4)) else len(content)
        part = content[begin:end]
        instead = st.sampled_from(pieces) | st.binary(max_size=8) | st.just(b"") | st.just(part * 2)
        if len(part) <= 16:
            instead |= st.integers(1, 255).map(partial(_flipped, part))
        content = content[:begin] + draw(instead) + content[end:]
    return content


def similar(value: object) -> st.SearchStrategy[Any]:
    """Values of the same type."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return ANY_JSON
    if isinstance(value, str):
        text = value.encode(errors="surrogatepass")
        return damaged(text).map(lambda text: text.decode(errors="surrogateescape"))
    return st.sampled_from([value + 1, value - 1, -value, 0, 1, 2, value * 2, value + 2**32, value + 2**64, 2**62])


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with parts replaced, removed or added."""
    root = [copy.deepcopy(value)]
    for _ in range(draw(st.integers(1, 3))):
        holder: Any = root
        key: Any = 0
        while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 4)):
            holder = holder[key]
            key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        match draw(st.sampled_from(["replace", "replace", "shift", "remove", "add"])):
            case "replace":
                holder[key] = draw(ANY_JSON)
            case "shift":
                holder[key] = draw(similar(holder[key]))
            case "remove" if holder is not root:
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(st.text(max_size=9))] = draw(ANY_JSON)
            case "add" if holder is not root:
                holder.insert(key, draw(st.just(holder[key]) | ANY_JSON))
    return root[0]


def changed_json(content: bytes) -> st.SearchStrategy[bytes]:
    """A JSON file with its value changed."""
    return changed(json.loads(content)).map(lambda value: json.dumps(value).encode())


@st.composite
def changed_lines(draw: st.DrawFn, content: bytes) -> bytes:
    """A file of JSON lines with one line changed."""
    lines = content.splitlines()
    number = draw(st.integers(0, len(lines) - 1))
    lines[number] = draw(changed_json(lines[number]))
    return b"\n".join(lines)
