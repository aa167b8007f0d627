"""Splittings of dense monotone networks against linear algebra, and the error of an inexact solve."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
import yaml

from deqcert.checkpoints import load_network, save_checkpoint
from deqcert.errors import SettingError
from deqcert.implicit import ImplicitAdjoint, Unrolled
from deqcert.monotone import LBEN, MonDEQ
from deqcert.solvers import Anderson, Broyden, Picard
from deqcert.statistics import ABSTAIN
from deqcert.statistics.margins import MarginRule, Margins
from deqcert.training import DEQClassifier

SMALL = {"units": 6, "image_size": 3, "num_classes": 4}
SOLVERS = [Picard(max_steps=5000, tolerance=1e-13), Anderson(max_steps=3000, tolerance=1e-13, memory=3, ridge=0.0)]
SPLITTINGS = ["forward_backward", "peaceman_rachford"]


def safe(network):
    """Give the network a step size with which plain iteration converges."""
    if network.splitting == "forward_backward":
        network.alpha = network.step_size_bound() / 2
    return network


def images(rows=8, size=3, seed=1):
    return torch.rand(rows, 1, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(network, x):
    """z* of each image by trying all patterns of active units: the one whose linear solution has the right signs."""
    weight, bias = network.weight().detach(), network.bias(x).detach()
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=len(weight))), dtype=torch.float64)
    inverses = torch.linalg.inv(torch.eye(len(weight), dtype=torch.float64) - patterns[:, :, None] * weight)
    found = []
    for row in bias:
        states = (inverses @ (patterns * row)[:, :, None])[:, :, 0]
        inputs = states @ weight.mT + row
        fits = torch.where(patterns > 0, inputs >= 0, inputs <= 0).all(dim=1)
        assert fits.sum() == 1, "the fixed point exists and is unique"
        found.append(states[fits][0])
    return torch.stack(found)


@pytest.mark.parametrize("solver", SOLVERS, ids=["picard", "anderson"])
@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_fixed_point_is_the_solution_of_the_equation(build, splitting, solver):
    network = safe(build(splitting=splitting, **SMALL))
    _, solution = network.solve(images(), solver)
    torch.testing.assert_close(solution.value.relu(), exact(network, images()), rtol=0, atol=1e-10)
    torch.testing.assert_close(network.head(solution.value), network.readout(exact(network, images())))


@pytest.mark.parametrize(
    "solver",
    [Picard(max_steps=3000, tolerance=1e-6), Anderson(max_steps=3000, tolerance=1e-6, memory=2, ridge=0.0)],
    ids=["picard", "anderson"],
)
@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_each_row_stops_by_itself(build, splitting, solver):
    network = safe(build(splitting=splitting, **SMALL | {"units": 20}))
    x = images() * torch.logspace(-3, 2, 8, dtype=torch.float64)[:, None, None, None]
    logits, together = network.solve(x, solver)
    assert together.converged.all()
    assert len(set(together.steps.tolist())) > 1
    for row in range(len(x)):
        alone_logits, alone = network.solve(x[row : row + 1], solver)
        # Anderson without a ridge may amplify the rounding of kernels, which depends on the batch.
        plain = isinstance(solver, Picard)
        assert not plain or alone.steps[0] == together.steps[row]
        torch.testing.assert_close(alone_logits[0], logits[row], rtol=1e-9 if plain else 1e-4, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.03, 1.0, 30.0])
def test_peaceman_rachford_converges_with_any_step_size(build, alpha):
    network = build(alpha=alpha, **SMALL)
    network.demand_step_size(Picard())
    _, solution = network.solve(images(), Picard(max_steps=10_000, tolerance=1e-12))
    assert solution.converged.all()
    torch.testing.assert_close(solution.value.relu(), exact(network, images()), rtol=0, atol=1e-8)


def test_forward_backward_is_bound_to_its_step_size(build):
    network = build(splitting="forward_backward", **SMALL)
    bound = network.step_size_bound()
    for factor in (0.5, 0.999):
        network.alpha = factor * bound
        network.solver = Picard(max_steps=20_000, tolerance=1e-10)
        ready = network.for_inference()
        assert ready.solve(images(), network.solver)[1].converged.all()
    network.alpha = bound
    with pytest.raises(SettingError, match=rf"^alpha = {bound}: must be < .* = 2m / L² for Picard"):
        network.for_inference()
    for solver in (Anderson(ridge=0.0), Broyden()):
        network.demand_step_size(solver)


def test_forward_backward_beyond_its_bound_may_diverge():
    """All units stay active, so the iteration is linear, with a matrix whose norm exceeds 1."""
    network = MonDEQ(splitting="forward_backward", **SMALL).double()
    network.encoder.bias.data.fill_(100.0)
    network.scales.data[:] = torch.tensor([0.0, 3.0])
    network.alpha = 3 * network.step_size_bound()
    assert not network.solve(images(), Picard(max_steps=2000, tolerance=1e-6))[1].converged.any()


@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_implicit_gradients_are_those_of_unrolling(build, splitting):
    network = safe(build(splitting=splitting, **SMALL))
    weights = torch.randn(8, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def gradients(estimator):
        x = images().requires_grad_()
        injection = network.inject(x)
        start = network.initial_state(injection)
        fixed_point = estimator.fixed_point(lambda z: network.cell(z, injection), start, SOLVERS[1])
        (network.head(fixed_point.value) * weights).sum().backward()
        found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None} | {"x": x.grad}
        network.zero_grad()
        return found

    implicit, unrolled = gradients(ImplicitAdjoint(SOLVERS[1])), gradients(Unrolled(steps=2000))
    assert implicit.keys() == unrolled.keys() == {"x", *(name for name, _ in network.named_parameters())}
    for name, gradient in implicit.items():
        torch.testing.assert_close(gradient, unrolled[name], rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-4, 1e-8, 1e-12])
def test_error_bounds_cover_the_error(build, tolerance):
    network = build(units=12, image_size=8)
    x = images(20, 8)
    reference, solution = network.solve(x, Anderson(max_steps=3000, tolerance=1e-15, ridge=0.0, iterate="best"))
    assert solution.residual.max() < 1e-13
    for solver in (Picard(max_steps=3000, tolerance=tolerance), Anderson(1000, tolerance, ridge=0.0)):
        bounded = network.bounded_logits(x, solver)
        top = bounded.logits.argmax(dim=1, keepdim=True)

        def gaps(logits, top=top):
            return logits.gather(1, top) - logits

        error = (gaps(bounded.logits) - gaps(reference)).abs()
        assert (error <= bounded.errors).all()
        assert bounded.errors.isfinite().all()
        assert bounded.steps.shape == bounded.residual.shape == (20,)


def test_error_bounds_shrink_with_the_tolerance(build):
    network = build(units=12, image_size=8)
    loose, tight = (
        network.bounded_logits(images(20, 8), Anderson(1000, tolerance, ridge=0.0)).errors.max()
        for tolerance in (1e-2, 1e-10)
    )
    assert tight < 1e-4 * loose
    assert tight < 1e-6


class NotMonotone(MonDEQ):
    def weight(self):
        return 3 * torch.eye(6, dtype=torch.float64)


def test_nothing_is_certified_where_nothing_is_known():
    broken = NotMonotone(**SMALL).double()
    assert not broken.bounded_logits(images(), Picard()).errors.isfinite().any()
    constants = broken.lipschitz_constants()
    assert (constants[~torch.eye(4, dtype=torch.bool)] == torch.inf).all()


def test_a_solve_that_is_not_accurate_enough_abstains():
    torch.manual_seed(0)
    network = LBEN(gamma=0.2, **SMALL).double()
    rough = network.bounded_logits(images(), Picard(max_steps=1))
    constants = network.lipschitz_constants()
    for logits, errors in zip(rough.logits, rough.errors, strict=True):
        top = int(logits.argmax())
        margins = Margins(
            top, (logits[top] - logits).tolist(), errors.tolist(), constants[top].tolist(), None, 1, 0.0, 0.0, 0, 0
        )
        assert MarginRule().certify(margins).prediction == ABSTAIN


def test_prepared_networks_compute_the_same(build):
    network = build(**SMALL)
    ready = network.for_inference()
    assert torch.equal(ready(images()), network(images()))
    assert network._prepared is None


@pytest.mark.parametrize("gamma", [0.3, math.inf])
def test_settings_survive_a_checkpoint(gamma, tmp_path):
    torch.manual_seed(0)
    network = LBEN(gamma=gamma, epsilon=0.5, **SMALL)
    assert json.loads(json.dumps(network.architecture)) == yaml.safe_load(yaml.safe_dump(network.architecture))
    module = DEQClassifier(network, sigma=0.0)
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": {"sigma": 0.0}}
    module.on_save_checkpoint(checkpoint)
    save_checkpoint(checkpoint, tmp_path / "c.ckpt")
    loaded, sigma = load_network(tmp_path / "c.ckpt")
    assert (loaded.gamma, sigma) == (gamma, 0.0)
    assert torch.equal(loaded.weight(), network.weight())


@pytest.mark.parametrize(
    ("kind", "settings", "field"),
    [
        (LBEN, {"gamma": 0.0}, "gamma"),
        (LBEN, {"gamma": -1.0}, "gamma"),
        (LBEN, {"gamma": math.nan}, "gamma"),
        (LBEN, {"epsilon": 0.0}, "epsilon"),
        (LBEN, {"epsilon": math.inf}, "epsilon"),
        (MonDEQ, {"m": 0.0}, "m"),
        (MonDEQ, {"m": 1.0001}, "m"),
        (MonDEQ, {"m": math.nan}, "m"),
        (MonDEQ, {"units": 0}, "units"),
        (MonDEQ, {"units": 2.5}, "units"),
        (MonDEQ, {"alpha": 0.0}, "alpha"),
        (LBEN, {"alpha": math.inf}, "alpha"),
        (LBEN, {"splitting": "douglas_rachford"}, "splitting"),
    ],
)
def test_settings_out_of_range_are_named(kind, settings, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        kind(**settings)
