from __future__ import annotations

import json

import pytest
import torch
from scipy.stats import norm
from torch import nn

from deqcert.attacks import (
    Campaign,
    CertificateAttack,
    campaign_table,
    finding_lines,
    found_violation,
    summarize_campaign,
)
from deqcert.errors import SettingError
from deqcert.report import format_text
from deqcert.statistics import ABSTAIN, Certificate, claimed_probability, clopper_pearson_lower, clopper_pearson_upper

ATTACK = CertificateAttack(steps=5, samples=4)
FACTORS = (0.5, 0.8, 1.25, 2.0)


def campaign(**settings):
    return Campaign(**({"attack": ATTACK, "radii": (), "factors": FACTORS, "n": 2000} | settings))


def attacked(plan, target, image, *certificates):
    return [each for found in plan.run(target, [image] * len(certificates), certificates) for each in found]


def test_the_true_radius_holds_inside_and_breaks_just_outside(target, image, true_radius, certificate):
    outcomes = attacked(campaign(), target, image, certificate(true_radius))
    assert [each.factor for each in outcomes] == list(FACTORS)
    assert [each.success for each in outcomes] == [False, False, True, True]
    assert [each.inside for each in outcomes] == [True, True, False, False]
    assert not any(each.violation for each in outcomes)
    for each in outcomes:
        assert each.norm == pytest.approx(each.epsilon, rel=1e-4)
        assert each.norm <= each.epsilon


def test_a_radius_that_is_too_large_is_refuted_before_the_class_changes(target, image, true_radius, certificate):
    outcomes = attacked(campaign(factors=(0.3, 0.9), radii=(0.0,)), target, image, certificate(2 * true_radius))
    assert all(each.violation for each in outcomes)
    assert [each.success for each in outcomes] == [False, False, True]
    assert outcomes[0].norm == 0
    assert found_violation(outcomes)


def test_a_wrong_class_is_refuted_at_the_image_itself(target, image, certificate):
    (outcome,) = attacked(campaign(factors=(), radii=(0.0,)), target, image, certificate(0.1, prediction=1, label=1))
    assert outcome.violation
    assert outcome.success


def test_alpha_is_shared_by_all_attacks_of_the_campaign(target, image, true_radius, certificate):
    plan = campaign(radii=(0.1,), alpha=0.01)
    certificates = [certificate(true_radius, index=index) for index in range(3)]
    certificates.append(certificate(0.0, index=9, prediction=ABSTAIN))
    outcomes = attacked(plan, target, image, *certificates)
    assert len(outcomes) == 15
    for each in outcomes:
        assert each.p_a_upper == clopper_pearson_upper(each.n_a, 2000, 0.01 / 15)
        assert each.claimed == claimed_probability(each.radius, each.norm, 0.5)


def test_tight_true_certificates_raise_no_alarm(target, image, true_radius, certificate):
    """The claim is exactly true at every point here; 150 campaigns at alpha = 0.02 may alarm about 3 times."""
    plan = Campaign(CertificateAttack(steps=1, samples=1), radii=(0.0,), factors=(0.5, 1.0), n=100, alpha=0.02)
    alarms = sum(
        found_violation(attacked(plan, target, image, certificate(true_radius, index=index))) for index in range(150)
    )
    assert alarms <= 10


P_A = norm.cdf(0.4 / 0.5)  # at the image


@pytest.mark.parametrize(("p_a", "p_b"), [(P_A, 1 - P_A), (P_A - 0.05, 1 - P_A + 0.1), (0.6, 0.5)])
def test_true_two_sided_certificates_are_not_refuted(target, image, two_sided, p_a, p_b):
    """Not at any distance: beyond the radius the claims go on, and stay true."""
    certificate = two_sided(p_a, p_b)
    outcomes = attacked(campaign(radii=(0.0, 0.2)), target, image, certificate)
    assert not any(each.violation for each in outcomes)
    for each in outcomes:
        assert each.claimed == pytest.approx(norm.cdf(norm.ppf(p_a) - each.norm / 0.5), rel=1e-9)
        assert each.claimed_b == pytest.approx(norm.cdf(norm.ppf(p_b) + each.norm / 0.5), rel=1e-9)
        assert each.p_a_upper == clopper_pearson_upper(each.n_a, 2000, 0.001 / 6 / 2)
        assert each.p_b_lower == clopper_pearson_lower(2000 - each.n_a, 2000, 0.001 / 6 / 2)


def test_tight_true_two_sided_certificates_raise_no_alarm(target, image, two_sided):
    """Both claims are exactly true at every point here; 60 campaigns at alpha = 0.05 may alarm about 3 times."""
    plan = Campaign(CertificateAttack(steps=1, samples=1), radii=(0.0,), factors=(0.5, 1.0), n=100, alpha=0.05)
    alarms = sum(
        found_violation(attacked(plan, target, image, two_sided(P_A, 1 - P_A, index=index))) for index in range(60)
    )
    assert alarms <= 10


@pytest.mark.parametrize(
    ("p_a", "p_b", "refuted"),
    [(P_A - 0.05, 1 - P_A - 0.1, "b"), (P_A + 0.1, 1 - P_A + 0.05, "a"), (P_A + 0.1, 1 - P_A - 0.1, "ab")],
)
def test_either_side_that_claims_too_much_is_refuted(target, image, two_sided, p_a, p_b, refuted):
    """The class has not changed, and if only p_B is false, nothing that is said of p_A is."""
    plan = campaign(radii=(0.0,), factors=(0.3,))
    for each in attacked(plan, target, image, two_sided(p_a, p_b)):
        assert each.violation
        assert not each.success
        assert (each.p_a_upper < each.claimed) == ("a" in refuted)
        assert (each.p_b_lower > each.claimed_b) == ("b" in refuted)


