"""Random numbers that stay the same on every machine and with every NumPy.

NumPy promises that a bit generator's raw words never change, but not that its distributions
(`integers`, `shuffle`, `choice`) keep theirs. So everything here is built from raw words
with integer and correctly rounded floating-point arithmetic.

References:
    Parallel random numbers: as easy as 1, 2, 3 (Salmon, Moraes, Dror & Shaw, 2011): Philox.
    NEP 19, Random number generator policy (NumPy): which streams are stable.
    A sample of brilliance (Bentley & Floyd, 1987): sampling without replacement.
"""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

__all__ = ["choose", "permutation", "uniform", "words"]


def words(key: str, count: int, *, stream: int = 0) -> NDArray[np.uint64]:
    """`count` random 64-bit words of one numbered stream of a key.

    Args:
        key: any text; another text gives unrelated words.
        count: how many words, ≥ 0.
        stream: number of the stream, 0 ≤ stream < 2**64. Streams of a key never overlap.
    """
    digest = blake2b(key.encode(), digest_size=16).digest()
    # The stream sits above the low 64 bits of the counter: were it the counter itself, each
    # stream would repeat the one before it four words later.
    bits = np.random.Philox(key=int.from_bytes(digest, "little"), counter=stream << 64)
    return np.asarray(bits.random_raw(count), dtype=np.uint64)


def uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Each word as a float in [0, 1): its upper 53 bits times 2**-53, exact."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(count: int, key: str) -> NDArray[np.int64]:
    """The order of 0 … count - 1 that belongs to a key, every order equally likely."""
    return np.argsort(words(key, count), kind="stable")


def choose(bits: NDArray[np.uint64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw k different numbers of each range 0 … size - 1, in random order.

    Floyd's algorithm for the set, then a sort of fresh words for its order, for many ranges at
    once: O(k²) time a range whatever its size.

    Args:
        bits: `(*ranges, 2, k)`: words for the set and for the order.
        sizes: `(*ranges,)`, each ≥ k.

    Returns:
        `(*ranges, k)` int64.
    """
    k = bits.shape[-1]
    fractions = uniform(bits[..., 0, :])
    drawn = np.empty(fractions.shape, dtype=np.int64)
    for j in range(k):
        last = sizes - k + j
        number = (fractions[..., j] * (last + 1)).astype(np.int64)
        taken = (drawn[..., :j] == number[..., None]).any(axis=-1)
        drawn[..., j] = np.where(taken, last, number)
    order = np.argsort(bits[..., 1, :], axis=-1, kind="stable")
    return np.take_along_axis(drawn, order, axis=-1)
