"""When sampling stops, and what that does to certificates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr

from deqcert.errors import SettingError
from deqcert.statistics import (
    InputSpecific,
    Stopping,
    TargetRadius,
    anytime_lower,
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
@pytest.mark.parametrize("rule", [TargetRadius(0.3, ALPHA), TargetRadius(0.8, ALPHA)], ids=str)
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


def test_a_target_costs_a_clear_image_little_and_is_seldom_missed():
    """Well above and well below, few samples are drawn; where a fixed n would certify with ease, so does the rule."""
    rule = TargetRadius(0.8)
    for p, certified in ((0.6, 0.0), (0.95, 1.0)):
        k, n, _ = stopped(rule, p, 300)
        assert n.mean() < 0.4 * N_MAX
        assert (certified_radius(anytime_lower(k, n, 0.001), 1.0) >= 0.8).mean() == pytest.approx(certified, abs=0.05)


@pytest.mark.parametrize(
    ("rule", "stated"),
    [(TargetRadius(1.0), TargetRadius(1.0, 0.01)), (InputSpecific(0.1), InputSpecific(0.1, alpha=0.01))],
)
def test_a_rule_without_alpha_takes_that_of_the_certificates(rule, stated):
    assert rule.aimed_at(0.01) == stated
    assert stated.aimed_at(0.2) == stated
    for k in range(0, 101, 5):
        assert rule.budget(k, 100, 5000) == rule.aimed_at(0.001).budget(k, 100, 5000)
        assert rule.settled(k, 100, 5000) == rule.aimed_at(0.001).settled(k, 100, 5000)


def test_a_rule_of_the_user_needs_no_alpha():
    class Never(Stopping):
        def settled(self, k, n, n_max):
            return False

    rule = Never()
    assert rule.aimed_at(0.01) is rule


@pytest.mark.parametrize("k", [0, 40, 70, 99, 100])
def test_the_end_of_the_budget_settles_everything(k):
    assert TargetRadius(1.0).settled(k, 100, 100)


def test_a_target_is_certified_or_out_of_reach():
    rule = TargetRadius(1.0)
    n_max = 10_000
    certified = next(k for k in range(1001) if radius(k, 1000) >= 1.0)
    assert rule.settled(certified, 1000, n_max)
    assert not rule.settled(certified - 1, 1000, n_max)
    assert rule.settled(600, 1000, n_max)
    # 970 of 1000 samples are the best that can still come, and too few.
    assert attainable_radius(70, 100, 1000, 0.001) < 2.5
    assert TargetRadius(2.5).settled(70, 100, 1000)
    assert not TargetRadius(1.0, alpha=1e-12).settled(certified, 1000, n_max)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (30, 60), (90, 100), (400, 400), (9000, 10_000)])
def test_what_is_attainable_lies_between_what_is_certified_and_the_best_that_can_come(k, n):
    attainable = attainable_radius(k, n, 10_000, 0.001)
    assert radius(k, n) <= attainable <= radius(k + 10_000 - n, 10_000)
    upper = float(certified_radius(1 - anytime_lower(n - k, n, 0.05), 1.0))
    assert attainable <= upper


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: TargetRadius(0.0), "radius_in_sigma"),
        (lambda: TargetRadius(math.inf), "radius_in_sigma"),
        (lambda: TargetRadius(math.nan), "radius_in_sigma"),
        (lambda: TargetRadius(None), "radius_in_sigma"),
        (lambda: TargetRadius(1.0, alpha=1), "alpha"),
        (lambda: TargetRadius(1.0, alpha=True), "alpha"),
        (lambda: TargetRadius(1.0).aimed_at(0.0), "alpha"),
        (lambda: TargetRadius(1.0).settled(1, 11, 10), "n"),
        (lambda: TargetRadius(1.0).settled(2, 1, 10), "k"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(make, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        make()
