"""Attacks on networks that were certified without noise."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from deqcert.attacks import (
    Campaign,
    CertificateAttack,
    ExactTarget,
    campaign_table,
    distances,
    finding_lines,
    found_violation,
    summarize_campaign,
)
from deqcert.errors import SettingError
from deqcert.implicit import ImplicitAdjoint
from deqcert.models import BoundedLogits, LipschitzClassifier
from deqcert.monotone import LBEN, MonDEQ
from deqcert.report import format_text
from deqcert.solvers import Picard
from deqcert.statistics import ABSTAIN, Certificate, MarginRule, Margins

SOLVER = Picard(max_steps=300, tolerance=1e-7)
ATTACK = CertificateAttack(steps=4, restarts=4, gradient=ImplicitAdjoint(Picard(max_steps=100, tolerance=1e-4)))
FACTORS = (0.5, 0.99, 1.01, 1.5)
DUAL = {"l2": 2.0, "linf": 1.0}


class Affine(nn.Module, LipschitzClassifier):
    """Its classes change at distances known by construction: gap_j / ‖w_A − w_j‖ in the dual norm."""

    def __init__(self, error=1e-12):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 4).double()
        self.error = error
        self.eval()

    def forward(self, x):
        return self.layer(x.flatten(1))

    def lipschitz_constants(self):
        return torch.cdist(self.layer.weight, self.layer.weight)

    def bounded_logits(self, x, solver):
        logits, ones = self(x), torch.ones(len(x))
        return BoundedLogits(logits, torch.full_like(logits, self.error), ones.long(), ones)


def images(count, size=4):
    """Far from 0 and 1, so that the box does not stop what is known of these networks."""
    return 0.45 + 0.1 * torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(1))


def true_certificates(network, x, norm, scale=1.0):
    """The exact radii of an affine network, times ``scale``."""
    logits = network(x.double()).detach()
    weight, found = network.layer.weight.detach(), []
    for index, row in enumerate(logits):
        own = int(row.argmax())
        radii = (row[own] - row) / torch.linalg.vector_norm(weight[own] - weight, DUAL[norm], dim=1)
        radius = scale * min(float(r) for j, r in enumerate(radii) if j != own)
        found.append(Certificate(own, radius, p_a_lower=None, sound=True, index=index, label=own))
    return found


def certificates_of(network, x):
    """What a certification without noise makes of the images."""
    with torch.no_grad():
        bounded, constants = network.bounded_logits(x.double(), SOLVER), network.lipschitz_constants()
    gaps = bounded.logits.amax(dim=1, keepdim=True) - bounded.logits
    return [
        MarginRule().certify(
            Margins(
                own,
                tuple(gaps[index].tolist()),
                tuple(bounded.errors[index].tolist()),
                tuple(constants[own].tolist()),
                None,
                nfe_fast=1,
                residual=0.0,
                seconds=0.0,
                index=index,
                label=own,
            )
        )
        for index, own in enumerate(bounded.logits.argmax(dim=1).tolist())
    ]


def attacked(target, x, certificates, **settings):
    plan = Campaign(**({"attack": ATTACK, "radii": (), "factors": FACTORS, "n": 1} | settings))
    outcomes = [each for found in plan.run(target, x, certificates) for each in found]
    return plan, outcomes


@pytest.mark.parametrize(("norm", "n"), [("l2", 1), ("linf", 1000)])
def test_the_true_radius_holds_inside_and_breaks_just_outside(norm, n):
    network, x = Affine(), images(20)
    plan, outcomes = attacked(ExactTarget(network, SOLVER, norm), x, true_certificates(network, x, norm), n=n)
    assert len(outcomes) == 80
    for each in outcomes:
        assert each.inside == (each.factor < 1)
        assert each.success == (each.factor > 1), each
        assert (each.claimed, each.p_a_upper) == (float(each.factor < 1), float(each.factor < 1))
        assert not each.violation
        assert sum(each.counts) == n
        assert 0.999 * each.epsilon < each.norm <= each.epsilon
    summary = summarize_campaign(plan, true_certificates(network, x, norm), outcomes, alpha=0.0, norm=norm)
    assert format_text(campaign_table(summary)).lstrip("| ").startswith(f"{norm} radius")
    assert [row.successes for row in summary.radii] == [0, 0, 20, 20]
    assert "no violation found in 80 attacks on sound certificates, 40 of" in finding_lines(summary, outcomes)[0]


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_forged_radius_is_refuted(norm):
    network, x = Affine(), images(20)
    forged = true_certificates(network, x, norm, scale=3)
    plan, outcomes = attacked(ExactTarget(network, SOLVER, norm), x, forged, factors=(0.3, 0.35, 0.9))
    assert [each.violation for each in outcomes] == [False, True, True] * 20
    assert found_violation(outcomes)
    summary = summarize_campaign(plan, forged, outcomes, alpha=0.0, norm=norm)
    text = "\n".join(finding_lines(summary, outcomes))
    other = outcomes[1].counts.index(1)
    assert f"{norm} norm {outcomes[1].norm:.4f}: class {other} beyond solver and rounding error".upper() in text
    assert "20 OF 20 SOUND CERTIFICATES ARE REFUTED; THEY HOLD WITH CERTAINTY" in text
    assert json.loads(json.dumps(outcomes[1].to_json(), allow_nan=False))["violation"] is True


def test_a_wrong_class_is_refuted_at_the_image_itself():
    network, x = Affine(), images(1)
    (true,) = true_certificates(network, x, "l2")
    wrong = Certificate((true.prediction + 1) % 4, 0.1, p_a_lower=None, sound=True, index=0, label=0)
    _, (outcome,) = attacked(ExactTarget(network, SOLVER), x, [wrong], radii=(0.0,), factors=())
    assert (outcome.norm, outcome.success, outcome.violation) == (0.0, True, True)


@pytest.mark.parametrize("error", [1e3, math.inf, math.nan])
def test_what_the_errors_leave_open_refutes_nothing(error):
    network, x = Affine(error), images(10)
    target = ExactTarget(network, SOLVER)
    _, outcomes = attacked(target, x, true_certificates(network, x, "l2", scale=3), factors=(0.9,))
    assert target.counts(x, 0, 5) == [(0, 0, 0, 0)] * 10
    for each in outcomes:
        assert not each.violation
        assert not each.success
        assert each.p_a_upper == 1


@pytest.mark.parametrize(("make", "alpha", "count"), [(MonDEQ, 0.5, 40), (LBEN, 0.2, 200)])
def test_certificates_of_monotone_networks_hold(make, alpha, count):
    torch.manual_seed(0)
    network = make(units=12, num_classes=4, image_size=4, alpha=alpha).double().eval()
    x = images(count)
    with torch.no_grad():  # so that no class has all images
        network.decoder.bias -= network(x.double()).mean(dim=0)
    certificates = certificates_of(network, x)
    assert all(each.prediction != ABSTAIN for each in certificates)
    target, attack = ExactTarget(network.for_inference(), SOLVER), dataclasses.replace(ATTACK, restarts=1)
    _, outcomes = attacked(target, x, certificates, attack=attack, factors=(0.99, 6.0))
    assert [each.inside for each in outcomes] == [True, False] * count
    assert not any(each.success or each.violation for each in outcomes if each.inside)
    assert sum(each.success for each in outcomes if not each.inside) > count / 2
    forged = [each._replace(radius=6 * each.radius) for each in certificates[:20]]
    assert found_violation(attacked(target, x[:20], forged, attack=attack, factors=(0.9,))[1])


def test_each_restart_attacks_towards_another_class():
    network, x = Affine(), images(1)
    target, logits = ExactTarget(network.requires_grad_(False), SOLVER), network(x.double())[0]
    gaps = [float(target.loss(network, 2, x, restart)(x.double())) for restart in range(5)]
    ahead = [float(logits[j] - logits[2]) for j in (3, 0, 1)]
    assert gaps == [max(ahead), *ahead, ahead[0]]


class Ridge(Affine):
    """Class 1 is nearest but never gets ahead; class 2 does, the other way."""

    def forward(self, x):
        u = x.flatten(1)[:, 0] - 0.5
        return torch.stack([0 * u, -0.1 + 0.05 * u.clamp(max=1), -0.2 - u], dim=1)


def test_more_restarts_find_what_the_nearest_class_hides():
    network, x = Ridge(), torch.full((1, 1, 4, 4), 0.5)
    target = ExactTarget(network, SOLVER)
    (first,) = CertificateAttack(steps=1).points(target, x[0], 0, 0, [0.3])
    (best,) = CertificateAttack(steps=1, restarts=3).points(target, x[0], 0, 0, [0.3])
    assert target.counts(first[None], 0, 1) == [(1, 0, 0)]
    assert target.counts(best[None], 0, 1) == [(0, 0, 1)]


def test_images_of_any_precision_are_judged_in_float64():
    network, x = Affine(), images(3)
    target = ExactTarget(network, SOLVER)
    for image in (x[0], x[0].double()):
        (point,) = ATTACK.points(target, image, 0, 0, [0.1])
        assert point.dtype == image.dtype
        assert distances(point[None], image)[0] <= 0.1


def test_parameters_are_left_as_they_were():
    network, x = Affine(), images(2)
    before = [each.clone() for each in network.parameters()]
    attacked(ExactTarget(network, SOLVER), x, true_certificates(network, x, "l2"))
    for parameter, old in zip(network.parameters(), before, strict=True):
        assert parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(parameter, old)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Flatten().eval(), "network = 'Flatten': must bound the error of its logits"),
        (Affine().float(), "network = 'Affine': must be in float64 and in evaluation mode"),
        (Affine().train(), "network = 'Affine': must be in float64 and in evaluation mode"),
    ],
)
def test_other_networks_are_refused(network, message):
    with pytest.raises(SettingError) as caught:
        ExactTarget(network, SOLVER)
    assert message in str(caught.value)


def test_an_unknown_norm_is_named():
    with pytest.raises(SettingError, match="norm"):
        ExactTarget(Affine(), SOLVER, "l1")
