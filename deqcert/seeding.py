"""Seeds of independent random streams: every use of random numbers has a purpose, and every purpose its own streams."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from deqcert.errors import require, require_count

_WORD = 2**32


class Purpose(IntEnum):
    """What a random stream is for; what :mod:`deqcert.data.streams` draws is not seeded here."""

    SELECTION = 0
    ESTIMATION = 1
    AUDIT_SUBSET = 2
    ATTACK = 3
    ATTACK_CHECK = 4
    CHECK = 5
    TRAINING = 6
    VALIDATION = 7
    ATTACK_DIRECTION = 8
    ANCHOR = 9


def image_seed(seed: int, index: int, purpose: Purpose, part: int = 0) -> int:
    """Return the 64-bit seed of the noise of an image.

    The key is four words of 32 bits, or five where ``seed`` does not fit into one, so no two keys are the same words.

    Args:
        seed: Seed of the run, in [0, 2^64).
        index: Original index of the image, in [0, 2^32).
        purpose: What the noise is for.
        part: Each part of a purpose has a stream of its own, in [0, 2^32).
    """
    require_seed(seed)
    for field, value in (("index", index), ("part", part)):
        require(0 <= value < _WORD, field, value, "must be in [0, 2**32)")
    return mixed_seed(seed, index, purpose, part)


def purpose_seed(purpose: Purpose, *words: int) -> int:
    """Return the 64-bit seed of a stream that does not belong to an image.

    The key is always nine words of 32 bits, so it is none of :func:`image_seed`, and no two keys are the same words
    unless trailing zeros of ``words`` are left out: a purpose always has the same number of them.

    Args:
        purpose: What the stream is for.
        *words: At most four integers in [0, 2^64).
    """
    require(len(words) <= 4, "words", words, "must be at most 4")
    halves = []
    for word in (*words, *[0] * (4 - len(words))):
        require_seed(word)
        halves += [word % _WORD, word // _WORD]
    return mixed_seed(purpose, *halves)


def require_seed(seed: int) -> None:
    """Raise :class:`~deqcert.errors.SettingError` unless ``seed`` is an integer in [0, 2^64)."""
    require_count("seed", seed, minimum=0)
    require(seed < _WORD**2, "seed", seed, "must be < 2**64")


def mixed_seed(*words: int) -> int:
    """Mix non-negative integers into one 64-bit seed (numpy ``SeedSequence``).

    Nearby or permuted words give unrelated seeds, also in their low 32 bits, all that torch's CPU generator reads. Up
    to four words, trailing zeros make no difference; integers from 2^32 on count as several words.
    """
    high, low = np.random.SeedSequence(words).generate_state(2)
    return int(high) << 32 | int(low)
