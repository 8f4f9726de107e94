"""Keyed bijections: shuffle n rows without storing an order, so that any position of any pass is found at once."""

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

ONE = np.uint64(1)
AT_ONCE = 16_384
"""Positions that are permuted together: what a core's cache holds."""


def key(*parts: object) -> int:
    """A 64-bit key from anything that has a text form; the same on every machine."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def row_key(seed: int, task: str, turn: int) -> int:
    """What decides the order of a task's rows in one pass."""
    return key(seed, "rows", task, turn)


def permute(positions: Ints, size: Ints | int, keys: Words) -> Ints:
    """Map each position in [0, size) to [0, size), one bijection for each pair of size and key (arrays like `positions`, or one for all).

    A balanced Feistel network over the smallest even number of bits that holds `size`; values that fall outside walk on until they do
    not (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Each value takes fewer than four walks on average.
    """
    sizes = np.asarray(size)
    # frexp gives the bit length of a whole number, exactly below 2^53
    halves = np.maximum(1, (np.frexp(np.maximum(sizes, 1) - 1.0)[1] + 1) // 2).astype(np.uint64)
    of_position = [
        np.broadcast_to(array, positions.shape) for array in (positions.astype(np.uint64), halves, sizes.astype(np.uint64), keys)
    ]
    permuted = np.empty(len(positions), np.uint64)
    for start in range(0, len(positions), AT_ONCE):
        values, half, limit, own = (array[start : start + AT_ONCE] for array in of_position)
        pending = np.arange(start, start + len(values))
        while len(pending):
            values = _encrypted(values, half, own)
            permuted[pending] = values  # those that are outside are written again
            outside = np.flatnonzero(values >= limit)
            values, half, limit, own = values[outside], half[outside], limit[outside], own[outside]
            pending = pending[outside]
    return permuted.astype(np.int64)


def _encrypted(values: Words, half: Words, keys: Words) -> Words:
    """One pass of each value through its network of 2 · `half` bits."""
    low = (ONE << half) - ONE
    left, right = values >> half, values & low
    for number in range(ROUNDS):
        mixed = scramble(right, keys, number)
        mixed &= low
        mixed ^= left
        left, right = right, mixed
    return (left << half) | right


def scramble(values: Words, keys: Words, number: int) -> Words:
    """The 64-bit finaliser of MurmurHash3 over value, key and round; integer overflow is meant."""
    x = values * np.uint64(0x9E3779B97F4A7C15)
    x += keys
    x += np.uint64(number * 0xBF58476D1CE4E5B9 % 2**64)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    x ^= x >> np.uint64(33)
    return x
