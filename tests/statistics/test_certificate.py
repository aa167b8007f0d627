from __future__ import annotations

import dataclasses
import math

import pytest
from scipy.stats import beta, norm

from deqcert.errors import DataError, SettingError
from deqcert.statistics import (
    Certificate,
    CertificationRule,
    binomial_effective_count,
    clopper_pearson_lower,
    clopper_pearson_upper,
    exact_effective_count,
    joint_p_a_lower,
    joint_p_b_upper,
    published_p_a_lower,
)
from deqcert.statistics.joint import joint_weight

AUDITS = ("joint", "exact", "binomial", "published")


def lower(rule, votes):
    return rule.bounds(votes)[0]


@pytest.fixture(scope="session")
def escalated_votes(make_votes):
    """100 escalated samples, of which f says 5, 80 and 12 (3 diverged), and 60 had been classified A."""
    return make_votes(escalations=100, escalated=(5, 80, 12), escalated_from=(15, 60, 25))


@pytest.mark.parametrize("audit", AUDITS)
def test_standard_votes_use_all_of_alpha_whatever_the_audit_rule(standard_votes, audit):
    rule = CertificationRule(alpha=0.01, alpha_audit=0.009 if audit in ("exact", "binomial") else None, audit=audit)
    assert rule.bounds(standard_votes) == (pytest.approx(beta.ppf(0.01, 950, 51), rel=1e-12), None)
    assert rule.certify(standard_votes).sound


def test_audited_votes_are_certified_by_the_joint_rule_unless_another_is_stated(make_votes):
    weight = joint_weight(80, 100, 1000, 0.01)
    expected = joint_p_a_lower(0, 950, 400, 2, 1000, 0.01, weight)
    assert CertificationRule(alpha=0.01).bounds(make_votes()) == (expected, None)
    assert CertificationRule(alpha=0.01, audit="joint").certify(make_votes()).sound
    assert expected > lower(CertificationRule(alpha=0.01, audit="exact"), make_votes())


@pytest.mark.parametrize(
    ("audit", "effective_count"), [("exact", exact_effective_count), ("binomial", binomial_effective_count)]
)
@pytest.mark.parametrize(("alpha_audit", "share"), [(None, 0.005), (0.002, 0.002)])
def test_audited_votes_share_alpha_by_a_union_bound(make_votes, audit, effective_count, alpha_audit, share):
    rule = CertificationRule(alpha=0.01, alpha_audit=alpha_audit, audit=audit)
    n_eff = effective_count(950, 400, 2, share)
    assert lower(rule, make_votes()) == float(clopper_pearson_lower(n_eff, 1000, 0.01 - share))
    assert rule.certify(make_votes()).sound


def test_escalated_samples_count_for_certain_and_are_not_audited(escalated_votes):
    weight = joint_weight(80, 100, 1000, 0.01)
    expected = joint_p_a_lower(80, 890, 400, 2, 1000, 0.01, weight)
    assert lower(CertificationRule(alpha=0.01), escalated_votes) == expected
    for audit, effective_count in (("exact", exact_effective_count), ("binomial", binomial_effective_count)):
        n_eff = 80 + effective_count(890, 400, 2, 0.005)
        expected = float(clopper_pearson_lower(n_eff, 1000, 0.005))
        assert lower(CertificationRule(alpha=0.01, audit=audit), escalated_votes) == expected


def test_the_published_rule_knows_no_escalation(escalated_votes):
    with pytest.raises(DataError, match="escalated = "):
        CertificationRule(audit="published").bounds(escalated_votes)


@pytest.mark.parametrize("audit", ["exact", "binomial"])
def test_votes_of_one_look_among_several_have_a_share_of_alpha(standard_votes, escalated_votes, audit):
    rule = CertificationRule(alpha=0.01, alpha_audit=0.004, audit=audit)
    stricter = CertificationRule(alpha=0.0025, alpha_audit=0.001, audit=audit)
    for votes in (standard_votes, escalated_votes):
        shared = votes._replace(anytime=True, alpha_share=0.25)
        assert lower(rule, shared) == pytest.approx(lower(stricter, votes), rel=1e-12)
        assert lower(rule, shared) < lower(rule, votes)
        assert rule.certify(shared).sound


def test_a_share_of_alpha_of_another_class_is_scaled_by_that_of_the_look(standard_votes):
    votes = standard_votes._replace(anytime=True, alpha_share=0.25)
    rule = CertificationRule(alpha=0.01, sides="two", alpha_b=0.004)
    expected = float(clopper_pearson_lower(950, 1000, 0.0015)), float(clopper_pearson_upper(30, 1000, 0.001))
    assert rule.bounds(votes) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("alpha_b", "share"), [(None, 0.001), (0.001, 0.001), (0.005, 0.005), (0.0099, 0.0099)])
