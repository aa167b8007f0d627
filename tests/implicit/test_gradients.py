from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqcert.errors import SettingError
from deqcert.implicit import ImplicitAdjoint, OneStep, unrolled_fixed_point
from deqcert.solvers import Anderson, Broyden, Picard, Solution

FORWARD = Picard(max_steps=300, tolerance=1e-14)
BACKWARD = {
    "picard": Picard(max_steps=300, tolerance=1e-12),
    "anderson": Anderson(max_steps=300, tolerance=1e-12),
    "anderson-no-ridge": Anderson(max_steps=100, tolerance=1e-12, memory=3, ridge=0),
    "broyden": Broyden(max_steps=60, tolerance=1e-12),
}


class Layer:
    """z = tanh(W z + U x + b) and a loss that is not linear in z."""

    def __init__(self, size: int = 6, batch: int = 3, contraction: float = 0.7) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        weight = draw(size, size)
        self.weight = (weight * contraction / torch.linalg.matrix_norm(weight, 2)).requires_grad_()
        self.inputs = draw(size, size).requires_grad_()
        self.bias = draw(size).requires_grad_()
        self.x = (0.3 * draw(batch, size)).requires_grad_()
        self.start = draw(batch, size)
        self.target = draw(batch, size)

    def __call__(self, z: Tensor) -> Tensor:
        return torch.tanh(z @ self.weight.T + self.x @ self.inputs.T + self.bias)

    def loss(self, z: Tensor) -> Tensor:
        return (z * self.target).exp().sum()

    @property
    def leaves(self) -> list[Tensor]:
        return [self.weight, self.inputs, self.bias, self.x]

    def gradients(self, z: Tensor, **options: bool) -> list[Tensor]:
        return list(torch.autograd.grad(self.loss(z), self.leaves, **options))


def relative_errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]


def exact(layer: Layer) -> list[Tensor]:
    """Plain autograd through an iteration that has converged."""
    z = layer.start
    for _ in range(300):
        z = layer(z)
    return layer.gradients(z)


@pytest.mark.parametrize("solver", BACKWARD.values(), ids=BACKWARD.keys())
@pytest.mark.parametrize("forward", [FORWARD, Broyden(max_steps=60, tolerance=1e-13)], ids=["picard", "broyden"])
def test_implicit_gradient_is_that_of_the_converged_iteration(solver, forward):
    layer = Layer()
    point = ImplicitAdjoint(solver).fixed_point(layer, layer.start, forward)
    found = layer.gradients(point.value)
    assert max(relative_errors(found, exact(layer))) < 1e-6


