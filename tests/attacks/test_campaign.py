from __future__ import annotations

import json

import pytest

from deqcert.attacks import (
    Campaign,
    SmoothedAttack,
    campaign_table,
    finding_lines,
    found_violation,
    summarize_campaign,
)
from deqcert.errors import SettingError
from deqcert.report import format_text
from deqcert.statistics import ABSTAIN, claimed_probability, clopper_pearson_upper

ATTACK = SmoothedAttack(steps=5, samples=4)
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
    plan = Campaign(SmoothedAttack(steps=1, samples=1), radii=(0.0,), factors=(0.5, 1.0), n=100, alpha=0.02)
    alarms = sum(
        found_violation(attacked(plan, target, image, certificate(true_radius, index=index))) for index in range(150)
    )
    assert alarms <= 10


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
