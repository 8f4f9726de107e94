"""Keyed bijections: shuffle n rows without storing an order, so that any position of any pass is found at once."""

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6
Ints = NDArray[np.int64]


def key(*parts: object) -> int:
    """A 64-bit key from anything that has a text form; the same on every machine."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def permute(positions: Ints, size: int, keys: NDArray[np.uint64]) -> Ints:
    """Map positions in [0, size) to [0, size), one bijection for each value in `keys` (an array like `positions`, or one key).

    A balanced Feistel network over the smallest even number of bits that holds `size`; values that fall outside walk on until they do
    not (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Each value takes fewer than four walks on average.
    """
    if size <= 1:
        return np.zeros_like(positions)
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    values = positions.astype(np.uint64)
    keys = np.broadcast_to(keys, values.shape)
    pending = np.arange(len(values))
    while len(pending):
        left, right = values[pending] >> half, values[pending] & low
        for number in range(ROUNDS):
            left, right = right, left ^ (_mix(right, keys[pending], number) & low)
        values[pending] = (left << half) | right
        pending = pending[values[pending] >= np.uint64(size)]
    return values.astype(np.int64)


def _mix(values: NDArray[np.uint64], keys: NDArray[np.uint64], number: int) -> NDArray[np.uint64]:
    """The 64-bit finaliser of MurmurHash3 over value, key and round; integer overflow is meant."""
    with np.errstate(over="ignore"):
        x = values * np.uint64(0x9E3779B97F4A7C15) + keys + np.uint64(number) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
        return x ^ (x >> np.uint64(33))
