from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqcert.implicit import ImplicitAdjoint, Unrolled
from deqcert.solvers import Anderson, Broyden, Picard, Solution

FORWARD = Picard(max_steps=300, tolerance=1e-14)
BACKWARD = {
    "picard": Picard(max_steps=300, tolerance=1e-12),
    "anderson": Anderson(max_steps=300, tolerance=1e-12),
    "anderson-no-ridge": Anderson(max_steps=100, tolerance=1e-12, memory=3, ridge=0),
    "broyden": Broyden(max_steps=60, tolerance=1e-12),
}

every_solver = pytest.mark.parametrize("solver", BACKWARD.values(), ids=BACKWARD.keys())


@every_solver
@pytest.mark.parametrize("forward", [FORWARD, Broyden(max_steps=60, tolerance=1e-13)], ids=["picard", "broyden"])
def test_the_gradient_is_that_of_the_converged_iteration(layer, solver, forward, error):
    point = ImplicitAdjoint(solver).fixed_point(layer, layer.start, forward)
    for found, expected in zip(layer.gradients(point.value), layer.exact(), strict=True):
        assert error(found, expected) < 1e-6


@every_solver
def test_the_gradient_of_the_inputs_of_a_frozen_linear_cell_in_closed_form(linear, solver):
    linear.freeze()
    point = ImplicitAdjoint(solver).fixed_point(linear, linear.start, FORWARD)
    torch.testing.assert_close(linear.input_gradient(point.value), linear.exact_input_gradient(), rtol=1e-8, atol=1e-9)


def test_the_gradient_is_that_of_finite_differences(layer):
    def fixed_point(weight: Tensor, x: Tensor) -> Tensor:
        layer.weight, layer.x = weight, x
        return ImplicitAdjoint(BACKWARD["broyden"]).fixed_point(layer, layer.start, FORWARD).value

    assert torch.autograd.gradcheck(fixed_point, (layer.weight, layer.x))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_short_backward_solve_is_the_truncated_neumann_series(linear, steps):
    point = ImplicitAdjoint(Picard(max_steps=steps)).fixed_point(linear, linear.start, FORWARD)
    powers = [torch.linalg.matrix_power(linear.weight, power) for power in range(steps + 1)]
    expected = sum(linear.target @ power for power in powers) @ linear.inputs
    torch.testing.assert_close(linear.input_gradient(point.value), expected)


def test_the_gradient_of_shaped_states(error):
    generator = torch.Generator().manual_seed(2)
    kernel = (0.1 * torch.randn(2, 2, 3, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    x = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)

    def function(z: Tensor) -> Tensor:
        return torch.tanh(torch.nn.functional.conv2d(z, kernel, padding=1) + x)

    found, expected = (
        torch.autograd.grad(estimator.fixed_point(function, torch.zeros_like(x), FORWARD).value.sin().sum(), kernel)[0]
        for estimator in (ImplicitAdjoint(BACKWARD["broyden"]), Unrolled(200))
    )
    assert error(found, expected) < 1e-6


def test_a_second_derivative_is_refused(layer):
    # Through the solve it would come out wrong.
    point = ImplicitAdjoint().fixed_point(layer, layer.start, FORWARD)
    (gradient,) = torch.autograd.grad(layer.loss(point.value), layer.x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_monitor_receives_every_backward_solve(layer):
    solutions: list[Solution] = []
    solver = Broyden(max_steps=60, tolerance=1e-9)
    point = ImplicitAdjoint(solver).fixed_point(layer, layer.start, FORWARD, solutions.append)
    assert solutions == []
    loss = layer.loss(point.value)
    loss.backward(retain_graph=True)
    loss.backward()
    assert len(solutions) == 2
    for solution in solutions:
        assert solution.converged.all()
        assert solution.value.shape == point.value.shape
        assert (solution.steps > 1).all()
        assert (solution.residual <= 1e-9).all()
    # g = gᵀJ + ∂L/∂z
    (upstream,) = torch.autograd.grad(layer.loss(value := point.value.detach().requires_grad_()), value)
    g = solutions[0].value
    product = (g * (1 - point.fz.detach() ** 2)) @ layer.weight.detach()
    torch.testing.assert_close(g, product + upstream, rtol=1e-7, atol=1e-8)


def test_rows_of_the_backward_solve_are_independent(layer):
    point = ImplicitAdjoint(BACKWARD["broyden"]).fixed_point(layer, layer.start, FORWARD)
    upstream = torch.zeros_like(point.value)
    upstream[1] = 1
    (gradient,) = torch.autograd.grad(point.value, layer.x, upstream)
    assert (gradient[[0, 2]] == 0).all()
    assert (gradient[1] != 0).any()


def test_the_published_backward_solver_is_the_default():
    assert ImplicitAdjoint().solver == Broyden(max_steps=7, tolerance=1e-3)
