"""When sampling stops, and what that does to certificates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr

from deqcert.errors import SettingError
from deqcert.statistics import (
    AbsolutePrecision,
    RelativePrecision,
    TargetRadius,
    anytime_lower,
    anytime_upper,
    certified_radius,
    clopper_pearson_lower,
)
from deqcert.statistics.stopping import attainable_radius

N_MAX, BATCH, ALPHA = 1000, 100, 0.05


def radius(k, n, alpha=0.001):
    return float(certified_radius(anytime_lower(k, n, alpha), 1.0))


def stopped(rule, p, simulations, seed=0):
    """Counts and sizes at which sampling stops, and the counts at the end of the budget."""
    batches = np.random.default_rng(seed).binomial(BATCH, p, (simulations, N_MAX // BATCH)).cumsum(axis=1)
    known = {}
    k, n = np.zeros(simulations, np.int64), np.zeros(simulations, np.int64)
    for i, counts in enumerate(batches.tolist()):
        for look, count in enumerate(counts, start=1):
            place = count, look * BATCH
            if place not in known:
                known[place] = rule.settled(*place, N_MAX)
            if known[place] or look == len(counts):
                k[i], n[i] = place
                break
    return k, n, batches[:, -1]


@pytest.mark.parametrize("p", [0.55, 0.8, 0.95])
@pytest.mark.parametrize(
    "rule", [RelativePrecision(0.2, ALPHA), AbsolutePrecision(0.3, ALPHA), TargetRadius(0.8, ALPHA)], ids=str
)
def test_certificates_of_what_a_rule_has_stopped_are_false_at_most_with_alpha(rule, p):
    simulations = 20_000
    k, n, _ = stopped(rule, p, simulations)
    rate = (anytime_lower(k, n, ALPHA) > p).mean()
    assert rate <= ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / simulations)


def test_a_bound_for_a_fixed_n_would_not_survive_a_target_just_out_of_reach():
    """p is below what the target claims; whoever stops when it seems certified finds the moment."""
    rule, target = TargetRadius(0.8, ALPHA), float(ndtr(0.8))
    counts = np.random.default_rng(1).binomial(BATCH, target - 1e-3, (20_000, N_MAX // BATCH)).cumsum(axis=1)
    sizes = BATCH * np.arange(1, N_MAX // BATCH + 1)
    assert (clopper_pearson_lower(counts, sizes, ALPHA) >= target).any(axis=1).mean() > 2 * ALPHA
    k, n, _ = stopped(rule, target - 1e-3, 20_000, seed=1)
    assert (anytime_lower(k, n, ALPHA) >= target).mean() <= ALPHA


@pytest.mark.parametrize("p", [0.3, 0.7, 0.9, 0.99])
def test_relative_precision_saves_copies_and_keeps_the_radius(p):
    rule = RelativePrecision(precision=0.1)
    k, n, last = stopped(rule, p, 300)
    kept = certified_radius(anytime_lower(k, n, rule.alpha), 1.0)
    whole = certified_radius(anytime_lower(last, N_MAX, rule.alpha), 1.0)
    assert n.mean() <= 0.9 * N_MAX
    assert (kept >= 0.9 * whole - 1e-12).mean() > 0.85
    assert kept.mean() >= 0.9 * whole.mean()


@pytest.mark.parametrize("p", [0.3, 0.7, 0.9, 0.99])
def test_absolute_precision_saves_copies_and_keeps_the_radius(p):
    rule = AbsolutePrecision(0.2)
    k, n, last = stopped(rule, p, 300)
    kept = certified_radius(anytime_lower(k, n, rule.alpha), 1.0)
    whole = certified_radius(anytime_lower(last, N_MAX, rule.alpha), 1.0)
    assert n.mean() <= 0.9 * N_MAX
    assert (kept >= whole - 0.2 - 1e-12).mean() > 0.85


def test_absolute_precision_spends_less_on_small_radii():
    sizes = {
        kind: [next(n for n in range(50, 10_001, 50) if kind.settled(round(p * n), n, 10_000)) for p in (0.6, 0.99)]
        for kind in (AbsolutePrecision(0.1), RelativePrecision(0.05))
    }
    absolute, relative = sizes.values()
    assert absolute[0] < absolute[1]
    assert relative[0] > relative[1]


def test_relative_precision_stops_where_no_radius_is_left():
    rule = RelativePrecision()
    assert rule.settled(10, 100, 10_000)
    assert not rule.settled(60, 100, 10_000)
    assert rule.settled(510, 1000, 1100)  # too few copies are left
    assert not rule.settled(510, 1000, 10_000)


@pytest.mark.parametrize("k", [0, 40, 70, 99, 100])
def test_the_end_of_the_budget_settles_everything(k):
    assert RelativePrecision().settled(k, 100, 100)
    assert AbsolutePrecision().settled(k, 100, 100)
    assert TargetRadius(1.0).settled(k, 100, 100)


def test_a_finer_precision_needs_more_copies():
    sizes = [
        next(n for n in range(50, 10_001, 50) if RelativePrecision(precision).settled(9 * n // 10, n, 10_000))
        for precision in (0.3, 0.1, 0.05, 0.01)
    ]
    assert sizes == sorted(set(sizes))


def test_a_target_is_certified_or_out_of_reach():
    rule = TargetRadius(1.0)
    n_max = 10_000
    certified = next(k for k in range(1001) if radius(k, 1000) >= 1.0)
    assert rule.settled(certified, 1000, n_max)
    assert not rule.settled(certified - 1, 1000, n_max)
    assert rule.settled(600, 1000, n_max)
    # 970 of 1000 copies are the best that can still come, and too few.
    assert attainable_radius(70, 100, 1000, 0.001) < 2.5
    assert TargetRadius(2.5).settled(70, 100, 1000)
    assert not TargetRadius(1.0, alpha=1e-12).settled(certified, 1000, n_max)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (30, 60), (90, 100), (400, 400), (9000, 10_000)])
def test_what_is_attainable_lies_between_what_is_certified_and_the_best_that_can_come(k, n):
    attainable = attainable_radius(k, n, 10_000, 0.001)
    assert radius(k, n) <= attainable <= radius(k + 10_000 - n, 10_000)
    upper = float(certified_radius(anytime_upper(k, n, 0.05), 1.0))
    assert attainable <= upper


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: RelativePrecision(precision=0.0), "precision"),
        (lambda: RelativePrecision(precision=1), "precision"),
        (lambda: RelativePrecision(precision=math.nan), "precision"),
        (lambda: RelativePrecision(precision=True), "precision"),
        (lambda: RelativePrecision(alpha=0.0), "alpha"),
        (lambda: AbsolutePrecision(0.0), "precision_in_sigma"),
        (lambda: AbsolutePrecision(math.nan), "precision_in_sigma"),
        (lambda: AbsolutePrecision(alpha=1.0), "alpha"),
        (lambda: TargetRadius(0.0), "radius_in_sigma"),
        (lambda: TargetRadius(math.inf), "radius_in_sigma"),
        (lambda: TargetRadius(math.nan), "radius_in_sigma"),
        (lambda: TargetRadius(None), "radius_in_sigma"),
        (lambda: TargetRadius(1.0, alpha=1), "alpha"),
        (lambda: TargetRadius(1.0, alpha=None), "alpha"),
        (lambda: RelativePrecision().settled(1, 11, 10), "n"),
        (lambda: RelativePrecision().settled(2, 1, 10), "k"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(make, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        make()
