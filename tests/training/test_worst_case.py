"""Training on the worst logits in a box."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deqcert.errors import SettingError
from deqcert.implicit import ImplicitAdjoint, Unrolled
from deqcert.monotone import LBEN, IBPMonDEQ
from deqcert.solvers import Anderson, Picard
from deqcert.training import WorstCase
from deqcert.training.step import ImplicitStep, TrainingStep

SOLVER = Picard(max_steps=200, tolerance=1e-13)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return IBPMonDEQ(7, num_classes=3, image_size=3, mean=(0.3,), std=(0.4,)).double()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.rand(5, 1, 3, 3, dtype=torch.float64), torch.randint(3, (5,))


def step(network, gradient=ImplicitAdjoint(SOLVER), epoch=100, sigma=0.0):
    return ImplicitStep(network, sigma, epoch, network.cell, gradient=gradient, solver=SOLVER)


def test_the_box_grows_as_published():
    objective = WorstCase(epsilon=1.3, clean_epochs=2, ramp_epochs=8)
    grown = [objective.epsilon_at(epoch) for epoch in range(12)]
    quarter, rest = [0.1 * (k / 2) ** 4 for k in (1, 2)], [0.1 + 0.2 * k for k in range(1, 7)]
    assert grown == pytest.approx([0, 0, *quarter, *rest, 1.3, 1.3])
    assert WorstCase(0.1, 0, 0).epsilon_at(0) == 0.1
    assert [WorstCase(0.1, 1, 0).epsilon_at(epoch) for epoch in (0, 1)] == [0, 0.1]


def test_the_loss_is_that_of_the_bounds_of_the_certificate(network, batch):
    images, labels = batch
    ramp = WorstCase(epsilon=0.08, ramp_epochs=0)
    loss = ramp.loss(step(network), images, labels)
    margins = network.interval_margins(images, labels, torch.full((5,), 0.08, dtype=torch.float64), SOLVER)
    torch.testing.assert_close(loss.value, F.cross_entropy(-margins.logits, labels))
    assert loss.metrics["epsilon"] == pytest.approx(0.08)
    assert loss.metrics["worst_case_cross_entropy"] == loss.value
    others = margins.logits.scatter(1, labels[:, None], torch.inf)
    assert loss.metrics["worst_case_accuracy"] == (others.amin(dim=1) > 0).float().mean()
    assert not any(value.requires_grad for value in loss.metrics.values())


def test_without_a_box_it_is_the_plain_cross_entropy(network, batch):
    images, labels = batch
    loss = WorstCase(clean_epochs=5).loss(step(network, epoch=4), images, labels)
    torch.testing.assert_close(loss.value, F.cross_entropy(network.solve(images, SOLVER)[0], labels))


@pytest.mark.parametrize("solver", [SOLVER, Anderson(max_steps=100, tolerance=1e-13, ridge=0.0)])
def test_the_implicit_gradient_is_the_unrolled_one(network, batch, solver):
    gradients = []
    for gradient in (ImplicitAdjoint(solver), Unrolled(steps=80)):
        taken = step(network, gradient)
        loss = WorstCase(epsilon=0.1, ramp_epochs=0).loss(taken, *batch)
        gradients.append(torch.autograd.grad(loss.value, list(network.parameters())))
        assert len(taken.fixed_points) == 1  # what the Jacobian penalty and the log are taken of
    for ours, unrolled in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, unrolled, rtol=1e-8, atol=1e-10)
        assert ours.abs().max() > 0


def test_with_noise_the_boxes_are_around_noisy_samples(network, batch):
    images, labels = batch
    torch.manual_seed(3)
    noisy = WorstCase(ramp_epochs=0).loss(step(network, sigma=0.5), images, labels)
    torch.manual_seed(3)
    moved = images + 0.5 * torch.randn_like(images)
    torch.testing.assert_close(noisy.value, WorstCase(ramp_epochs=0).loss(step(network), moved, labels).value)


def test_networks_without_bounds_are_refused(batch):
    for refused in (step(LBEN(image_size=3)), TrainingStep(nn.Flatten(), 0.0, 0, nn.Flatten())):
        name = type(refused.network).__name__
        with pytest.raises(SettingError, match=rf"^model\.network = '{name}': must bound its logits .*: IBPMonDEQ$"):
            WorstCase().loss(refused, *batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": -0.1}, r"objective\.epsilon = -0\.1: must be finite and >= 0"),
        ({"epsilon": float("nan")}, r"objective\.epsilon = nan"),
        ({"clean_epochs": -1}, r"objective\.clean_epochs = -1: must be an integer >= 0"),
        ({"ramp_epochs": 1.5}, r"objective\.ramp_epochs = 1\.5: must be an integer >= 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(SettingError, match=f"^{message}"):
        WorstCase(**settings)
