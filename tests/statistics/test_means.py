"""Audited means: how often the interval misses, for every order of small audits and for populations that deceive."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deqcert.errors import DataError, SettingError
from deqcert.statistics import audited_mean, hypergeometric_upper
from deqcert.statistics.means import _lower

SMALL = {  # (cheap, true) of 8 items
    "right": [(0, 0)] * 4 + [(1, 1)] * 4,
    "one overestimated": [(1, 1)] * 5 + [(1, 0)] + [(0, 0)] * 2,
    "half overestimated": [(1, 0)] * 4 + [(1, 1)] * 4,
    "nearly all overestimated": [(1, 0)] * 7 + [(0, 1)],
    "all wrong": [(0, 1)] * 3 + [(1, 0)] * 5,
    "only zeros": [(1, 0)] * 4 + [(0, 0)] * 4,
    "rare large": [(0.1, 0.1)] * 7 + [(0.9, 0)],
    "biased": [(0.8, 0.3)] * 5 + [(0.6, 0.1)] * 3,
    "useless": [(0.5, 0)] * 6 + [(0.5, 1)] * 2,
}


def miss_rate_of_all_orders(population: list[tuple[float, float]], audit: int, alpha: float) -> float:
    """Probability that the lower bound is false; equal items are interchangeable."""
    cheap, true = np.array(population, dtype=np.float64).T
    first = [population.index(item) for item in population]
    kinds = Counter(first)
    missed = total = 0.0
    for sequence in itertools.product(kinds, repeat=audit):
        drawn = Counter(sequence)
        weight = math.prod(math.perm(kinds[kind], drawn[kind]) for kind in drawn)
        if weight:
            seen: Counter[int] = Counter()
            order = []
            for kind in sequence:
                order.append([i for i, f in enumerate(first) if f == kind][seen[kind]])
                seen[kind] += 1
            total += weight
            missed += weight * (_lower(cheap, np.array(order), true[order], alpha) > true.mean() + 1e-9)
    assert total == math.perm(len(population), audit)
    return missed / total


@pytest.mark.parametrize("audit", [3, 6])
@pytest.mark.parametrize("name", SMALL)
def test_no_population_makes_more_false_bounds_than_alpha(name, audit):
    mirrored = [(1 - cheap, 1 - true) for cheap, true in SMALL[name]]
    for alpha in (0.15, 0.6):
        assert miss_rate_of_all_orders(SMALL[name], audit, alpha) <= alpha
        assert miss_rate_of_all_orders(mirrored, audit, alpha) <= alpha


def test_the_bound_does_fail_where_alpha_allows_it():
    rates = [miss_rate_of_all_orders(population, 6, 0.6) for population in SMALL.values()]
    assert max(rates) > 0.3


def rare_and_large(rng, n):
    true = rng.beta(5, 1, n)
    return true, np.where(np.arange(n) < 4, 0, true)


def as_many_wrong_as_an_audit_misses(rng, n):
    return np.ones(n), (np.arange(n) >= 12).astype(float)


def hidden_in_a_few(rng, n):
    """Cheap values that are right but for one kind of items, where they are as wrong as they can be."""
    true = (rng.random(n) < 0.3).astype(float)
    return np.where(np.arange(n) < n // 10, 1 - true, true), true


def opposite(rng, n):
    true = rng.random(n)
    return 1 - true, true


POPULATIONS = [rare_and_large, as_many_wrong_as_an_audit_misses, hidden_in_a_few, opposite]


@pytest.mark.parametrize("population", POPULATIONS)
def test_intervals_miss_at_most_as_often_as_stated(population):
    alpha, simulations = 0.2, 250
    cheap, true = population(np.random.default_rng(1), 200)
    results = [audited_mean(cheap, true.__getitem__, alpha=alpha, audit=40, seed=seed) for seed in range(simulations)]
    missed = np.mean([not each.lower <= true.mean() <= each.upper for each in results])
    assert missed <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / simulations)
    assert np.mean([each.mean for each in results]) == pytest.approx(true.mean(), abs=0.03)
    assert all(each.lower <= each.mean <= each.upper for each in results)


@given(st.integers(0, 2**32), st.integers(1, 30), st.floats(0.001, 0.5))
@settings(max_examples=40)
def test_exchanging_one_and_zero_mirrors_the_interval(seed, audit, alpha):
    cheap, true = np.random.default_rng(seed).random((2, 30))
    one = audited_mean(cheap, true.__getitem__, alpha=alpha, audit=audit, seed=seed)
    other = audited_mean(1 - cheap, lambda i: 1 - true[i], alpha=alpha, audit=audit, seed=seed)
    expected = pytest.approx((1 - one.upper, 1 - one.mean, 1 - one.lower), abs=1e-9)
    assert (other.lower, other.mean, other.upper) == expected


def test_only_the_drawn_items_and_their_order_matter_not_where_the_items_are():
    rng = np.random.default_rng(0)
    cheap, true = rng.random((2, 50))
    order, moved = rng.permutation(50)[:20], rng.permutation(50)
    elsewhere = np.argsort(moved)[order]
    assert (cheap[moved][elsewhere] == cheap[order]).all()
    expected = pytest.approx(_lower(cheap, order, true[order], 0.1), abs=1e-9)
    assert _lower(cheap[moved], elsewhere, true[order], 0.1) == expected


@pytest.mark.parametrize(("items", "audit"), [(1000, 100), (1000, 400), (10_000, 400), (10_000, 2000)])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_without_a_disagreement_it_is_nearly_the_exact_hypergeometric_bound(items, audit, alpha):
    cheap = np.arange(items) % 2
    result = audited_mean(cheap, cheap.__getitem__, alpha=alpha, audit=audit)
    exact = hypergeometric_upper(0, items // 2, int(cheap[result.positions].sum()), alpha / 2) / items
    assert exact * 0.99 < 0.5 - result.lower < 1.12 * exact + 1 / items
    assert result.upper - result.lower < 2.3 * math.log(2 / alpha) / audit


def test_good_cheap_values_narrow_the_interval_and_useless_ones_hardly_widen_it():
    rng = np.random.default_rng(3)
    true = rng.beta(2, 1, 5000)

    def width(cheap):
        results = [audited_mean(cheap, true.__getitem__, audit=300, seed=seed) for seed in range(10)]
        return np.mean([each.upper - each.lower for each in results])

    none = width(np.full(5000, 0.5))
    assert width(np.clip(true + rng.normal(0, 0.05, 5000), 0, 1)) < 0.5 * none
    assert width(0.4 * true + 0.1) < 0.6 * none  # a bias that one can learn
    assert width(rng.random(5000)) < 1.1 * none


@pytest.mark.parametrize("items", [1, 7])
def test_an_audit_of_all_items_is_the_mean_itself(items):
    true = np.linspace(0, 0.7, items)
    result = audited_mean(1 - true, true.__getitem__, audit=items)
    assert result.lower == result.mean == result.upper == true.mean()
    assert result.positions.tolist() == list(range(items))


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_constant_values_at_the_ends_of_the_range_are_no_special_case(level):
    for guess in (0.0, 0.3, 1.0):
        result = audited_mean(np.full(40, guess), lambda i: np.full(len(i), level), audit=39)
        assert 0 <= result.lower <= level <= result.upper <= 1
        assert result.upper - result.lower <= 1 / 40 + 1e-9


def test_true_results_are_asked_for_once_in_ascending_order_and_labels_enter_by_position():
    labels, asked = np.arange(60) % 3, []
    logits = np.eye(3)[(labels + (np.arange(60) % 7 == 0)) % 3]

    def correct(results, positions):
        return np.argmax(results, axis=1) == labels[positions]

    def exact(positions):
        asked.append(positions)
        return np.eye(3)[labels[positions]]

    result = audited_mean(logits, exact, correct, audit=20, seed=5)
    (positions,) = asked
    assert (np.diff(positions) > 0).all()
    assert positions.tolist() == result.positions.tolist()
    assert result.differences.tolist() == (positions % 7 == 0).astype(float).tolist()
    assert (result.items, result.audited, result.alpha) == (60, 20, 0.05)
    assert result.cheap_mean == pytest.approx(np.mean(np.arange(60) % 7 != 0))
    assert result.mean_difference == pytest.approx(np.mean(positions % 7 == 0))
    assert result.largest_difference == 1
    again = audited_mean(logits, exact, correct, audit=20, seed=5)
    assert (again.lower, again.upper) == (result.lower, result.upper)
    other = audited_mean(logits, exact, correct, audit=20, seed=6)
    assert other.positions.tolist() != positions.tolist()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"alpha": 0.0}, r"alpha = 0.0: must be in \(0, 1\)"),
        ({"alpha": 1}, r"alpha = 1: must be in \(0, 1\)"),
        ({"audit": 0}, "audit = 0: must be an integer >= 1"),
        ({"audit": 2.0}, "audit = 2.0: must be an integer >= 1"),
        ({"audit": 11}, "audit = 11: must be <= 10, the number of items"),
        ({"seed": -1}, "seed = -1: must be an integer >= 0"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_computed(setting, message):
    with pytest.raises(SettingError, match=message):
        audited_mean(np.zeros(10), pytest.fail, **{"audit": 5, **setting})


@pytest.mark.parametrize(
    ("cheap", "message"),
    [
        ([0, 1, 1.5], r"cheap value of item 2 = 1.5: must be in \[0, 1\]"),
        ([0, math.nan, 1], r"cheap value of item 1 = nan"),
        ([-1e-9, 0, 1], r"cheap value of item 0 = -1e-09"),
        (np.zeros((3, 2)), r"one real number for each of 3 items, but are float64 of shape \(3, 2\)"),
        (["0", "1", "1"], "one real number for each of 3 items, but are <U1"),
        ([[0], [0, 1], 1], "cheap values cannot be made an array"),
    ],
)
def test_wrong_cheap_values_are_refused_before_the_audit_is_paid_for(cheap, message):
    with pytest.raises(DataError, match=message):
        audited_mean(cheap, pytest.fail, audit=2)


def test_wrong_true_values_are_refused_with_their_position():
    with pytest.raises(DataError, match=r"true value of item 9 = inf: must be in \[0, 1\]"):
        audited_mean(np.zeros(10), lambda i: np.where(i == 9, math.inf, 0), audit=10)
    with pytest.raises(DataError, match=r"true values must be one real number for each of 4 items"):
        audited_mean(np.zeros(10), lambda i: np.zeros(10), audit=4)
