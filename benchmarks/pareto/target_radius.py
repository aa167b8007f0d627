"""What a stopping rule saves where one radius is asked for: TargetRadius beside a fixed n and InputSpecific.

    python benchmarks/pareto/target_radius.py

Labels of an image are independent Bernoulli(p_A), so a sequence is drawn instead of labeled: 2000 of each image, with
p_A the share N_A / 2000 of anchored-3N-learned (sigma = 0.5) on 22 CIFAR-10 test images. Prints, at each
radius, the share of certified images (class true or not) and the mean number of noisy samples, selection included.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import numpy as np
from scipy.stats import binom

from deqcert.statistics import InputSpecific, anytime_lower, radius_of_count
from deqcert.statistics.stopping import attainable_radius

SIGMA, ALPHA, BUDGET, BATCH, N0, PILOT, REPEATS = 0.5, 0.001, 10_000, 400, 100, 500, 2000
RADII = (0.25, 0.5, 1.0)
COUNTS = (
    1454,
    1484,
    2000,
    1525,
    1956,
    2000,
    1843,
    991,
    1497,
    1173,
    1822,
    1746,
    2000,
    2000,
    1877,
    2000,
    1555,
    1996,
    1913,
    1922,
    1458,
    1205,
)
"""N_A of 2000 estimation samples of 22 images."""

P_A = np.array(COUNTS) / 2000
LOOKS = np.arange(BATCH, BUDGET + 1, BATCH)


def least(n: int, reached: Callable[[int], bool]) -> int:
    """Return the smallest k of n that reaches a goal, n + 1 if none does."""
    return bisect_left(range(n + 1), True, key=reached)


def fixed_least(n: int, radius: float) -> int:
    return least(n, lambda k: radius_of_count(k, n, ALPHA, SIGMA) >= radius)


def fixed(radius: float, sizes: np.ndarray) -> np.ndarray:
    """Return the share of images that each fixed n certifies: exact."""
    return np.array([binom.sf(fixed_least(int(n), radius) - 1, n, P_A).mean() for n in sizes])


def target(radius: float, rng: np.random.Generator, futility: bool) -> tuple[float, float]:
    """Return share and noisy samples of TargetRadius at its looks, with or without giving up early."""
    goal = radius / SIGMA
    enough, hope = [], []
    for n in map(int, LOOKS):
        enough.append(least(n, lambda k, n=n: radius_of_count(k, n, ALPHA, bound=anytime_lower) >= goal))
        hope.append(least(n, lambda k, n=n: attainable_radius(k, n, BUDGET, ALPHA) >= goal) if futility else 0)
    drawn = rng.binomial(BATCH, P_A, size=(len(LOOKS), REPEATS, len(P_A))).cumsum(axis=0)
    enough_at, hope_at = (np.array(each)[:, None, None] for each in (enough, hope))
    stops = (drawn >= enough_at) | (drawn < hope_at)
    stops[-1] = True
    last = stops.argmax(axis=0)
    certified = np.take_along_axis(drawn, last[None], axis=0)[0] >= np.array(enough)[last]
    return float(certified.mean()), N0 + float(LOOKS[last].mean())


def input_specific(rule: InputSpecific, radius: float, rng: np.random.Generator) -> tuple[float, float]:
    """Return the same of input-specific sampling."""
    pilots = rng.binomial(PILOT, P_A, size=(REPEATS, len(P_A)))
    most = BUDGET - (PILOT - N0)
    size = {k: min(most, -(-rule.budget(k, PILOT, most) // BATCH) * BATCH) for k in np.unique(pilots).tolist()}
    n = np.vectorize(size.__getitem__)(pilots)
    enough = {each: fixed_least(each, radius) for each in np.unique(n).tolist()}
    certified = rng.binomial(n, P_A) >= np.vectorize(enough.__getitem__)(n)
    return float(certified.mean()), PILOT + float(n.mean())


def main() -> None:
    rng = np.random.default_rng(0)
    sizes = np.arange(100, BUDGET + 1, 100)
    print("| radius | rule | certified % | noisy samples | smallest fixed n of that share | fixed n at that cost |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for radius in RADII:
        shares = fixed(radius, sizes)
        rows = {
            "TargetRadius": target(radius, rng, futility=True),
            "without giving up": target(radius, rng, futility=False),
            "InputSpecific, 5 %": input_specific(InputSpecific(0.05), radius, rng),
            "InputSpecific, 0.1 σ": input_specific(InputSpecific(0.1, "absolute"), radius, rng),
            "InputSpecific, 0.3 σ": input_specific(InputSpecific(0.3, "absolute"), radius, rng),
        }
        print(f"| {radius:g} | fixed n = {BUDGET} | {100 * shares[-1]:.2f} | {N0 + BUDGET} | | |")
        for name, (share, samples) in rows.items():
            same = np.flatnonzero(shares >= 0.99 * share)
            needed = str(N0 + sizes[same[0]]) if len(same) else "none"
            cost = int(np.clip(samples - N0, BATCH, BUDGET))
            there = float(fixed(radius, np.array([cost]))[0])
            print(f"| {radius:g} | {name} | {100 * share:.2f} | {samples:.0f} | {needed} | {100 * there:.2f} % |")


if __name__ == "__main__":
    main()
