from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr

from deqcert.errors import SettingError
from deqcert.statistics import CertificationRule
from deqcert.statistics.noise_error import noise_error, thresholds


@pytest.mark.parametrize("sigma", [0.002, 0.12, 0.25, 0.5, 1.0])
def test_thresholds_and_total_variation_are_within_what_the_bound_claims(sigma):
    mpmath = pytest.importorskip("mpmath")
    found = [int(each) for each in thresholds(sigma)]
    largest = len(found) // 2
    with mpmath.workdps(50):
        scale = 255 * mpmath.mpf(sigma)

        def exact(level):  # 2^63 P(k <= level)
            return 2**62 * mpmath.erfc(-(level + 0.5) / scale / mpmath.sqrt(2))

        cumulative = [exact(level) for level in range(-largest - 1, largest + 1)]
        assert cumulative[0] < 0.5 + 1e-19  # the first threshold that was left out
        for right, wrong in zip(cumulative[1:], found, strict=False):
            assert abs(right - wrong) <= 0.5 + 1e-19

        drawn = np.diff(np.array([0, *found, 2**63], dtype=object))
        truth = np.diff(np.array(cumulative, dtype=object))  # the probabilities of -K ... K
        beyond = 2 * cumulative[0]
        distance = (sum(abs(drawn - truth)) + beyond) / 2 / 2**63
        assert distance <= mpmath.mpf(largest + 1) / 2**63 <= noise_error("quantised", 1)
        assert distance > 0


def test_the_largest_sigma_has_fewer_levels_than_the_bound_allows():
    assert 2**14 < len(thresholds(14)) // 2 + 1 < 2**15


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3])
def test_thresholds_ascend_are_symmetric_and_agree_with_scipy(sigma):
    found = thresholds(sigma)
    assert found.dtype == np.int64
    assert (np.diff(found) >= 0).all()  # neighbours in the tails may round to the same integer
    assert (found > 0).all()
    assert all(int(low) + int(high) == 2**63 for low, high in zip(found, found[::-1], strict=True))
    middle = np.arange(len(found)) - len(found) // 2 + 0.5
    assert np.allclose(found / 2.0**63, ndtr(middle / (255 * sigma)), rtol=1e-13, atol=2.0**-64)


def test_noise_far_below_a_level_is_none():
    assert len(thresholds(1e-5)) == len(thresholds(5e-324)) == 0


@pytest.mark.parametrize("sigma", [0, -0.5, 14.001, math.inf, math.nan])
def test_thresholds_name_a_bad_sigma(sigma):
    with pytest.raises(SettingError, match=r"sigma = .*: must be in \(0, 14\]"):
        thresholds(sigma)


def test_error_of_the_data_sets():
    assert noise_error("quantised", 3 * 32 * 32) == 3072 * 2.0**-48 < 1.1e-11
    assert noise_error("quantised", 3 * 224 * 224) == 150528 * 2.0**-48 < 5.4e-10
    assert noise_error("float32", 3072) == 0.0


@pytest.mark.parametrize(("noise", "pixels", "named"), [("float64", 1, "noise"), ("quantised", 0, "pixels")])
def test_error_names_the_bad_argument(noise, pixels, named):
    with pytest.raises(SettingError, match=named):
        noise_error(noise, pixels)


@pytest.mark.parametrize("audit", ["joint", "exact", "binomial", "published"])
@pytest.mark.parametrize("audited", [True, False])
def test_every_rule_subtracts_the_error(make_votes, standard_votes, audit, audited):
    rule, votes = CertificationRule(audit=audit), make_votes() if audited else standard_votes
    without, _ = rule.bounds(votes)
    assert rule.bounds(votes._replace(noise_error=0.125)) == (without - 0.125, None)
    assert rule.bounds(votes._replace(noise_error=0.999)) == (0.0, None)


@pytest.mark.parametrize("escalated", [True, False])
def test_two_sides_add_the_error_to_the_other_one(make_votes, standard_votes, escalated):
    rule = CertificationRule(sides="two")
    asked = {"escalations": 400, "escalated": (80, 220, 90), "escalated_from": (110, 190, 100), "audited": 300}
    all_of_them = {"mismatches": 0, "audited_as": (80, 300, 90), "mistaken": (0, 0, 0)}
    votes = make_votes(**asked, **all_of_them) if escalated else standard_votes
    votes = votes._replace(estimation=(200, 600, 200))
    p_a, p_b = rule.bounds(votes)
    assert p_b < 1 - p_a - 0.125  # so that what is not A does not bound it
    assert rule.bounds(votes._replace(noise_error=0.0625)) == (p_a - 0.0625, p_b + 0.0625)
    assert rule.bounds(votes._replace(noise_error=0.999)) == (0.0, 1.0)
    assert 0 < rule.certify(votes._replace(noise_error=0.03)).radius < rule.certify(votes).radius


def test_the_error_costs_radius_and_then_the_certificate(standard_votes):
    rule = CertificationRule()
    certificate = rule.certify(standard_votes._replace(noise_error=0.125))
    assert certificate.p_a_lower == rule.bounds(standard_votes)[0] - 0.125
    assert 0 < certificate.radius < rule.certify(standard_votes).radius
    abstention = rule.certify(standard_votes._replace(noise_error=0.5))
    assert (abstention.prediction, abstention.radius) == (-1, 0.0)


@pytest.mark.parametrize("error", [-1e-9, 1.0, math.nan, math.inf])
def test_rule_names_a_bad_error(standard_votes, error):
    with pytest.raises(SettingError, match=r"^noise_error = "):
        CertificationRule().certify(standard_votes._replace(noise_error=error))
