"""The joint rule: how often its bounds are false against the best cheap labels there can be.

Whoever chooses the cheap labels knows every true one. Of all strategies only T = #{Y = A} matters, and for each T the
best choice is a population with as few wrong labels as it can have: known + population - T, at least 0. So the largest
probability of a false bound is a sum over T of a maximum over what may be observed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binom, hypergeom

from deqcert.errors import SettingError
from deqcert.statistics import clopper_pearson_lower, exact_effective_count, joint_p_a_lower, joint_p_b_upper
from deqcert.statistics.joint import (
    WEIGHTS,
    _no_more_mismatches,
    joint_audit_size,
    joint_level,
    joint_weight,
)

Size = Callable[[int], int]


def half(population: int) -> int:
    return (population + 1) // 2


def at_most_twelve(population: int) -> int:
    return min(population, 12)


def all_of_the_large(population: int) -> int:
    return population if population > 20 else population // 3


def worst_rate(n: int, p: float, bounds: dict[tuple[int, int], list[float]], size: Size) -> float:
    """Probability of a bound above p for the best strategy; ``bounds`` by (known, population), one for each m."""
    places = np.array(list(bounds))
    allowed = np.array([sum(bound > p for bound in each) for each in bounds.values()]) - 1  # the largest such m
    known, population = places[allowed >= 0].T
    sizes = np.array([size(each) for each in population.tolist()], dtype=np.int64)
    return sum(
        binom.pmf(t, n, p) * best_chance(allowed[allowed >= 0], population, known + population - t, sizes, known <= t)
        for t in range(n + 1)
    )


def best_chance(allowed, population, wrong, sizes, possible) -> float:
    """Largest probability of at most ``allowed`` mismatches, where so many wrong labels are possible."""
    wrong = np.maximum(0, wrong)
    possible = possible & (wrong <= population)
    places = [each[possible] for each in (allowed, np.maximum(population, 1), wrong, sizes)]
    return float(hypergeom.cdf(*places).max(initial=0.0))


def worst_of_all_p(n: int, bounds: dict[tuple[int, int], list[float]], size: Size, every: int) -> float:
    """The rate jumps just below the values that the bound takes."""
    values = sorted({bound for each in bounds.values() for bound in each if bound > 0})
    return max(worst_rate(n, value * (1 - 1e-12), bounds, size) for value in values[::every])


@pytest.mark.parametrize("size", [half, at_most_twelve, all_of_the_large])
@pytest.mark.parametrize("weight", [0.2, 0.7, 1.0])
@pytest.mark.parametrize(("n", "every"), [(12, 1), (30, 3), (60, 40)])
def test_no_strategy_makes_more_false_bounds_than_alpha(n, every, weight, size):
    for alpha in (0.01, 0.2):
        bounds = {
            (0, n_a): [joint_p_a_lower(0, n_a, size(n_a), m, n, alpha, weight) for m in range(size(n_a) + 1)]
            for n_a in range(n + 1)
        }
        assert worst_of_all_p(n, bounds, size, every) <= alpha


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_nor_does_one_that_chooses_what_is_escalated(weight):
    n, alpha = 14, 0.1
    bounds = {
        (known, r): [joint_p_a_lower(known, r, half(r), m, n, alpha, weight) for m in range(half(r) + 1)]
        for known in range(n + 1)
        for r in range(n - known + 1)
    }
    worst = worst_of_all_p(n, bounds, half, 4)
    assert 0.3 * alpha < worst <= alpha


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_nor_does_one_that_chooses_how_much_of_an_audit_of_all_classes_falls_to_a(weight):
    """The audit is half of all n samples; how many of them lie in the population is chance."""
    n, alpha = 16, 0.1
    audited = half(n)
    bounds = np.full((n + 1, audited + 1, audited + 1), -1.0)  # by population, its audited samples, and mismatches
    for r, k in itertools.product(range(n + 1), range(audited + 1)):
        for m in range(k + 1 if max(0, audited - (n - r)) <= k <= r else 0):
            bounds[r, k, m] = joint_p_a_lower(0, r, k, m, n, alpha, weight)
    states = np.array([(r, wrong) for r in range(n + 1) for wrong in range(r + 1)])
    r, wrong = states.T[:, :, None, None]
    k, m = np.arange(audited + 1)[:, None], np.arange(audited + 1)
    drawn = hypergeom.pmf(k, n, np.maximum(r, 1), audited) * hypergeom.pmf(m, np.maximum(r, 1), wrong, np.minimum(k, r))
    worst = 0.0
    for p in sorted({bound for bound in bounds.flat if bound > 0})[::4]:
        rates = (drawn * (bounds[states[:, 0]] > p * (1 - 1e-12))).sum(axis=(1, 2))
        possible = [(states[:, 0] - states[:, 1] <= t) & (states[:, 1] <= n - t) for t in range(n + 1)]
        worst = max(worst, sum(binom.pmf(t, n, p) * rates[possible[t]].max() for t in range(n + 1)))
    assert 0.3 * alpha < worst <= alpha


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_bounds_on_another_class_are_as_reliable(weight):
    """T = #{Y = B} <= possible + M: the best population has T - possible wrong labels."""
    n, alpha, failures = 20, 0.1, []
    places = [(possible, r) for possible in range(n + 1) for r in range(n - possible + 1)]
    bounds = [
        np.array([joint_p_b_upper(possible, r, half(r), m, n, alpha, weight) for m in range(half(r) + 1)])
        for possible, r in places
    ]
    possible, population = np.array(places).T
    sizes = (population + 1) // 2
    for p in np.linspace(0.02, 0.7, 12):
        allowed = np.array([(each < p).sum() for each in bounds]) - 1
        rates = [
            binom.pmf(t, n, p) * best_chance(allowed, population, t - possible, sizes, allowed >= 0)
            for t in range(n + 1)
        ]
        failures.append(sum(rates))
    assert 0.2 * alpha < max(failures) <= alpha


