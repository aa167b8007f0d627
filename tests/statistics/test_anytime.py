"""Bounds under optional stopping: how often the worst moment to stop is one at which the bound is wrong."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtri

from deqcert.errors import SettingError
from deqcert.statistics import anytime_lower, clopper_pearson_lower

ALPHA, SIMULATIONS, CHUNK = 0.05, 20_000, 2000
EVERY_COPY = np.arange(1, 2001)
SHORT = np.arange(1, 401)
EVERY_BATCH = np.arange(40, 2001, 40)


def at_most(share: float) -> float:
    """The largest frequency that chance explains if the probability is ``share``."""
    return share + 4 * math.sqrt(share * (1 - share) / SIMULATIONS)


def wrong_from(bound, p, times, alpha=ALPHA):
    """Smallest count at each time whose bound exceeds p; more than n where none does. Bounds grow with k, below k/n."""
    low, high = np.floor(p * times).astype(int), times + 1
    while np.any(low < high):
        middle = (low + high) // 2
        wrong = (bound(np.minimum(middle, times), times, alpha) > p) | (middle > times)
        low, high = np.where(wrong, low, middle + 1), np.where(wrong, middle, high)
    return low


@lru_cache(maxsize=1)
def simulated(p):
    """Counts of SIMULATIONS sequences after each copy, shape (SIMULATIONS, 2000)."""
    rng = np.random.default_rng(20250)
    chunks = [rng.random((CHUNK, len(EVERY_COPY)), dtype=np.float32) < p for _ in range(SIMULATIONS // CHUNK)]
    return np.concatenate([chunk.cumsum(axis=1, dtype=np.int16) for chunk in chunks])


def ever_wrong(bound, p, times):
    """How often the bound exceeds p at some time: what whoever stops at the worst one achieves."""
    counts = simulated(p)[:, times - 1]
    return float((counts >= wrong_from(bound, p, times)).any(axis=1).mean())


@pytest.mark.parametrize("times", [EVERY_COPY, EVERY_BATCH], ids=["every copy", "every batch"])
@pytest.mark.parametrize("p", [0.3, 0.7, 0.99])
def test_the_worst_moment_to_stop_is_wrong_at_most_with_alpha(p, times):
    rate = ever_wrong(anytime_lower, p, times)
    assert rate <= at_most(ALPHA)
    assert rate > 0, "nothing is tested"
    assert ever_wrong(clopper_pearson_lower, p, times) > 2 * ALPHA, "this test would not find a bound for a fixed n"


def test_whoever_stops_where_the_bound_looks_best_is_wrong_at_most_with_alpha():
    """The largest bound of all is claimed."""
    p, times = 0.8, EVERY_BATCH[:10]
    counts = simulated(p)[:, times - 1]

    def claimed_wrongly(bound):
        table = bound(np.minimum(np.arange(times[-1] + 1)[:, None], times), times, ALPHA)
        return (table[counts, np.arange(len(times))].max(axis=1) > p).mean()

    assert 0 < claimed_wrongly(anytime_lower) <= at_most(ALPHA)
    assert claimed_wrongly(clopper_pearson_lower) > 2 * ALPHA


def probability_of_ever_being_wrong(bound, p, alpha):
    """The same, exact: the distribution of the count of all sequences for which the bound has not been wrong so far."""
    alive = np.ones(1)
    for n, first in zip(SHORT, wrong_from(bound, p, SHORT, alpha), strict=True):
        alive = np.append(alive, 0.0) * (1 - p) + np.append(0.0, alive) * p
        alive[min(first, n + 1) :] = 0.0
    return 1 - alive.sum()


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.001])
@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_the_probability_of_ever_being_wrong_is_at_most_alpha(p, alpha):
    assert probability_of_ever_being_wrong(anytime_lower, p, alpha) <= alpha


def test_the_bound_is_tight_just_below_its_own_values():
    p = float(anytime_lower(270, 300, ALPHA)) - 1e-9
    assert 0.5 * ALPHA < probability_of_ever_being_wrong(anytime_lower, p, ALPHA) <= ALPHA
    assert probability_of_ever_being_wrong(clopper_pearson_lower, p, ALPHA) > 4 * ALPHA


@pytest.mark.parametrize(("k", "n"), [(1, 1), (3, 10), (10, 10), (45, 50), (199, 200), (700, 1000)])
@pytest.mark.parametrize("alpha", [0.3, 0.001, 1e-12])
def test_the_bound_is_where_the_mixture_reaches_one_over_alpha(k, n, alpha):
    """The integral of the docstring, over t with q = sin²(t), where the prior is uniform."""

    def mixture(p0):
        start = math.asin(math.sqrt(p0))
        length = math.pi / 2 - start

        def ratio(t):
            q = math.sin(t) ** 2
            failures = (n - k) * math.log((1 - q) / (1 - p0)) if k < n and q < 1 else 0.0
            return math.exp(k * math.log(q / p0) + failures)

        mode = min(max(math.asin(math.sqrt(k / n)), start + 1e-9), math.pi / 2 - 1e-9)
        return sum(quad(ratio, *part, epsrel=1e-11)[0] for part in ((start, mode), (mode, math.pi / 2))) / length

    lower = float(anytime_lower(k, n, alpha))
    assert 0 < lower < k / n
    assert mixture(lower) * alpha == pytest.approx(1, rel=0.02 if alpha == 1e-12 else 1e-5)
    assert mixture(lower) * alpha >= 1 - 1e-9, "the bound is rounded up"
    falling = [mixture(p0) for p0 in np.linspace(lower / 2, k / n - 1e-6, 20)]
    assert all(one >= other for one, other in pairwise(falling))


def test_the_bound_grows_with_successes_and_alpha_and_falls_with_failures():
    k = np.arange(401)
    for alpha in (0.05, 1e-12):
        bounds = anytime_lower(k, 400, alpha)
        assert (np.diff(bounds) >= 0).all()
        assert (np.diff(anytime_lower(300, np.arange(300, 900), alpha)) <= 0).all()
        assert (bounds <= clopper_pearson_lower(k, 400, alpha)).all()
    assert (np.diff(anytime_lower(390, 400, np.logspace(-300, -0.01, 200))) >= 0).all()


@pytest.mark.parametrize("n", [1, 400, 10**6, 10**9])
@pytest.mark.parametrize("alpha", [0.5, 0.001, 1e-12, 1e-300])
def test_extreme_counts(n, alpha):
    few = np.unique([0, 1, n // 2, n - 1, n])
    bounds = anytime_lower(few, n, alpha)
    assert np.isfinite(bounds).all()
    assert ((bounds >= 0) & (bounds <= clopper_pearson_lower(few, n, alpha))).all()
    assert bounds[0] == 0
    assert bounds[-1] > 0.999 * clopper_pearson_lower(n, n, alpha) or n < 10**6


@pytest.mark.parametrize(
    ("n", "share", "loss"), [(400, 0.99, 0.06), (1000, 0.9, 0.06), (10_000, 0.8, 0.03), (10_000, 1.0, 0.02)]
)
def test_stopping_at_will_costs_a_few_percent_of_the_radius(n, share, loss):
    k = round(share * n)
    kept = ndtri(anytime_lower(k, n, 0.001)) / ndtri(clopper_pearson_lower(k, n, 0.001))
    assert 1 - loss < kept < 1


@pytest.mark.parametrize(
    ("field", "k", "n", "alpha"),
    [("k", -1, 5, 0.1), ("k", 6, 5, 0.1), ("k", 1.0, 5, 0.1), ("n", 0, 0, 0.1), ("n", 1, 5.0, 0.1),
     ("alpha", 1, 5, 0.0), ("alpha", 1, 5, 1.0), ("alpha", 1, 5, math.nan)],
)  # fmt: skip
def test_arguments_out_of_range_are_refused_by_name(field, k, n, alpha):
    with pytest.raises(SettingError, match=f"^{field} = "):
        anytime_lower(k, n, alpha)
