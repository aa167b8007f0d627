"""Networks that are linear in disguise, whose smallest perturbations are known: no radius is above them."""

from __future__ import annotations

import math

import pytest
import torch

from deqcert.monotone import LBEN, MonDEQ
from deqcert.solvers import Anderson
from deqcert.statistics.margins import MarginRule, Margins

SETTINGS = {"units": 9, "image_size": 3, "num_classes": 4, "std": (0.4,)}


def linear(network):
    """Keep all units active far beyond the images, and the logits of size one nevertheless."""
    network = network.double()
    identity = torch.eye(9, dtype=torch.float64)
    with torch.no_grad():
        network.encoder.bias[:] = (identity - network.weight()) @ torch.full((9,), 1e3, dtype=torch.float64)
        network.decoder.bias[:] = -network.decoder.weight.sum(dim=1) * 1e3
        jacobian = network.decoder.weight @ torch.linalg.solve(identity - network.weight(), network.input_matrix())
    return network, jacobian


def certified(network, x):
    """The radius of each image, and its class."""
    bounded = network.bounded_logits(x, Anderson(max_steps=2000, tolerance=1e-14, memory=4, ridge=0.0))
    constants = network.lipschitz_constants()
    radii = []
    for index, (logits, errors) in enumerate(zip(bounded.logits, bounded.errors, strict=True)):
        top = int(logits.argmax())
        gaps = (logits[top] - logits).tolist()
        margins = Margins(top, gaps, errors.tolist(), constants[top].tolist(), None, 1, 0.0, 0.0, index, 0)
        radii.append(MarginRule().certify(margins).radius)
    return torch.tensor(radii, dtype=torch.float64), bounded.logits.argmax(dim=1)


def smallest_perturbations(jacobian, network, x, classes):
    """For each image the distance to the nearest class and the perturbation that reaches it."""
    offset = network.readout(torch.linalg.solve(torch.eye(9).double() - network.weight(), network.bias(x).mT).mT)
    gaps = offset.gather(1, classes[:, None]) - offset
    rows = jacobian[classes][:, None] - jacobian
    distances = (gaps / rows.norm(dim=2)).nan_to_num(nan=math.inf)
    distance, other = distances.min(dim=1)
    direction = rows[torch.arange(len(x)), other]
    return distance, -distance[:, None] * direction / direction.norm(dim=1, keepdim=True)


def demand_boundary(network, x, classes, perturbation):
    """The perturbation is what it should be: the class changes a little beyond it, and not a little before."""
    solver = Anderson(max_steps=2000, tolerance=1e-14, memory=4, ridge=0.0)
    for factor, changes in ((1 - 1e-4, False), (1 + 1e-4, True)):
        moved = x + factor * perturbation.view_as(x)
        logits, solution = network.solve(moved, solver)
        assert (solution.value > 0).all(), "still linear"
        assert ((logits.argmax(dim=1) != classes) == changes).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", [MonDEQ, LBEN])
def test_no_radius_is_above_the_smallest_perturbation(kind, seed):
    torch.manual_seed(seed)
    network, jacobian = linear(kind(**SETTINGS))
    x = torch.rand(100, 1, 3, 3, dtype=torch.float64)
    radii, classes = certified(network, x)
    distance, perturbation = smallest_perturbations(jacobian, network, x, classes)
    demand_boundary(network, x, classes, perturbation)
    assert (radii > 0).any()
    assert (radii <= distance).all()
    assert (radii >= 0.2 * distance).float().mean() > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_the_radius_is_the_smallest_perturbation_where_the_inequality_is_tight(seed):
    """W = 0 and U with orthogonal rows of equal length: then L is the norm of the Jacobian."""
    torch.manual_seed(seed)
    network = MonDEQ(m=1.0, **SETTINGS).double()
    network.scales.data.zero_()
    network.encoder.weight.data = torch.nn.init.orthogonal_(network.encoder.weight.data)
    network, jacobian = linear(network)
    x = torch.rand(100, 1, 3, 3, dtype=torch.float64)
    radii, classes = certified(network, x)
    distance, perturbation = smallest_perturbations(jacobian, network, x, classes)
    demand_boundary(network, x, classes, perturbation)
    assert (radii <= distance).all()
    far = distance > 1e-3  # beside them the rounding of logits that come of states of size 1000 is not small
    torch.testing.assert_close(radii[far], distance[far], rtol=1e-3, atol=1e-6)
