"""The network as objectives see it: differentiable attacks, warm starts, pre-training, compiled cells."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from digits_runs import fit, model
from torch import nn

from deqcert.attacks import few_step_logits
from deqcert.implicit import ImplicitAdjoint, OneStep, Unrolled
from deqcert.models import DEQ
from deqcert.solvers import Anderson, Picard
from deqcert.training import JacobianRegularization
from deqcert.training.step import ImplicitStep

CONVERGED = Anderson(max_steps=100, tolerance=1e-9, ridge=1e-14)


class Contraction(DEQ):
    """A dense DEQ that contracts."""

    def __init__(self):
        super().__init__(CONVERGED)
        torch.manual_seed(0)
        self.encoder, self.weight, self.classifier = nn.Linear(64, 12), nn.Linear(12, 12), nn.Linear(12, 10)
        nn.init.orthogonal_(self.weight.weight, gain=0.7)

    def inject(self, x):
        return self.encoder(x.flatten(1))

    def initial_state(self, injection):
        return torch.zeros_like(injection)

    def cell(self, z, injection):
        return torch.tanh(self.weight(z) + injection)

    def head(self, z):
        return self.classifier(z)


@pytest.fixture
def network():
    return Contraction().double()


def step(network, **settings):
    defaults = {"sigma": 0.25, "epoch": 0, "gradient": OneStep(), "solver": CONVERGED, "function": network.cell}
    return ImplicitStep(network, **(defaults | settings))


def test_the_implicit_gradient_of_an_attack_is_that_of_finite_differences(network):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    labels = torch.tensor([3, 7])
    with step(network).attacked(ImplicitAdjoint(CONVERGED)) as classifier:
        point = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(classifier(point), labels), point)
        h = 1e-5
        plus, minus = (F.cross_entropy(classifier(images + s * h * direction), labels).item() for s in (1, -1))
    assert float((gradient * direction).sum()) == pytest.approx((plus - minus) / (2 * h), rel=1e-4)


def test_the_steps_of_an_attack_start_from_the_fixed_point_before(network, monkeypatch):
    starts = []
    real = Anderson.solve

    def spy(solver, function, start):
        solution = real(solver, function, start)
        starts.append((start, solution.steps.float().mean().item(), solution.value))
        return solution

    monkeypatch.setattr(Anderson, "solve", spy)
    images = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    with step(network).attacked(OneStep()) as classifier:
        for shift in (0, 1e-6):
            classifier(images + shift)
        classifier(images[:3])  # another batch: cold
    (cold, cold_steps, value), (warm, warm_steps, _), (other, _, _) = starts
    assert cold.abs().max() == 0
    assert torch.equal(warm, value)
    assert warm_steps < cold_steps
    assert other.abs().max() == 0


def test_a_row_that_diverged_starts_cold_again(network):
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    spoilt = images * torch.tensor([1.0, torch.nan], dtype=torch.float64).view(2, 1, 1, 1)
    with step(network).attacked(OneStep()) as classifier:
        expected = classifier(images)
        assert classifier(spoilt)[1].isnan().all()
        torch.testing.assert_close(classifier(images), expected)


def test_pretraining_attacks_the_network_as_it_is_then(network):
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    with step(network, attack_gradient=Unrolled(2)).attacked(ImplicitAdjoint()) as classifier:
        logits = [classifier(images), classifier(images)]
    network.eval()
    expected, _ = network.solve(images, Picard(max_steps=2))
    torch.testing.assert_close(logits[0], expected)
    assert torch.equal(*logits)  # unrolling starts cold each time


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch warns of itself while it traces
@pytest.mark.parametrize("gradient", [OneStep(), ImplicitAdjoint(Anderson(max_steps=4))], ids=["one-step", "implicit"])
def test_a_compiled_cell_trains_alike(gradient):
    settings = {"gradient": gradient, "jacobian": JacobianRegularization(frequency=0.5), "pretraining_steps": 1}
    losses = [fit(model(compile_cell=compiled, **settings), 4)[1].losses for compiled in (False, True)]
    assert list(losses[0].values()) == pytest.approx(list(losses[1].values()), rel=1e-2)


def test_few_step_logits_are_plain_steps_from_the_anchor_with_the_exact_gradient(network):
    network.anchor = lambda injection: 0.5 * injection
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def by_hand():
        injection = network.inject(x)
        z = 0.5 * injection
        for _ in range(2):
            z = torch.tanh(network.weight(z) + injection)
        return network.classifier(z)

    logits = few_step_logits(network, x, 2)
    torch.testing.assert_close(logits, by_hand())
    parameters = list(network.parameters())
    for given, expected in zip(
        torch.autograd.grad(logits.square().sum(), parameters),
        torch.autograd.grad(by_hand().square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(given, expected)