@pytest.mark.parametrize(("n", "audited", "p"), [(1000, 200, 0.7), (10_000, 400, 0.8), (10_000, 1000, 0.9)])
def test_the_best_strategy_at_full_size_fails_about_as_often_as_allowed(n, audited, p):
    """20 000 certificates: the population of the best strategy for each T, its audit drawn at random."""
    alpha, weight, simulations = 0.05, 1.0, 20_000
    low = int(n * p)
    step = n // 1000
    populations = np.arange(low, min(n, low + round(9 * math.sqrt(n * p * (1 - p)) + 12 * n / audited)), step)

    def largest(population: int) -> int:
        mismatches = -1
        while joint_p_a_lower(0, population, audited, mismatches + 1, n, alpha, weight) > p:
            mismatches += 1
        return mismatches

    allowed = np.array([largest(int(population)) for population in populations])
    populations, allowed = populations[allowed >= 0], allowed[allowed >= 0]
    rng = np.random.default_rng(0)
    t, times = np.unique(rng.binomial(n, p, simulations), return_counts=True)
    false = 0
    for count, repeated in zip(t.tolist(), times.tolist(), strict=True):
        wrong = np.maximum(0, populations - count)
        best = hypergeom.cdf(allowed, populations, wrong, audited).argmax()
        drawn = rng.hypergeometric(wrong[best], populations[best] - wrong[best], audited, repeated)
        false += int((drawn <= allowed[best]).sum())
    rate = false / simulations
    assert 0.6 * alpha < rate <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / simulations)


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.5, 1e-12])
@pytest.mark.parametrize("weight", [*WEIGHTS, 0.999])
def test_independent_uniform_p_values_are_combined_to_alpha(alpha, weight):
    z = joint_level(alpha, weight)
    inside, _ = quad(lambda log_x: math.exp(log_x * (1 - 1 / weight)), math.log(z), 0)
    assert z + z ** (1 / weight) * inside == pytest.approx(alpha, rel=1e-6)


