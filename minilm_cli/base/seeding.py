"""Randomness is derived from what it is for, never carried along, so nothing of it needs to be saved."""

from __future__ import annotations

import hashlib


def derive(seed: int, *purpose: int | str) -> int:
    """A 63-bit seed for one `purpose`, such as `("dropout", step)`: equal in, equal out; otherwise unrelated."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
