from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm

from deqcert.errors import SettingError
from deqcert.statistics import (
    certified_radius,
    clopper_pearson_lower,
    clopper_pearson_upper,
    hypergeometric_upper,
)

ALPHAS = (0.0005, 0.0123, 0.0777, 0.31)
levels = st.floats(1e-6, 0.999)


def hypergeometric_cdf(m: int, population: int, marked: int, sample: int) -> Fraction:
    favourable = sum(math.comb(marked, i) * math.comb(population - marked, sample - i) for i in range(m + 1))
    return Fraction(favourable, math.comb(population, sample))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", [1, 2, 7, 30, 10_000])
def test_clopper_pearson_equals_scipys_exact_interval(n, alpha):
    for k in sorted({0, 1, n // 2, n - 1, n}):
        lower = binomtest(k, n, alternative="greater").proportion_ci(1 - alpha, method="exact").low
        upper = binomtest(k, n, alternative="less").proportion_ci(1 - alpha, method="exact").high
        assert float(clopper_pearson_lower(k, n, alpha)) == pytest.approx(lower, rel=1e-9)
        assert float(clopper_pearson_upper(k, n, alpha)) == pytest.approx(upper, rel=1e-9)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", range(1, 13))
def test_clopper_pearson_inverts_the_binomial_tail(n, alpha):
    k = np.arange(n + 1)
    lower, upper = clopper_pearson_lower(k, n, alpha), clopper_pearson_upper(k, n, alpha)
    np.testing.assert_allclose(binom.sf(k[1:] - 1, n, lower[1:]), alpha)
    np.testing.assert_allclose(binom.cdf(k[:-1], n, upper[:-1]), alpha)
    assert lower[0] == 0
    assert upper[-1] == 1


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", [1, 5, 12])
def test_clopper_pearson_fails_with_probability_at_most_alpha(n, alpha):
    k = np.arange(n + 1)
    for p in np.linspace(0, 1, 101):
        mass = binom.pmf(k, n, p)
        assert mass[clopper_pearson_lower(k, n, alpha) > p].sum() <= alpha
        assert mass[clopper_pearson_upper(k, n, alpha) < p].sum() <= alpha


@given(data=st.data(), n=st.integers(1, 20_000), alpha=levels)
@settings(deadline=None)
def test_clopper_pearson_lower_grows_with_k_and_stays_below_the_frequency_for_small_alpha(data, n, alpha):
    k = data.draw(st.integers(0, n - 1))
    low, high = clopper_pearson_lower([k, k + 1], n, alpha)
    assert 0 <= low < high < 1
    if alpha < 0.2:
        assert low <= k / n


@given(data=st.data(), n=st.integers(1, 20_000), alpha=levels)
@settings(deadline=None)
def test_clopper_pearson_upper_mirrors_lower(data, n, alpha):
    k = data.draw(st.integers(0, n))
    assert float(clopper_pearson_upper(k, n, alpha)) == pytest.approx(
        1 - float(clopper_pearson_lower(n - k, n, alpha)), abs=1e-12
    )


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("population", range(11))
def test_hypergeometric_upper_equals_enumeration(population, alpha):
    for sample in range(population + 1):
        for m in range(sample + 1):
            possible = range(m, population - (sample - m) + 1)
            expected = max(marked for marked in possible if hypergeometric_cdf(m, population, marked, sample) > alpha)
            assert hypergeometric_upper(m, population, sample, alpha) == expected


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("population", "sample"), [(10, 4), (13, 1), (17, 9)])
def test_hypergeometric_upper_fails_with_probability_at_most_alpha(population, sample, alpha):
    for marked in range(population + 1):
        failure = Fraction(0)
        for m in range(max(0, sample - population + marked), min(sample, marked) + 1):
            if marked > hypergeometric_upper(m, population, sample, alpha):
                ways = math.comb(marked, m) * math.comb(population - marked, sample - m)
                failure += Fraction(ways, math.comb(population, sample))
        assert failure <= alpha


@pytest.mark.parametrize(("m", "population", "sample"), [(0, 10_000, 1000), (3, 10_000, 400), (90, 5500, 400)])
def test_hypergeometric_upper_is_the_last_plausible_count_at_full_size(m, population, sample):
    alpha = 0.0005
    marked = int(hypergeometric_upper(m, population, sample, alpha))
    assert hypergeometric_cdf(m, population, marked, sample) > alpha
    assert hypergeometric_cdf(m, population, marked + 1, sample) <= alpha


@given(data=st.data(), population=st.integers(0, 2000), alpha=levels)
@settings(deadline=None)
def test_hypergeometric_upper_stays_within_what_was_seen(data, population, alpha):
    sample = data.draw(st.integers(0, population))
    m = data.draw(st.integers(0, sample))
    bound = hypergeometric_upper(m, population, sample, alpha)
    assert m <= bound <= population - (sample - m)
    assert hypergeometric_upper(m, population, sample, alpha / 2) >= bound
    if m < sample:
        assert hypergeometric_upper(m + 1, population, sample, alpha) >= bound


def test_hypergeometric_upper_without_a_sample_or_with_all_of_it():
    assert hypergeometric_upper(0, 50, 0, 0.01) == 50
    assert hypergeometric_upper(0, 0, 0, 0.01) == 0
    assert hypergeometric_upper(3, 50, 50, 0.01) == 3


def test_bounds_broadcast_and_agree_with_their_scalars():
    k, n, alpha = np.array([[3], [8]]), np.array([10, 20, 30]), 0.05
    for bound in (clopper_pearson_lower, clopper_pearson_upper):
        expected = [[float(bound(int(i), int(j), alpha)) for j in n] for i in k[:, 0]]
        np.testing.assert_array_equal(bound(k, n, alpha), expected)
    levels = np.array([0.01, 0.2])
    upper = hypergeometric_upper(k, 40, 12, levels)
    assert upper.dtype == np.int64
    np.testing.assert_array_equal(upper, [[int(hypergeometric_upper(i, 40, 12, a)) for a in levels] for i in (3, 8)])
    assert hypergeometric_upper(3, 3, 3, levels).shape == (2,)
    assert clopper_pearson_lower(3, 10, alpha).shape == ()


def test_certified_radius_is_sigma_times_the_normal_quantile():
    p = np.array([0.0, 0.3, 0.5, 0.6, 0.99, 1.0])
    expected = [0, 0, 0, 0.25 * norm.ppf(0.6), 0.25 * norm.ppf(0.99), math.inf]
    np.testing.assert_allclose(certified_radius(p, 0.25), expected)
    assert certified_radius(np.nextafter(0.5, 1), 1.0) > 0


@pytest.mark.parametrize("bound", [clopper_pearson_lower, clopper_pearson_upper])
@pytest.mark.parametrize(
    ("k", "n", "alpha", "message"),
    [
        (3.0, 10, 0.1, r"k = 3\.0: must be of integer type"),
        (True, 10, 0.1, "k = True: must be of integer type"),
        (3, 10.5, 0.1, r"n = 10\.5: must be of integer type"),
        (-1, 10, 0.1, "k = -1: must be >= 0"),
        ([2, 11], 10, 0.1, "k = 11: must be <= n"),
        (0, 0, 0.1, "n = 0: must be >= 1"),
        (3, 10, 0.0, r"alpha = 0\.0: must be in \(0, 1\)"),
        (3, 10, 1, r"alpha = 1\.0: must be in \(0, 1\)"),
        (3, 10, math.nan, r"alpha = nan: must be in \(0, 1\)"),
    ],
)
def test_clopper_pearson_names_the_bad_argument(bound, k, n, alpha, message):
    with pytest.raises(SettingError, match=message):
        bound(k, n, alpha)


@pytest.mark.parametrize(
    ("m", "population", "sample", "alpha", "message"),
    [
        (4, 10, 3, 0.1, "m = 4: must be <= sample"),
        (0, 10, 11, 0.1, "sample = 11: must be <= population"),
        (0, -1, 0, 0.1, "population = -1: must be >= 0"),
        (0.5, 10, 3, 0.1, r"m = 0\.5: must be of integer type"),
        (0, 10, 3, 1.5, r"alpha = 1\.5"),
    ],
)
def test_hypergeometric_upper_names_the_bad_argument(m, population, sample, alpha, message):
    with pytest.raises(SettingError, match=message):
        hypergeometric_upper(m, population, sample, alpha)


@pytest.mark.parametrize("sigma", [0.0, -0.5, math.inf, math.nan])
def test_certified_radius_refuses_a_sigma_that_is_no_scale(sigma):
    with pytest.raises(SettingError, match=r"sigma = .*must be > 0"):
        certified_radius(0.9, sigma)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_certified_radius_refuses_what_is_no_probability(p):
    with pytest.raises(SettingError, match=r"p_a_lower = .*must be in \[0, 1\]"):
        certified_radius(p, 0.5)
