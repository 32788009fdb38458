"""Seeds derived from their purpose, so that no state of a random generator needs to be saved."""

from __future__ import annotations

import hashlib


def derive(seed: int, *purpose: int | str) -> int:
    """A 63-bit seed for one `purpose`, such as `("dropout", step)`; different purposes give unrelated seeds."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
