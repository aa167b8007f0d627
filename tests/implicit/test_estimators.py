"""What every gradient estimator promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqcert.implicit import (
    GradientEstimator,
    ImplicitAdjoint,
    OneStep,
    Phantom,
    Unrolled,
    hutchinson_penalty,
)
from deqcert.solvers import Broyden, Picard, Solution

FORWARD = Picard(max_steps=300, tolerance=1e-14)
AT_EQUILIBRIUM = {
    "implicit": ImplicitAdjoint(Broyden(max_steps=60, tolerance=1e-12)),
    "one-step": OneStep(),
    "phantom": Phantom(),
}
ESTIMATORS = AT_EQUILIBRIUM | {"unrolled": Unrolled()}
EVALUATIONS = {"implicit": 1, "one-step": 1, "phantom": 5}  # beyond the solve

every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS.keys())


@pytest.mark.parametrize("name", AT_EQUILIBRIUM)
def test_an_equilibrium_estimator_evaluates_at_what_the_solver_returned(layer, name):
    calls = []

    def function(z: Tensor) -> Tensor:
        calls.append(z.detach().clone())
        return layer(z)

    point = AT_EQUILIBRIUM[name].fixed_point(function, layer.start, Picard(max_steps=4))
    assert point.solution.steps.tolist() == [4] * 3
    assert len(calls) == 4 + EVALUATIONS[name]
    assert torch.equal(calls[4], point.solution.value)
    assert torch.equal(point.state, point.solution.value)
    assert point.state.is_leaf
    assert point.state.requires_grad
    assert torch.equal(point.fz, layer(point.solution.value))
    assert point.value.requires_grad


@every_estimator
def test_every_estimator_reaches_the_fixed_point(layer, estimator, error):
    converged = FORWARD.solve(layer, layer.start).value
    value = estimator.fixed_point(layer, layer.start, FORWARD).value
    assert isinstance(estimator, GradientEstimator)
    assert error(value, converged) < (0.1 if isinstance(estimator, Unrolled) else 1e-12)


@every_estimator
def test_a_graph_is_built_within_no_grad(layer, estimator):
    # Fixed points are asked for by evaluation code too.
    with torch.no_grad():
        point = estimator.fixed_point(layer, layer.start, FORWARD)
    assert point.fz.requires_grad
    assert point.value.requires_grad


@every_estimator
def test_no_gradient_passes_to_the_start(layer, estimator):
    layer.start.requires_grad_()
    layer.loss(estimator.fixed_point(layer, layer.start, FORWARD).value).backward()
    assert layer.start.grad is None


@every_estimator
def test_the_start_is_left_as_it_was(layer, estimator):
    estimator.fixed_point(layer, layer.start, FORWARD)
    assert not layer.start.requires_grad


@every_estimator
def test_frozen_parameters_leave_the_gradient_of_the_inputs_as_it_is(layer, estimator):
    *_, expected = layer.gradients(estimator.fixed_point(layer, layer.start, FORWARD).value)
    layer.freeze()
    layer.loss(estimator.fixed_point(layer, layer.start, FORWARD).value).backward()
    torch.testing.assert_close(layer.x.grad, expected, rtol=1e-12, atol=0)
    assert all(parameter.grad is None for parameter in layer.parameters)


@every_estimator
def test_frozen_inputs_leave_the_gradient_of_the_parameters_as_it_is(layer, estimator):
    *expected, _ = layer.gradients(estimator.fixed_point(layer, layer.start, FORWARD).value)
    layer.x.requires_grad_(False)
    layer.loss(estimator.fixed_point(layer, layer.start, FORWARD).value).backward()
    for parameter, gradient in zip(layer.parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=0)


@every_estimator
def test_backward_twice_with_retained_graph(layer, estimator):
    point = estimator.fixed_point(layer, layer.start, FORWARD)
    loss = layer.loss(point.value)
    loss.backward(retain_graph=True)
    once = [leaf.grad.clone() for leaf in layer.leaves]
    loss.backward()
    for leaf, gradient in zip(layer.leaves, once, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * gradient)


@every_estimator
def test_the_penalty_and_the_loss_share_one_graph(layer, estimator):
    def penalty(state: Tensor, image: Tensor) -> Tensor:
        torch.manual_seed(0)
        return hutchinson_penalty(state, image)

    with torch.random.fork_rng():
        point = estimator.fixed_point(layer, layer.start, FORWARD)
        of_loss = layer.gradients(point.value)
        of_penalty = torch.autograd.grad(penalty(point.state, point.fz), layer.leaves, retain_graph=True)
        (layer.loss(point.value) + penalty(point.state, point.fz)).backward()
    for leaf, one, other in zip(layer.leaves, of_loss, of_penalty, strict=True):
        assert other.norm() > 0
        torch.testing.assert_close(leaf.grad, one + other)


@pytest.mark.parametrize("estimator", AT_EQUILIBRIUM.values(), ids=AT_EQUILIBRIUM.keys())
def test_the_penalty_differentiates_the_jacobian_at_the_fixed_point(layer, estimator):
    # J = diag(1 − tanh²) W: here with a state that does not move, as the penalty takes it.
    point = estimator.fixed_point(layer, layer.start, FORWARD)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vector = torch.randn_like(point.fz)
        torch.manual_seed(0)
        (found,) = torch.autograd.grad(hutchinson_penalty(point.state, point.fz, vectors=1), layer.weight)
    product = (vector * (1 - layer(point.state.detach()) ** 2)) @ layer.weight
    (expected,) = torch.autograd.grad(product.square().mean(), layer.weight)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["one-step", "phantom", "unrolled"])
def test_only_a_backward_solve_is_monitored(layer, name):
    solutions: list[Solution] = []
    layer.loss(ESTIMATORS[name].fixed_point(layer, layer.start, FORWARD, solutions.append).value).backward()
    assert solutions == []