@pytest.mark.parametrize("solver", BACKWARD.values(), ids=BACKWARD.keys())
def test_implicit_gradient_of_a_linear_layer_in_closed_form(solver):
    # z = A z + b: dL/db = (I − A)⁻ᵀ dL/dz, summed over no rows.
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    matrix = 0.8 * matrix / torch.linalg.matrix_norm(matrix, 2)
    bias = torch.randn(2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    point = ImplicitAdjoint(solver).fixed_point(lambda z: z @ matrix.T + bias, torch.zeros(2, 5).double(), FORWARD)
    point.value.backward(upstream)
    expected = torch.linalg.solve((torch.eye(5, dtype=torch.float64) - matrix).T, upstream.T).T
    torch.testing.assert_close(bias.grad, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_short_backward_solve_is_the_truncated_neumann_series(steps):
    matrix = torch.tensor([[0.3, 0.5], [-0.4, 0.2]], dtype=torch.float64)
    bias = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    upstream = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    point = ImplicitAdjoint(Picard(max_steps=steps)).fixed_point(
        lambda z: z @ matrix.T + bias, torch.zeros(1, 2).double(), FORWARD
    )
    point.value.backward(upstream)
    expected = sum(upstream @ torch.linalg.matrix_power(matrix, power) for power in range(steps + 1))
    torch.testing.assert_close(bias.grad, expected)


def test_implicit_gradient_of_shaped_states():
    generator = torch.Generator().manual_seed(2)
    kernel = (0.1 * torch.randn(2, 2, 3, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    x = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)

    def function(z: Tensor) -> Tensor:
        return torch.tanh(torch.nn.functional.conv2d(z, kernel, padding=1) + x)

    point = ImplicitAdjoint(BACKWARD["broyden"]).fixed_point(function, torch.zeros_like(x), FORWARD)
    assert point.value.shape == x.shape
    (found,) = torch.autograd.grad(point.value.sin().sum(), kernel)
    (expected,) = torch.autograd.grad(
        unrolled_fixed_point(function, torch.zeros_like(x), 200).value.sin().sum(), kernel
    )
    assert max(relative_errors([found], [expected])) < 1e-6


@pytest.mark.parametrize("estimator", [ImplicitAdjoint(), OneStep()], ids=["implicit", "one-step"])
def test_the_fixed_point_is_one_evaluation_beyond_the_solve(estimator):
    layer = Layer()
    calls = []

    def function(z: Tensor) -> Tensor:
        calls.append(z.detach().clone())
        return layer(z)

    point = estimator.fixed_point(function, layer.start, Picard(max_steps=4))
    assert len(calls) == 5
    assert torch.equal(calls[-1], point.solution.value)
    assert torch.equal(point.state, point.solution.value)
    assert point.state.is_leaf
    assert point.state.requires_grad
    assert torch.equal(point.value, layer(point.solution.value))
    assert torch.equal(point.image, point.value)
    assert point.solution.steps.tolist() == [4] * 3
    assert point.value.requires_grad


@pytest.mark.parametrize("estimator", [ImplicitAdjoint(), OneStep()], ids=["implicit", "one-step"])
def test_a_graph_is_built_within_no_grad(estimator):
    # Fixed points are asked for by evaluation code too.
    layer = Layer()
    with torch.no_grad():
        point = estimator.fixed_point(layer, layer.start, FORWARD)
    assert point.image.requires_grad


def test_one_step_is_the_gradient_of_one_evaluation_at_the_detached_fixed_point():
    layer = Layer()
    point = OneStep().fixed_point(layer, layer.start, FORWARD)
    found = layer.gradients(point.value)
    expected = layer.gradients(layer(point.solution.value.detach()))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert max(relative_errors(found, exact(layer))) > 1e-2  # it is an approximation


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_unrolling_is_plain_autograd(steps):
    layer = Layer()
    point = unrolled_fixed_point(layer, layer.start, steps)
    z = previous = layer.start
    for _ in range(steps):
        previous, z = z, layer(z)
    assert torch.equal(point.value, z)
    assert torch.equal(point.state, previous)
    assert torch.equal(point.image, z)
    assert point.solution is None
    for a, b in zip(layer.gradients(point.value), layer.gradients(z), strict=True):
        assert torch.equal(a, b)
    assert not layer.start.requires_grad


def test_the_unrolled_image_depends_on_its_state():
    layer = Layer()
    for steps in (1, 3):
        point = unrolled_fixed_point(layer, layer.start, steps)
        (product,) = torch.autograd.grad(point.image.sum(), point.state)
        slope = 1 - point.image.detach() ** 2
        torch.testing.assert_close(product, slope @ layer.weight.detach())


@pytest.mark.parametrize("steps", [0, -1])
def test_unrolling_needs_a_step(steps):
    layer = Layer()
    with pytest.raises(SettingError, match=r"^steps = "):
        unrolled_fixed_point(layer, layer.start, steps)


@pytest.mark.parametrize("estimator", [ImplicitAdjoint(BACKWARD["broyden"]), OneStep()], ids=["implicit", "one-step"])
def test_backward_twice_with_retained_graph(estimator):
    layer = Layer()
    point = estimator.fixed_point(layer, layer.start, FORWARD)
    loss = layer.loss(point.value)
    loss.backward(retain_graph=True)
    once = [leaf.grad.clone() for leaf in layer.leaves]
    loss.backward()
    for leaf, gradient in zip(layer.leaves, once, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * gradient)


def test_monitor_receives_every_backward_solve():
    layer = Layer()
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
    product = (g * (1 - point.image.detach() ** 2)) @ layer.weight.detach()
    torch.testing.assert_close(g, product + upstream, rtol=1e-7, atol=1e-8)


def test_one_step_has_nothing_to_monitor():
    layer = Layer()
    solutions: list[Solution] = []
    layer.loss(OneStep().fixed_point(layer, layer.start, FORWARD, solutions.append).value).backward()
    assert solutions == []


def test_rows_of_the_backward_solve_are_independent():
    layer = Layer()
    point = ImplicitAdjoint(BACKWARD["broyden"]).fixed_point(layer, layer.start, FORWARD)
    upstream = torch.zeros_like(point.value)
    upstream[1] = 1
    (gradient,) = torch.autograd.grad(point.value, layer.x, upstream)
    assert (gradient[[0, 2]] == 0).all()
    assert (gradient[1] != 0).any()


def test_the_published_backward_solver_is_the_default():
    assert ImplicitAdjoint().solver == Broyden(max_steps=7, tolerance=1e-3)