@pytest.mark.parametrize(("population", "audited"), [(0, 0), (1, 1), (60, 0), (60, 17), (60, 60), (5000, 700)])
def test_the_probability_of_no_more_mismatches_is_that_of_scipy(population, audited):
    wrong = np.arange(population + 1)
    for mismatches in {0, 1, audited // 20, audited // 2, audited}:
        if mismatches <= audited:
            expected = hypergeom.cdf(mismatches, max(population, 1), wrong, audited) if population else np.ones(1)
            np.testing.assert_allclose(
                _no_more_mismatches(population, audited, mismatches), expected, rtol=1e-8, atol=1e-300
            )


def test_a_complete_audit_leaves_a_little_less_than_the_count_alone():
    for weight in (0.1, 0.5, 1.0):
        bound = joint_p_a_lower(0, 9000, 9000, 40, 10_000, 0.001, weight)
        assert bound == pytest.approx(float(clopper_pearson_lower(8960, 10_000, joint_level(0.001, weight))), rel=1e-9)


@pytest.mark.parametrize(("n_a", "audited", "mismatches"), [(9000, 400, 0), (8000, 400, 4), (9900, 4000, 4)])
def test_one_test_bounds_better_than_two(n_a, audited, mismatches):
    n_eff = exact_effective_count(n_a, audited, mismatches, 0.0005)
    two = float(clopper_pearson_lower(n_eff, 10_000, 0.0005))
    best = float(clopper_pearson_lower(n_a - mismatches, 10_000, 0.001))
    one = joint_p_a_lower(0, n_a, audited, mismatches, 10_000, 0.001, 1.0)
    assert two + 0.3 * (best - two) < one < best


def test_bounds_fall_with_mismatches_and_rise_with_alpha_and_with_what_is_known():
    bounds = [joint_p_a_lower(100, 700, 150, m, 1000, 0.01, 0.5) for m in (0, 1, 2, 10, 150)]
    assert bounds == sorted(bounds, reverse=True)
    assert joint_p_a_lower(100, 700, 150, 2, 1000, 0.02, 0.5) > bounds[2]
    assert joint_p_a_lower(200, 700, 150, 2, 1000, 0.01, 0.5) > bounds[2]
    assert joint_p_a_lower(0, 700, 0, 0, 1000, 0.01, 0.5) == 0
    assert joint_p_b_upper(100, 700, 150, 0, 1000, 0.01, 0.5) == 1 - joint_p_a_lower(200, 700, 150, 0, 1000, 0.01, 0.5)
    assert joint_p_b_upper(100, 700, 150, 150, 1000, 0.01, 0.5) > joint_p_b_upper(100, 700, 150, 0, 1000, 0.01, 0.5)


@pytest.mark.parametrize("known", [0, 30])
def test_the_audit_is_the_smallest_that_reaches_its_aim(known):
    n, alpha, weight = 200, 0.05, 0.5
    for population in (60, 120, 170):
        bounds = [joint_p_a_lower(known, population, k, 0, n, alpha, weight) for k in range(population + 1)]
        for p_a in np.linspace(0.2, bounds[-1], 5) - 1e-9:
            expected = next(size for size, bound in enumerate(bounds) if bound >= p_a)
            assert joint_audit_size(known, population, n, alpha, weight, float(p_a)) == expected
        assert joint_audit_size(known, population, n, alpha, weight, bounds[-1] + 1e-6) == population


def test_the_weight_follows_the_selection_samples():
    weights = [joint_weight(k0, 100, 10_000, 0.001) for k0 in (52, 60, 70, 90)]
    assert weights == sorted(weights)
    assert weights[0] < weights[-1]
    assert set(weights) <= set(WEIGHTS)


@pytest.mark.parametrize("k0", [60, 70, 80, 90, 100])
def test_the_weight_is_not_that_of_a_complete_audit_where_small_ones_suffice_for_a_little_less(k0):
    n_a = 10 * k0
    bounds = {w: joint_p_a_lower(0, n_a, n_a // 2, 0, 1000, 0.001, w) for w in WEIGHTS}
    chosen = bounds[joint_weight(k0, 100, 1000, 0.001)]
    assert chosen > max(bounds.values()) - 0.01
    assert chosen > bounds[0.1]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"known": -1}, "known"),
        ({"population": 11}, "population"),
        ({"known": 5}, "population"),
        ({"audited": 9}, "audited"),
        ({"mismatches": 5}, "mismatches"),
        ({"audited": 4.0}, "audited"),
        ({"n": 0, "known": 0, "population": 0, "audited": 0}, "n"),
        ({"alpha": 1e-13}, "alpha"),
        ({"alpha": 1.0}, "alpha"),
        ({"weight": 0.0}, "weight"),
        ({"weight": 1.5}, "weight"),
    ],
)
def test_arguments_out_of_range_are_named(changes, field):
    arguments = {"known": 0, "population": 8, "audited": 4, "mismatches": 0, "n": 10, "alpha": 0.1, "weight": 0.5}
    with pytest.raises(SettingError, match=f"^{field} = "):
        joint_p_a_lower(**{**arguments, **changes})
