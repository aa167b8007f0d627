"""Margins without noise: what is measured, and what they never certify."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from deqcert.data import Digits
from deqcert.deterministic import IntervalBounds, Lipschitz
from deqcert.errors import SettingError
from deqcert.models import MDEQ, BoundedLogits, IntervalClassifier, LipschitzClassifier
from deqcert.monotone import LBEN, MonDEQ
from deqcert.solvers import Anderson, Picard
from deqcert.statistics import ABSTAIN, MarginRule


class Linear(nn.Module, LipschitzClassifier, IntervalClassifier):
    """y = W x + b: the smallest perturbations that change its class are known, in both norms."""

    def __init__(self, error=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(64, 5)
        self.error = error

    def forward(self, x):
        return self.linear(x.flatten(1))

    def rows(self):
        return self.linear.weight[:, None] - self.linear.weight

    def lipschitz_constants(self):
        return self.rows().norm(dim=2)

    def bounded_logits(self, x, solver):
        logits = self(x)
        return BoundedLogits(
            logits, torch.full_like(logits, self.error), torch.ones(len(x)).long(), torch.zeros(len(x))
        )

    def interval_margins(self, x, predicted, epsilon, solver):
        found = self.bounded_logits(x, solver)
        gaps = found.logits.gather(1, predicted[:, None]) - found.logits
        return found._replace(logits=gaps - epsilon[:, None] * self.rows().abs().sum(dim=2)[predicted])


@pytest.fixture(scope="module")
def images():
    data = Digits(max_examples=60)
    data.setup("predict")
    return torch.stack([image for image, _, _ in data.certification_set()])


def smallest(network, images, order):
    """Exact distance to the nearest class boundary of a linear network, by the dual norm of the rows."""
    logits, network = network.double()(images.double()), network.double()
    selected = logits.argmax(dim=1)
    rows = network.rows()[selected].norm(dim=2, p=order)
    distances = (logits.gather(1, selected[:, None]) - logits) / rows
    return distances.scatter(1, selected[:, None], torch.inf).amin(dim=1)


def radii(certification, network, images):
    return torch.tensor([each.radius for each in certification.of(network.eval())(images)], dtype=torch.float64)


def test_lipschitz_radius_is_the_smallest_perturbation_of_a_linear_network(images):
    exact = smallest(Linear(), images, order=2)
    found = radii(Lipschitz(), Linear(), images)
    assert (found <= exact).all()
    assert (found > exact * (1 - 1e-12)).all()


def test_largest_box_of_a_linear_network_is_found_from_below(images):
    exact = smallest(Linear(), images, order=1)
    found = radii(IntervalBounds(epsilon=0.5, bisections=15), Linear(), images)
    assert (found <= exact).all()
    assert (found >= (exact - 0.5 / 2**14).clamp(0, 0.5)).all()
    assert torch.equal(
        radii(IntervalBounds(epsilon=1e-6), Linear(), images), torch.full((60,), 1e-6, dtype=torch.float64)
    )
    once = radii(IntervalBounds(epsilon=0.02, bisections=0), Linear(), images)
    assert torch.equal(once, torch.where(exact >= 0.02, 0.02, torch.zeros_like(exact)))
    assert 0 < once.count_nonzero() < 60


@pytest.mark.parametrize("certification", [Lipschitz(), IntervalBounds()])
def test_an_error_as_large_as_the_gap_or_unknown_certifies_nothing(certification, images):
    for error in (1e3, float("inf"), float("nan")):
        for margins in certification.of(Linear(error).eval())(images):
            margins._replace(index=0, label=0).validate()
            certificate = MarginRule().certify(margins)
            assert (certificate.prediction, certificate.radius) == (ABSTAIN, 0.0)


def test_an_error_is_subtracted_from_the_radius(images):
    plain, reduced = (radii(Lipschitz(), Linear(error), images) for error in (0.0, 1e-3))
    assert (reduced < plain).all()


def test_images_that_are_not_finite_certify_nothing(images):
    network = LBEN(units=8).eval()
    spoilt = images[:3].clone()
    spoilt[1, 0, 0, 0] = torch.nan
    found = Lipschitz().of(network)(spoilt)
    assert [each.radius > 0 for each in found] == [True, False, True]


@pytest.mark.parametrize("network", [LBEN(units=12, gamma=2.0), MonDEQ(units=12, m=0.5)])
def test_a_solve_that_is_cut_short_costs_radius_and_never_adds_any(network, images):
    """Against the same image solved to rounding."""
    exact = radii(Lipschitz(solver=Anderson(max_steps=2000, tolerance=1e-13, ridge=0.0)), network, images)
    lost = []
    for steps in (1, 3, 10, 30, 100):
        found = Lipschitz(solver=Picard(max_steps=steps)).of(network.eval())(images)
        same = torch.tensor([each.radius for each in found], dtype=torch.float64)
        assert (same <= exact * (1 + 1e-9) + 1e-12).all()
        lost.append(float((exact - same).mean()))
    assert lost[0] > lost[-1] >= -1e-12


def test_radii_do_not_depend_on_the_images_beside(images):
    network = LBEN(units=12).eval()
    alone = torch.cat([radii(Lipschitz(), network, image[None]) for image in images[:10]])
    assert torch.allclose(radii(Lipschitz(), network, images)[:10], alone, rtol=1e-7)


def test_the_network_itself_is_left_as_it_is(images):
    network = LBEN(units=12)
    Lipschitz().of(network)
    assert network.training
    assert next(network.parameters()).dtype == torch.float32
    assert next(network.parameters()).requires_grad


@pytest.mark.parametrize(
    ("make", "network", "field", "said"),
    [
        (Lipschitz, MDEQ(), "model.network", "LBEN, MonDEQ"),
        (IntervalBounds, LBEN(units=4), "model.network", "IntervalBounds"),
        (lambda: Lipschitz(batch_size=0), None, "certification.batch_size", ">= 1"),
        (lambda: IntervalBounds(epsilon=0.0), None, "certification.epsilon", "(0, 1]"),
        (lambda: IntervalBounds(epsilon=float("nan")), None, "certification.epsilon", "(0, 1]"),
        (lambda: IntervalBounds(bisections=-1), None, "certification.bisections", ">= 0"),
    ],
)
def test_bad_input_is_named(make, network, field, said):
    with pytest.raises(SettingError) as refusal:
        make().of(network)
    assert field in str(refusal.value)
    assert said in str(refusal.value)


def test_constants_without_a_proof_are_refused():
    """Weights of which float64 cannot tell that their matrices are positive definite."""
    network = MonDEQ(units=6)
    with torch.no_grad():
        network.scales.copy_(torch.tensor([0.0, torch.nan]))
    with pytest.raises(SettingError, match="rounding leaves no proof"):
        Lipschitz().of(network)


def test_settings_are_plain_and_compared_by_value():
    assert Lipschitz() == dataclasses.replace(Lipschitz(batch_size=7), batch_size=100)
