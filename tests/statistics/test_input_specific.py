"""How many copies the selection asks for, and that certificates of them hold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deqcert.errors import SettingError
from deqcert.statistics import InputSpecific, certified_radius, clopper_pearson_lower

N_MAX, ALPHA = 10_000, 0.05


def radius(k, n, alpha=0.001):
    return float(certified_radius(clopper_pearson_lower(k, n, alpha), 1.0))


def budgets(rule, n0, n_max=N_MAX):
    return np.array([rule.budget(k0, n0, n_max) for k0 in range(n0 + 1)])


@pytest.mark.parametrize("p", [0.5, 0.55, 0.8, 0.95])
@pytest.mark.parametrize("rule", [InputSpecific(0.2, alpha=ALPHA), InputSpecific(0.3, "absolute", ALPHA)], ids=str)
def test_certificates_are_false_at_most_with_alpha(rule, p):
    simulations, n0, n_max = 20_000, 100, 1000
    generator = np.random.default_rng(0)
    n = budgets(rule, n0, n_max)[generator.binomial(n0, p, simulations)]
    k = generator.binomial(n, p)
    assert len(set(n.tolist())) >= 3
    rate = (clopper_pearson_lower(k, n, ALPHA) > p).mean()
    assert rate <= ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / simulations)


def test_counting_the_pilot_again_would_not_hold():
    """As the public code does: the pilot chooses class and n, and is counted among the copies that it has chosen."""
    simulations, n0, n_max, p = 20_000, 200, 1000, 0.5
    rule = InputSpecific(0.3, "absolute", ALPHA)
    generator = np.random.default_rng(1)
    pilot = generator.binomial(n0, p, simulations)
    selected = np.maximum(pilot, n0 - pilot)  # of two classes
    n = np.maximum(budgets(rule, n0, n_max)[selected], n0)
    again = selected + generator.binomial(n - n0, p)
    fresh = generator.binomial(n, p)
    assert (clopper_pearson_lower(again, n, ALPHA) > p).mean() > 1.4 * ALPHA
    assert (clopper_pearson_lower(fresh, n, ALPHA) > p).mean() <= ALPHA + 4 * math.sqrt(ALPHA / simulations)


@pytest.mark.parametrize(("p", "n0"), [(0.7, 1000), (0.9, 1000), (0.99, 1000), (1.0, 400)])
@pytest.mark.parametrize("loss", ["relative", "absolute"])
def test_what_is_lost_is_what_was_allowed(loss, p, n0):
    rule = InputSpecific(0.1, loss)
    n = rule.budget(round(p * n0), n0, N_MAX)
    kept, whole = radius(math.floor(p * n), n), radius(math.floor(p * N_MAX), N_MAX)
    assert n < N_MAX
    assert kept >= (0.9 * whole if loss == "relative" else whole - 0.1) - 1e-3
    assert kept < whole


@pytest.mark.parametrize("rule", [InputSpecific(0.1), InputSpecific(0.1, "absolute")], ids=str)
def test_nothing_between_the_bounds_asks_for_more(rule):
    """Sizes of p with a radius have no maximum inside, but for the whole numbers that p n is rounded to."""
    sizes = [rule._size(p, N_MAX) for p in np.linspace(0.52, 1, 201)]
    assert max(sizes) > 3 * min(sizes)
    for i, j in [(0, 40), (20, 100), (100, 150), (150, 200), (0, 200)]:
        assert max(sizes[i : j + 1]) <= 1.1 * max(sizes[i], sizes[j]) + 10


def test_hopeless_images_cost_nothing_and_the_budget_is_kept():
    rule = InputSpecific()
    assert rule.budget(20, 100, N_MAX) == 1
    assert all(1 <= size <= 50 for size in budgets(rule, 100, 50))
    assert not rule.settled(50, 100, N_MAX)
    assert not rule.anytime


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: InputSpecific(0.0), "radius_loss"),
        (lambda: InputSpecific(1), "radius_loss"),
        (lambda: InputSpecific(math.inf, "absolute"), "radius_loss"),
        (lambda: InputSpecific(math.nan), "radius_loss"),
        (lambda: InputSpecific(0.1, "both"), "loss"),
        (lambda: InputSpecific(alpha=0), "alpha"),
        (lambda: InputSpecific(doubt=1.0), "doubt"),
        (lambda: InputSpecific().budget(11, 10, 100), "k"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(make, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        make()