def test_two_sides_bound_the_largest_other_count_with_a_share_of_alpha(standard_votes, alpha_b, share):
    """CERTIFY with theorem 1 of Cohen et al.; one other class is the most frequent, whatever selection says."""
    rule = CertificationRule(alpha=0.01, sides="two", alpha_b=alpha_b)
    votes = standard_votes._replace(selection=(19, 80, 1), estimation=(120, 700, 150))
    p_a, p_b = beta.ppf(0.01 - share, 700, 301), beta.isf(share, 151, 850)
    assert rule.bounds(votes) == pytest.approx((p_a, p_b), rel=1e-12)
    certificate = rule.certify(votes)
    assert certificate.radius == pytest.approx(0.25 * (norm.ppf(p_a) - norm.ppf(p_b)), rel=1e-12)
    assert (certificate.p_a_lower, certificate.p_b_upper) == rule.bounds(votes)
    assert certificate.sound
    assert certificate.radius > CertificationRule(alpha=0.01).certify(votes).radius


def test_two_sides_certify_a_class_below_one_half(standard_votes):
    votes = standard_votes._replace(estimation=(250, 450, 300))
    assert CertificationRule().certify(votes).prediction == -1
    certificate = CertificationRule(sides="two").certify(votes)
    assert certificate.prediction == 1
    assert certificate.p_b_upper < certificate.p_a_lower < 0.5
    expected = 0.25 * (norm.ppf(certificate.p_a_lower) - norm.ppf(certificate.p_b_upper))
    assert certificate.radius == pytest.approx(expected, rel=1e-12)
    assert certificate.radius > 0


@pytest.mark.parametrize("estimation", [(470, 470, 60), (400, 400, 200), (500, 450, 50), (460, 480, 60), (0, 0, 0)])
def test_ties_and_near_ties_are_abstentions(standard_votes, estimation):
    certificate = CertificationRule(sides="two").certify(standard_votes._replace(estimation=estimation))
    assert (certificate.prediction, certificate.radius) == (-1, 0.0)
    assert certificate.p_b_upper >= certificate.p_a_lower


def test_two_sides_claim_no_more_of_another_class_than_that_it_is_not_a(standard_votes):
    """Where nearly all samples are A, or nearly all others B, 1 - p_A bounds p_B better."""
    rule = CertificationRule(sides="two")
    for estimation in ((0, 1000, 0), (50, 950, 0)):
        p_a, p_b = rule.bounds(standard_votes._replace(estimation=estimation))
        assert p_b == 1 - p_a
        certificate = rule.certify(standard_votes._replace(estimation=estimation))
        assert certificate.radius == pytest.approx(0.5 * norm.ppf(p_a), rel=1e-12)


def test_of_one_class_nothing_is_said_of_others(standard_votes):
    votes = standard_votes._replace(label=0, selection=(100,), estimation=(980,))
    p_a, p_b = CertificationRule(sides="two").bounds(votes)
    assert p_a == float(clopper_pearson_lower(980, 1000, 0.0009))
    assert p_b == 1 - p_a


def test_two_sides_of_audited_votes_need_an_audit_of_all_classes(make_votes, escalated_votes):
    """Of samples that were not classified A, an audit of those that were says nothing."""
    for votes in (make_votes(), escalated_votes):
        with pytest.raises(DataError, match=r"audited_as = .*: expected an audit of all classes"):
            CertificationRule(sides="two").bounds(votes)


@pytest.mark.parametrize("audit", ["exact", "binomial", "published"])
def test_two_sides_of_audited_votes_need_the_joint_rule(make_votes, audit):
    votes = make_votes(audited_as=(10, 400, 20), mistaken=(1, 1, 0))
    with pytest.raises(SettingError, match=r"^audit = "):
        CertificationRule(audit=audit, sides="two").bounds(votes)


