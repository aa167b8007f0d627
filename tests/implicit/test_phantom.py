from __future__ import annotations

import math

import pytest
import torch

from deqcert.errors import SettingError
from deqcert.implicit import OneStep, Phantom
from deqcert.solvers import Picard

FORWARD = Picard(max_steps=300, tolerance=1e-14)


def test_one_step_is_the_gradient_of_one_evaluation_at_the_detached_fixed_point(layer, error):
    point = OneStep().fixed_point(layer, layer.start, FORWARD)
    found = layer.gradients(point.value)
    assert torch.equal(point.value, point.fz)
    for one, other in zip(found, layer.gradients(layer(point.solution.value.detach())), strict=True):
        assert torch.equal(one, other)
    assert error(found[0], layer.exact()[0]) > 1e-2  # it is an approximation


def test_one_step_of_a_frozen_linear_cell_is_the_transposed_input_map(linear):
    linear.freeze()
    point = OneStep().fixed_point(linear, linear.start, FORWARD)
    torch.testing.assert_close(linear.input_gradient(point.value), linear.target @ linear.inputs)


@pytest.mark.parametrize("forward", [FORWARD, Picard(max_steps=2)], ids=["converged", "short"])
def test_one_undamped_phantom_step_is_one_step(layer, forward):
    found, expected = (
        estimator.fixed_point(layer, layer.start, forward).value
        for estimator in (Phantom(steps=1, damping=1), OneStep())
    )
    assert torch.equal(found, expected)
    for one, other in zip(layer.gradients(found), layer.gradients(expected), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("damping", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_phantom_gradient_is_the_truncated_damped_neumann_series(linear, steps, damping):
    linear.freeze()
    point = Phantom(steps, damping).fixed_point(linear, linear.start, FORWARD)
    damped = damping * linear.weight + (1 - damping) * torch.eye(6, dtype=torch.float64)
    series = damping * sum(torch.linalg.matrix_power(damped, power) for power in range(steps))
    torch.testing.assert_close(linear.input_gradient(point.value), linear.target @ series @ linear.inputs)


@pytest.mark.parametrize("damping", [0.5, 1.0])
def test_the_phantom_gradient_approaches_the_exact_one(linear, damping, error):
    linear.freeze()
    exact = linear.exact_input_gradient()
    errors = [
        error(linear.input_gradient(Phantom(steps, damping).fixed_point(linear, linear.start, FORWARD).value), exact)
        for steps in (1, 5, 20, 100)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] < 1e-6


def test_the_damped_steps_start_at_the_solution(layer):
    # Short of convergence they go on, and the gradient is that of the steps alone.
    point = Phantom(steps=3, damping=0.25).fixed_point(layer, layer.start, Picard(max_steps=2))
    z = point.solution.value.detach()
    for _ in range(3):
        z = 0.25 * layer(z) + 0.75 * z
    torch.testing.assert_close(point.value, z)
    for one, other in zip(layer.gradients(point.value), layer.gradients(z), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("steps", [0, -1, 2.0, 1.5, True, "5"])
def test_steps_are_a_positive_integer(steps):
    with pytest.raises(SettingError, match=r"^steps = .*must be an integer >= 1"):
        Phantom(steps=steps)


@pytest.mark.parametrize("damping", [0, -0.5, 1.01, math.nan, math.inf])
def test_damping_is_in_range(damping):
    with pytest.raises(SettingError, match=r"^damping = .*must be in \(0, 1\]"):
        Phantom(damping=damping)
