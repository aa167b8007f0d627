from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom
from scipy.stats import norm as gaussian

from deqcert.errors import SettingError
from deqcert.statistics import certified_radius, claimed_probability, clopper_pearson_upper, false_certificates_upper


@pytest.mark.parametrize("p", [0.6, 0.9, 0.999])
@pytest.mark.parametrize("sigma", [0.25, 1.0])
def test_the_claim_is_the_bound_at_the_image_and_one_half_at_the_radius(p, sigma):
    radius = certified_radius(p, sigma)
    assert claimed_probability(radius, 0.0, sigma) == pytest.approx(p, rel=1e-12)
    assert claimed_probability(radius, radius, sigma) == 0.5
    claims = claimed_probability(radius, np.linspace(0, 3, 50), sigma)
    assert (np.diff(claims) < 0).all()


@pytest.mark.parametrize("p_b", [0.05, 0.4, 0.7])
def test_the_claim_of_another_class_is_the_bound_at_the_image_and_grows_with_the_distance(p_b):
    """A half-space {x > t} of probability p_b at the image is approached along the shortest way."""
    sigma, distances = 0.5, np.linspace(0, 3, 50)
    radius = sigma * gaussian.ppf(1 - p_b)
    claims = 1 - claimed_probability(radius, distances, sigma)
    assert claims[0] == pytest.approx(p_b, rel=1e-12)
    np.testing.assert_allclose(claims, gaussian.cdf(gaussian.ppf(p_b) + distances / sigma), rtol=1e-12)
    assert (np.diff(claims) >= 0).all()


@pytest.mark.parametrize(("p_a", "p_b"), [(0.6, 0.3), (0.4, 0.35), (0.3, 0.01)])
def test_the_claims_of_two_classes_meet_at_the_radius(p_a, p_b):
    """Inside of it the certified class has more; beyond it, no longer."""
    sigma = 0.5
    radius = float(certified_radius(p_a, sigma, p_b))
    for factor, sign in ((0.99, 1), (1.0, 0), (1.01, -1)):
        a = claimed_probability(sigma * gaussian.ppf(p_a), factor * radius, sigma)
        b = 1 - claimed_probability(sigma * gaussian.ppf(1 - p_b), factor * radius, sigma)
        assert np.sign(np.round(a - b, 12)) == sign


def test_a_half_space_meets_the_claim_exactly():
    """The bound is tight: for f = 1[x <= t] the probability at distance d of the image is what is claimed."""
    sigma, t = 0.5, 0.4
    radius = certified_radius(gaussian.cdf(t / sigma), sigma)
    for distance in (0.0, 0.2, 0.4, 1.0):
        assert claimed_probability(radius, distance, sigma) == pytest.approx(gaussian.cdf((t - distance) / sigma))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((math.inf, 0.0, 0.5), "radius"),
        ((-math.inf, 0.0, 0.5), "radius"),
        ((math.nan, 0.0, 0.5), "radius"),
        ((0.1, math.nan, 0.5), "norm"),
        ((0.1, -1.0, 0.5), "norm"),
        ((0.1, 0.1, 0), "sigma"),
    ],
)
def test_bad_arguments_are_named(arguments, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        claimed_probability(*arguments)


def test_a_family_of_true_claims_is_refuted_as_rarely_as_promised():
    """Bonferroni: 40 tests a campaign, every claim true and as tight as can be, alpha = 0.05."""
    campaigns, tests, n, alpha = 4000, 40, 200, 0.05
    generator = np.random.default_rng(0)
    claimed = generator.uniform(0.3, 0.95, size=tests)
    counts = generator.binomial(n, claimed, size=(campaigns, tests))
    alarms = (clopper_pearson_upper(counts, n, alpha / tests) < claimed).any(axis=1).mean()
    assert alarms <= alpha
    unshared = (clopper_pearson_upper(counts, n, alpha) < claimed).any(axis=1).mean()
    assert unshared > 0.5, "without sharing alpha the simulation would see too many"
    assert alarms > alpha / 10, "the test has power to fail"


@pytest.mark.parametrize("alpha", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("m", [100, 1000, 10_000])
@pytest.mark.parametrize("rho", [0.1, 0.001])
def test_more_certificates_are_false_no_more_often_than_rho(alpha, m, rho):
    """The worst case: each certificate is false with probability alpha."""
    assert binom.sf(math.floor(m * false_certificates_upper(m, alpha, rho) + 1e-9), m, alpha) <= rho


def test_the_fraction_of_false_certificates_by_hand():
    expected = 0.001 + math.sqrt(2 * 0.001 * 0.999 * math.log(100) / 500) + math.log(100) / 1500
    assert false_certificates_upper(m=500, alpha=0.001, rho=0.01) == pytest.approx(expected)


@pytest.mark.parametrize("settings", [{"m": 0}, {"alpha": 0.0}, {"alpha": 1.0}, {"rho": 0.0}, {"rho": math.nan}])
def test_the_fraction_of_false_certificates_refuses(settings):
    with pytest.raises(SettingError, match=f"^{next(iter(settings))} = "):
        false_certificates_upper(**{"m": 500, "alpha": 0.001, "rho": 0.001} | settings)
