from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqcert.errors import SettingError
from deqcert.implicit import Unrolled
from deqcert.solvers import Picard

IGNORED = Picard(max_steps=1)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_unrolling_is_plain_autograd(layer, steps):
    point = Unrolled(steps).fixed_point(layer, layer.start, IGNORED)
    z = previous = layer.start
    for _ in range(steps):
        previous, z = z, layer(z)
    assert torch.equal(point.value, z)
    assert torch.equal(point.state, previous)
    assert torch.equal(point.fz, z)
    assert point.solution is None
    for one, other in zip(layer.gradients(point.value), layer.gradients(z), strict=True):
        assert torch.equal(one, other)


def test_unrolling_is_that_of_finite_differences(layer):
    def unrolled(weight: Tensor, x: Tensor) -> Tensor:
        layer.weight, layer.x = weight, x
        return Unrolled(3).fixed_point(layer, layer.start, IGNORED).value

    assert torch.autograd.gradcheck(unrolled, (layer.weight, layer.x))
    assert torch.autograd.gradgradcheck(unrolled, (layer.weight, layer.x))


def test_unrolling_a_frozen_linear_cell_converges_to_the_closed_form(linear, error):
    linear.freeze()
    exact = linear.exact_input_gradient()
    errors = [
        error(linear.input_gradient(Unrolled(steps).fixed_point(linear, linear.start, IGNORED).value), exact)
        for steps in (1, 5, 20, 60)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] < 1e-6


@pytest.mark.parametrize("frozen", [False, True], ids=["training", "frozen"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_unrolled_image_depends_on_its_state(layer, steps, frozen):
    if frozen:
        layer.freeze()
        layer.x.requires_grad_(False)
    point = Unrolled(steps).fixed_point(layer, layer.start, IGNORED)
    (product,) = torch.autograd.grad(point.fz.sum(), point.state)
    slope = 1 - point.fz.detach() ** 2
    torch.testing.assert_close(product, slope @ layer.weight.detach())


@pytest.mark.parametrize("steps", [0, -1, 2.0, 1.5, True, "8"])
def test_steps_are_a_positive_integer(steps):
    with pytest.raises(SettingError, match=r"^steps = .*must be an integer >= 1"):
        Unrolled(steps)
