"""A shuffle that is computed where it is needed: a keyed permutation in O(1) memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from minilm_cli.base.seeding import derive
from minilm_cli.tokens.store import Indices

_ROUNDS = 8


def permute(places: Indices, size: int, key: int) -> Indices:
    """The positions of `places` in a shuffle of `range(size)`, chosen by `key`: a bijection, in O(1) memory.

    A Feistel network over the bits of `size`, repeated until the value is below `size` (cycle walking: Black and
    Rogaway, "Ciphers with arbitrary finite domains", 2002). It mixes well; it is no cipher.
    """
    assert size > 0
    bits = max(2, (size - 1).bit_length())
    low_bits = bits // 2
    high_bits = bits - low_bits
    low_mask, high_mask = np.uint64((1 << low_bits) - 1), np.uint64((1 << high_bits) - 1)
    keys = [np.uint64(derive(key, number)) for number in range(_ROUNDS)]

    def once(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        low, high = values & low_mask, values >> np.uint64(low_bits)
        for number, round_key in enumerate(keys):
            if number % 2:
                high = high ^ (_mix(low ^ round_key) & high_mask)
            else:
                low = low ^ (_mix(high ^ round_key) & low_mask)
        return (high << np.uint64(low_bits)) | low

    values = once(places.astype(np.uint64))
    while (outside := values >= size).any():
        values[outside] = once(values[outside])
    return values.astype(np.int64)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64: every input bit changes every output bit about half the time."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
