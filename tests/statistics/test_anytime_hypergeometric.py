"""The bound on marked items under optional stopping: how often the worst sample size is one at which it is wrong."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from deqcert.errors import SettingError
from deqcert.statistics import anytime_hypergeometric_upper, hypergeometric_upper
from deqcert.statistics.sequential import LARGEST_POPULATION


@cache
def table(bound, population, alpha):
    """Bounds of all samples, shape (sample, m); where m > sample they mean nothing."""
    sample, m = np.ogrid[: population + 1, : population + 1]
    return bound(np.minimum(m, sample), population, sample, alpha)


def probability_of_ever_being_wrong(bound, population, alpha):
    """Of each M = 0, ..., population, exactly: the distribution of m over samples for which it was not wrong yet."""
    bounds = table(bound, population, alpha)
    m, marked = np.arange(population + 1), np.arange(population + 1)[:, None]
    alive = np.zeros((population + 1, population + 1))
    alive[:, 0] = 1.0
    for sample in range(population + 1):
        alive[bounds[sample] < marked] = 0.0
        if sample < population:
            hit = alive * np.clip((marked - m) / (population - sample), 0, 1)
            alive -= hit
            alive[:, 1:] += hit[:, :-1]
    return 1 - alive.sum(axis=1)


@pytest.mark.parametrize("alpha", [0.5, 0.1, 0.05, 0.001])
@pytest.mark.parametrize("population", [1, 2, 5, 13, 30, 60])
def test_the_probability_of_ever_being_wrong_is_at_most_alpha(population, alpha):
    wrong = probability_of_ever_being_wrong(anytime_hypergeometric_upper, population, alpha)
    assert wrong.max() <= alpha + 1e-12
    if population == 60:
        assert wrong.max() > alpha / 4, "nothing is tested"
        fixed = probability_of_ever_being_wrong(hypergeometric_upper, population, alpha)
        assert fixed.max() > min(2 * alpha, 0.9), "this test would not find a bound for a fixed sample"


@pytest.mark.parametrize("population", [1, 4, 9])
def test_the_probability_of_ever_being_wrong_is_that_over_all_orders(population):
    alpha = 0.4
    bounds = table(anytime_hypergeometric_upper, population, alpha)
    exact = probability_of_ever_being_wrong(anytime_hypergeometric_upper, population, alpha)
    for marked in range(population + 1):
        orders = list(combinations(range(population), marked))
        wrong = sum(
            any(bounds[sample, sum(place < sample for place in order)] < marked for sample in range(population + 1))
            for order in orders
        )
        assert exact[marked] == pytest.approx(wrong / len(orders), abs=1e-12)


def evidence(m, population, sample, null):
    """R of the docstring, in rational numbers; None where the null is impossible."""

    def likelihood(marked):
        return math.comb(marked, m) * math.comb(population - marked, sample - m)

    def prior(marked):  # C(N, M) B(M + 1/2, N - M + 1/2) up to a constant
        rest = population - marked
        return math.comb(2 * marked, marked) * math.comb(2 * rest, rest)

    if not likelihood(null):
        return None
    mixed = sum(prior(marked) * likelihood(marked) for marked in range(null))
    return Fraction(mixed, likelihood(null) * max(1, sum(map(prior, range(null)))))


@pytest.mark.parametrize("population", [1, 2, 7, 20])
@pytest.mark.parametrize("alpha", [0.37, 0.01, 1e-12])
def test_the_bound_is_the_largest_that_is_not_refuted(population, alpha):
    bounds = table(anytime_hypergeometric_upper, population, alpha)
    for sample in range(population + 1):
        for m in range(sample + 1):
            against = [evidence(m, population, sample, null) for null in range(population + 1)]
            kept = [null for null, ratio in enumerate(against) if ratio is not None and ratio * Fraction(alpha) < 1]
            assert bounds[sample, m] == kept[-1]
            assert kept == list(range(kept[0], kept[-1] + 1)), "no gaps, although nothing depends on it"


@pytest.mark.parametrize("population", [0, 1, 50, 3000])
def test_a_complete_sample_leaves_nothing_open(population):
    m = np.unique([0, population // 3, population])
    assert anytime_hypergeometric_upper(m, population, population, 1e-9).tolist() == m.tolist()


def test_an_empty_sample_proves_nothing():
    assert anytime_hypergeometric_upper(0, [0, 1, 400], 0, 0.5).tolist() == [0, 1, 400]


@pytest.mark.parametrize("alpha", [0.3, 0.001])
def test_the_bound_grows_with_marked_items_and_falls_with_the_others_and_alpha(alpha):
    population = 80
    bounds = table(anytime_hypergeometric_upper, population, alpha)
    fixed = table(hypergeometric_upper, population, alpha)
    smaller = table(anytime_hypergeometric_upper, population, alpha / 2)
    for sample in range(1, population + 1):
        m = np.arange(sample + 1)
        assert (np.diff(bounds[sample, m]) >= 0).all()
        assert (bounds[sample, m] >= fixed[sample, m]).all()
        assert (bounds[sample, m] <= smaller[sample, m]).all()
        assert (bounds[sample, m] >= m).all()
        assert (bounds[sample, m] <= population - (sample - m)).all()
        assert (bounds[sample, m[:-1]] <= bounds[sample - 1, m[:-1]]).all(), "one more item, not marked"


def test_extreme_arguments():
    many = LARGEST_POPULATION
    assert anytime_hypergeometric_upper(0, many, 1, 1e-300) == many - 1
    assert anytime_hypergeometric_upper(1, many, 1, 1e-300) == many
    assert anytime_hypergeometric_upper(many // 2, many, many, 0.9) == many // 2
    fixed = hypergeometric_upper(50, many, 10_000, 0.001)
    assert fixed < anytime_hypergeometric_upper(50, many, 10_000, 0.001) < 1.3 * fixed


def test_arguments_are_broadcast():
    bounds = anytime_hypergeometric_upper([[0], [5]], [900, 1000, 1100], 100, 0.01)
    assert bounds.shape == (2, 3)
    assert bounds.dtype == np.int64
    assert bounds[1, 2] == anytime_hypergeometric_upper(5, 1100, 100, 0.01)
    assert anytime_hypergeometric_upper(5, 1100, 100, 0.01).shape == ()
    assert anytime_hypergeometric_upper(np.array([], int), 1100, 100, 0.01).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 10, 5, 0.1), "m = -1: must be >= 0"),
        ((6, 10, 5, 0.1), "m = 6: must be <= sample"),
        ((1, 10, 11, 0.1), "sample = 11: must be <= population"),
        ((1, 10.0, 5, 0.1), r"population = 10\.0: must be of integer type"),
        ((1.0, 10, 5, 0.1), r"m = 1\.0: must be of integer type"),
        ((1, 10**6 + 1, 5, 0.1), "population = 1000001: must be <= 1000000"),
        ((1, 10, 5, 0.0), r"alpha = 0\.0: must be in \(0, 1\)"),
        ((1, 10, 5, math.nan), "alpha = nan: must be in"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, message):
    with pytest.raises(SettingError, match=f"^{message}"):
        anytime_hypergeometric_upper(*arguments)