class Stripes(nn.Module):
    """Of the mean pixel u only: 0 below 0.6, then the classes 1, 2, 3, 1, 2, 3, ... alike."""

    def forward(self, x):
        u = x.mean(dim=(1, 2, 3))
        stripe = ((u - 0.6) / 0.01).floor().long()
        return nn.functional.one_hot(torch.where(stripe < 0, 0, 1 + stripe % 3), 4) + 0 * u[:, None]


def test_of_several_other_classes_the_most_frequent_is_tested_for_all(make_target, image):
    """At the image half are A, and 1/6 each other class."""
    target = make_target(Stripes().eval(), image, solver=None)
    plan = campaign(attack=CertificateAttack(steps=1, samples=1), radii=(0.0,), factors=(), alpha=0.01)
    for p_b, refuted in ((0.25, False), (0.1, True)):
        certificate = Certificate(0, 0.1, p_a_lower=0.4, sound=True, index=3, label=0, p_b_upper=p_b)
        (outcome,) = attacked(plan, target, image, certificate)
        assert outcome.violation == refuted
        assert outcome.claimed_b == pytest.approx(p_b, rel=1e-9)
        assert outcome.p_b_lower == clopper_pearson_lower(max(outcome.counts[1:]), 2000, 0.005 / 3)
        assert outcome.p_b_lower < 1 / 6


def test_a_refuted_side_is_told(target, image, two_sided):
    plan = campaign(radii=(0.0,), factors=())
    certificates = [two_sided(P_A - 0.05, 0.01)]
    outcomes = attacked(plan, target, image, *certificates)
    text = "\n".join(finding_lines(summarize_campaign(plan, certificates, outcomes, alpha=0.001), outcomes))
    assert "VIOLATION OF A SOUND CERTIFICATE" in text
    assert "CLAIMED IS P_B <= 0.0100" in text
    assert json.loads(json.dumps(outcomes[0].to_json(), allow_nan=False))["p_b_lower"] > 0.01


def test_one_sided_certificates_are_judged_by_what_they_claim_of_their_class(target, image, true_radius, certificate):
    (outcome,) = attacked(campaign(factors=(0.5,)), target, image, certificate(true_radius))
    assert (outcome.claimed_b, outcome.p_b_lower) == (None, None)
    assert outcome.p_a_upper == clopper_pearson_upper(outcome.n_a, 2000, 0.001)


def test_accuracies_count_abstentions_and_wrong_classes_as_not_robust(target, image, true_radius, certificate):
    certificates = [
        certificate(true_radius, index=0),
        certificate(0.1, index=1),
        certificate(true_radius, index=2, label=1),
        certificate(0.0, index=3, prediction=ABSTAIN),
    ]
    plan = campaign(radii=(0.0, 0.2, 0.6), factors=(0.5,))
    outcomes = attacked(plan, target, image, *certificates)
    summary = summarize_campaign(plan, certificates, outcomes, alpha=0.001)
    assert (summary.images, summary.certified, summary.attacks) == (4, 3, 12)
    assert [row.certified_accuracy for row in summary.radii[:3]] == [0.5, 0.25, 0.0]
    assert [row.empirical_accuracy for row in summary.radii[:3]] == [0.5, 0.5, 0.0]
    assert [row.successes for row in summary.radii[:3]] == [0, 0, 3]
    assert [row.inside for row in summary.radii] == [3, 2, 0, 3]
    assert summary.radii[3].certified_accuracy is None
    assert summary.false_certificates_expected == pytest.approx(0.003)
    text = format_text(campaign_table(summary))
    assert "0.5 R" in text
    assert "UNSOUND" not in text
    assert json.loads(json.dumps(outcomes[0].to_json(), allow_nan=False))["success"] is False


def test_findings_are_loud_for_sound_certificates_only(target, image, true_radius, certificate):
    plan = campaign(radii=(0.0,), factors=())
    found = {}
    for name, radius, sound in [("none", true_radius, True), ("sound", 1.0, True), ("unsound", 1.0, False)]:
        certificates = [certificate(radius, sound=sound)]
        outcomes = attacked(plan, target, image, *certificates)
        summary = summarize_campaign(plan, certificates, outcomes, alpha=0.001)
        found[name] = found_violation(outcomes), "\n".join(finding_lines(summary, outcomes))
        assert ("UNSOUND" in format_text(campaign_table(summary))) == (not sound)
    loud, text = found["sound"]
    assert loud
    assert "VIOLATION OF A SOUND CERTIFICATE: IMAGE 3, CLASS 0, RADIUS 1.0000" in text
    assert "1 OF 1 SOUND CERTIFICATES ARE REFUTED; AT MOST 0.001 FALSE ONES" in text
    assert text == text.upper()
    assert not found["unsound"][0]
    assert "refutes an unsound certificate: image 3" in found["unsound"][1]
    assert not found["none"][0]
    assert found["none"][1].startswith("no violation found in 1 attacks on sound certificates, 1 of them inside")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"radii": (-1.0,)}, "radii"),
        ({"radii": (float("nan"),)}, "radii"),
        ({"radii": (0.5, 0.5)}, "radii"),
        ({"factors": (0.0,)}, "factors"),
        ({"radii": (), "factors": ()}, "radii"),
        ({"n": 0}, "n"),
        ({"alpha": 1.0}, "alpha_attack"),
    ],
)
def test_bad_settings_are_named(settings, field):
    with pytest.raises(SettingError, match=field):
        campaign(**settings)