@pytest.mark.parametrize("look", [{}, {"anytime": True, "alpha_share": 0.25}])
@pytest.mark.parametrize(("alpha_b", "share"), [(None, 0.001), (0.004, 0.004)])
def test_two_sides_of_escalated_votes(make_votes, alpha_b, share, look):
    """Of 1000 samples f says c of 300; 160, 500 and 30 others were classified c, and 10 as nothing: any may be B."""
    asked = {"escalations": 300, "escalated": (90, 100, 105), "escalated_from": (20, 100, 180)}
    of_all = {"audited": 145, "mismatches": 1, "audited_as": (46, 145, 9), "mistaken": (2, 0, 1)}
    votes = make_votes(estimation=(180, 600, 210), **asked, **of_all, **look)
    part = votes.alpha_share
    weight = joint_weight(80, 100, 1000, 0.01)
    p_a = joint_p_a_lower(100, 500, 145, 1, 1000, 0.01 * part - share * part, weight)
    first, last = (90 + 160 + 10, 690 - 160, 200 - 46, 2), (105 + 30 + 10, 690 - 30, 200 - 9, 1)
    p_b, p_c = (joint_p_b_upper(*each, 1000, share * part, weight) for each in (first, last))
    assert p_c < p_b < 1 - p_a
    rule = CertificationRule(alpha=0.01, sides="two", alpha_b=alpha_b)
    assert rule.bounds(votes) == pytest.approx((p_a, p_b), rel=1e-12)
    one, _ = CertificationRule(alpha=0.01).bounds(votes)
    assert one == pytest.approx(joint_p_a_lower(100, 500, 145, 1, 1000, 0.01 * part, weight), rel=1e-12)
    certificate = rule.certify(votes)
    assert certificate.radius == pytest.approx(0.25 * (norm.ppf(p_a) - norm.ppf(p_b)), rel=1e-9)
    assert certificate.radius > 0
    assert certificate.sound


def test_published_rule_is_marked_unsound(make_votes):
    certificate = CertificationRule(alpha=0.01, audit="published").certify(make_votes())
    assert certificate.p_a_lower == float(published_p_a_lower(950, 1000, 400, 2, 0.01))
    assert not certificate.sound


@pytest.mark.parametrize("audit", ["joint", "exact"])
def test_certificate_of_audited_votes(make_votes, audit):
    rule = CertificationRule(audit=audit)
    certificate = rule.certify(make_votes(sigma=0.25))
    p_a_lower = lower(rule, make_votes())
    assert certificate == Certificate(1, 0.25 * norm.ppf(p_a_lower), p_a_lower, True, index=7, label=1)
    assert certificate.correct
    assert all(type(value) in (int, float, bool) for value in certificate._replace(p_b_upper=0.0))


def test_a_confident_wrong_class_is_not_correct(make_votes):
    certificate = CertificationRule().certify(make_votes(label=0, sigma=0.25))
    assert certificate.prediction == 1
    assert certificate.radius > 0
    assert not certificate.correct


@pytest.mark.parametrize("audit", AUDITS)
@pytest.mark.parametrize(
    "changes", [{"audited": 0, "mismatches": 0}, {"estimation": (470, 500, 30)}, {"mismatches": 400}]
)
def test_abstention(make_votes, audit, changes):
    certificate = CertificationRule(audit=audit).certify(make_votes(**changes))
    assert (certificate.prediction, certificate.radius) == (-1, 0.0)
    assert certificate.p_a_lower <= 0.5
    assert not certificate.correct


@pytest.mark.parametrize("audit", ["joint", "exact", "binomial"])
def test_auditing_costs_radius_and_mismatches_cost_more(make_votes, standard_votes, audit):
    rule = CertificationRule(audit=audit)
    radii = [rule.certify(standard_votes).radius]
    radii += [rule.certify(make_votes(mismatches=m)).radius for m in (0, 1, 5, 50)]
    assert radii == sorted(radii, reverse=True)
    assert len(set(radii)) == len(radii)


def test_sigma_must_be_positive(standard_votes):
    with pytest.raises(SettingError, match=r"sigma = 0\.0"):
        CertificationRule().certify(standard_votes._replace(sigma=0.0))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.0}, "alpha"),
        ({"alpha": 0.01, "alpha_audit": 0.01, "audit": "exact"}, "alpha_audit"),
        ({"alpha_audit": 0.0, "audit": "binomial"}, "alpha_audit"),
        ({"alpha_audit": 0.0005}, "alpha_audit"),
        ({"alpha_audit": 0.0005, "audit": "published"}, "alpha_audit"),
        ({"audit": "none"}, "audit"),
        ({"sides": "three"}, "sides"),
        ({"sides": 2}, "sides"),
        ({"alpha_b": 0.0001}, "alpha_b"),
        ({"sides": "two", "alpha_b": 0.001}, "alpha_b"),
        ({"sides": "two", "alpha_b": 0.0}, "alpha_b"),
        ({"sides": "two", "alpha_b": math.nan}, "alpha_b"),
    ],
)
def test_rule_names_the_bad_setting(settings, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        CertificationRule(**settings)


def test_an_alpha_too_small_for_the_joint_rule_is_named(make_votes, standard_votes):
    rule = CertificationRule(alpha=1e-13)
    assert rule.certify(standard_votes).radius > 0
    with pytest.raises(SettingError, match=r"^alpha = "):
        rule.certify(make_votes())


def test_rule_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CertificationRule().alpha = 0.1
