from __future__ import annotations

import dataclasses

import pytest
from scipy.stats import beta, norm

from deqcert.errors import DataError, SettingError
from deqcert.statistics import (
    Certificate,
    CertificationRule,
    anytime_lower,
    binomial_effective_count,
    clopper_pearson_lower,
    exact_effective_count,
    published_p_a_lower,
)


def test_standard_votes_use_all_of_alpha_whatever_the_audit_rule(standard_votes):
    for audit in ("exact", "binomial", "published"):
        rule = CertificationRule(alpha=0.01, alpha_audit=0.009, audit=audit)
        expected = beta.ppf(0.01, 950, 51)
        assert rule.p_a_lower(standard_votes) == pytest.approx(expected, rel=1e-12)
        assert rule.certify(standard_votes).sound


@pytest.mark.parametrize(
    ("audit", "effective_count"), [("exact", exact_effective_count), ("binomial", binomial_effective_count)]
)
@pytest.mark.parametrize(("alpha_audit", "share"), [(None, 0.005), (0.002, 0.002)])
def test_audited_votes_share_alpha(make_votes, audit, effective_count, alpha_audit, share):
    rule = CertificationRule(alpha=0.01, alpha_audit=alpha_audit, audit=audit)
    n_eff = effective_count(950, 400, 2, share)
    assert rule.p_a_lower(make_votes()) == float(clopper_pearson_lower(n_eff, 1000, 0.01 - share))
    assert rule.certify(make_votes()).sound


def test_votes_that_were_stopped_use_the_bound_that_holds_wherever_sampling_stops(standard_votes):
    rule = CertificationRule(alpha=0.01)
    votes = standard_votes._replace(anytime=True)
    assert rule.p_a_lower(votes) == float(anytime_lower(950, 1000, 0.01)) < rule.p_a_lower(standard_votes)
    assert rule.p_a_lower(votes._replace(noise_error=0.125)) == rule.p_a_lower(votes) - 0.125
    assert rule.certify(votes).sound


def test_audited_votes_that_were_stopped_have_no_proof(make_votes):
    for audit in ("exact", "binomial", "published"):
        with pytest.raises(DataError, match="anytime = True"):
            CertificationRule(audit=audit).certify(make_votes(anytime=True))


def test_published_rule_is_marked_unsound(make_votes):
    certificate = CertificationRule(alpha=0.01, audit="published").certify(make_votes())
    assert certificate.p_a_lower == float(published_p_a_lower(950, 1000, 400, 2, 0.01))
    assert not certificate.sound


def test_certificate_of_audited_votes(make_votes):
    rule = CertificationRule()
    certificate = rule.certify(make_votes(sigma=0.25))
    p_a_lower = rule.p_a_lower(make_votes())
    assert certificate == Certificate(1, 0.25 * norm.ppf(p_a_lower), p_a_lower, True, index=7, label=1)
    assert certificate.correct
    assert all(type(value) in (int, float, bool) for value in certificate)


def test_a_confident_wrong_class_is_not_correct(make_votes):
    certificate = CertificationRule().certify(make_votes(label=0, sigma=0.25))
    assert certificate.prediction == 1
    assert certificate.radius > 0
    assert not certificate.correct


@pytest.mark.parametrize("audit", ["exact", "binomial", "published"])
@pytest.mark.parametrize(
    "changes", [{"audited": 0, "mismatches": 0}, {"estimation": (470, 500, 30)}, {"mismatches": 400}]
)
def test_abstention(make_votes, audit, changes):
    certificate = CertificationRule(audit=audit).certify(make_votes(**changes))
    assert (certificate.prediction, certificate.radius) == (-1, 0.0)
    assert certificate.p_a_lower <= 0.5
    assert not certificate.correct


def test_auditing_costs_radius_and_mismatches_cost_more(make_votes, standard_votes):
    rule = CertificationRule()
    radii = [rule.certify(standard_votes).radius]
    radii += [rule.certify(make_votes(mismatches=m)).radius for m in (0, 1, 5, 50)]
    assert radii == sorted(radii, reverse=True)
    assert len(set(radii)) == len(radii)


def test_sigma_must_be_positive(standard_votes):
    with pytest.raises(SettingError, match=r"sigma = 0\.0"):
        CertificationRule().certify(standard_votes._replace(sigma=0.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, r"alpha = 0\.0: must be in \(0, 1\)"),
        ({"alpha": 1.0}, r"alpha = 1\.0: must be in \(0, 1\)"),
        ({"alpha": 0.01, "alpha_audit": 0.01}, r"alpha_audit = 0\.01: must be in \(0, alpha = 0\.01\)"),
        ({"alpha_audit": 0.0}, r"alpha_audit = 0\.0"),
        ({"audit": "none"}, "audit = 'none': must be one of exact, binomial, published"),
    ],
)
def test_rule_names_the_bad_setting(settings, message):
    with pytest.raises(SettingError, match=message):
        CertificationRule(**settings)


def test_rule_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CertificationRule().alpha = 0.1
