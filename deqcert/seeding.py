"""Seeds of independent random streams."""

from __future__ import annotations

import numpy as np


def mixed_seed(*words: int) -> int:
    """Mix non-negative integers into one 64-bit seed (numpy ``SeedSequence``).

    Nearby or permuted words give unrelated seeds, also in their low 32 bits, which are all that torch's CPU
    generator reads.
    """
    high, low = np.random.SeedSequence(words).generate_state(2)
    return int(high) << 32 | int(low)
