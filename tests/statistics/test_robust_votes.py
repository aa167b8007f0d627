"""Radii from votes that hold within a margin by themselves, against classifiers of which everything is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom, norm

from deqcert.errors import SettingError
from deqcert.statistics import certified_radius, clopper_pearson_lower, radius_of_robust_votes

SIGMAS = st.floats(0.05, 2)


def radius(p_lower, sigma, margin):
    return float(radius_of_robust_votes(p_lower, sigma, margin))


@given(p=st.floats(0, 1), sigma=SIGMAS)
def test_without_a_margin_it_is_the_certified_radius(p, sigma):
    assert radius(p, sigma, 0) == float(certified_radius(p, sigma))


@given(distance=st.floats(0, 3), sigma=SIGMAS, margin=st.floats(0, 3))
def test_a_half_space_is_certified_exactly(distance, sigma, margin):
    """f = A left of ``distance``; it holds within the margin left of ``distance`` − margin."""
    p = norm.cdf((distance - margin) / sigma)
    if 1e-9 < p < 1 - 1e-9:
        assert radius(p, sigma, margin) == pytest.approx(distance, rel=1e-5, abs=1e-5)


@given(low=st.floats(0, 2), high=st.floats(0, 2), sigma=SIGMAS, share=st.floats(0, 1))
@example(low=0.0, high=1.0, sigma=0.0625, share=0.875)
def test_an_interval_never_loses_its_class_within_the_radius(low, high, sigma, share):
    """f = A on [−low, high], the image being 0: the radius that holds is that of the nearer side."""

    def probability(a, b):
        a, b = a / sigma, b / sigma
        return norm.sf(a) - norm.sf(b) if a > 0 else norm.cdf(b) - norm.cdf(a)  # without cancellation in the tails

    def p_a(x):
        return probability(-low - x, high - x)

    margin = share * (low + high) / 2
    p = probability(-low + margin, high - margin)
    p = min(max(p, 0.0), 1 - 1e-9)  # a lower bound, with a finite quantile
    certified = radius(p, sigma, margin)
    if p_a(0) <= 0.5:
        assert certified <= 1e-9
        return
    right, left = (brentq(lambda t, side=side: p_a(side * t) - 0.5, 0, 20) for side in (1, -1))
    assert certified <= min(left, right) + 1e-9


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("sigma", [0.25, 1.0])
@pytest.mark.parametrize("n", [1, 20, 300])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_the_radius_exceeds_the_true_one_with_probability_at_most_alpha(margin, sigma, n, alpha):
    """Exactly, by the distribution of the votes, where the theorem is tight: a half-space at any distance."""
    counts = np.arange(n + 1)
    radii = radius_of_robust_votes(clopper_pearson_lower(counts, n, alpha), sigma, margin)
    for distance in np.linspace(0, 4 * sigma, 41):
        p = norm.cdf((distance - margin) / sigma)
        assert binom.pmf(counts, n, p)[radii > distance + 1e-12].sum() <= alpha * (1 + 1e-9)


def test_votes_that_all_agree_certify_more_by_the_margin():
    p = clopper_pearson_lower(1000, 1000, 0.001)
    assert radius(p, 0.25, 0.2) == pytest.approx(radius(p, 0.25, 0) + 0.2)


def test_nothing_is_certified_without_votes():
    assert radius(0, 0.5, 10) == 0
    assert radius(0.2, 0.5, 0.1) == 0


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((1.1, 0.5, 0.1), "p_lower"),
        ((float("nan"), 0.5, 0.1), "p_lower"),
        ((0.9, 0.0, 0.1), "sigma"),
        ((0.9, float("inf"), 0.1), "sigma"),
        ((0.9, 0.5, -0.1), "margin"),
        ((0.9, 0.5, float("nan")), "margin"),
    ],
)
def test_bad_arguments_are_named(arguments, field):
    with pytest.raises(SettingError, match=field):
        radius_of_robust_votes(*arguments)
