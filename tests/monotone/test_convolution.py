"""Convolutional monotone networks against dense matrices that are built column by column."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deqcert.checkpoints.architecture import architecture_of, network_of
from deqcert.errors import SettingError
from deqcert.implicit import ImplicitAdjoint, Unrolled
from deqcert.monotone import ConvLBEN, ConvMonDEQ
from deqcert.monotone.constants import pair_constants
from deqcert.monotone.convolution import ConvMonotoneDEQ
from deqcert.monotone.operators import convolve, spectrum
from deqcert.solvers import Anderson, Picard

SMALL = {"channels": 3, "image_channels": 2, "image_size": 4, "pool": 2, "num_classes": 3}
SMALL |= {"mean": (0.4, 0.5), "std": (0.5, 0.3)}
EXACT = Anderson(max_steps=500, tolerance=1e-13, ridge=0.0)

KINDS = {
    "monDEQ": (ConvMonDEQ, {}),
    "monDEQ m=.1": (ConvMonDEQ, {"m": 0.1}),
    "monDEQ 1x1": (ConvMonDEQ, {"kernel_size": 1}),
    "LBEN": (ConvLBEN, {"gamma": 1.0}),
    "LBEN gamma=.3": (ConvLBEN, {"gamma": 0.3}),
    "LBEN gamma=inf": (ConvLBEN, {"gamma": math.inf}),
    "LBEN odd grid": (ConvLBEN, {"gamma": 2.0, "image_size": 3, "pool": 1}),
}

SPLITTINGS = [
    ("monDEQ", "forward_backward"),
    ("monDEQ", "peaceman_rachford"),
    ("LBEN", "peaceman_rachford"),  # forward-backward splitting takes thousands of steps there
    ("LBEN gamma=inf", "forward_backward"),
]


def build(kind: str, **settings: object) -> ConvMonotoneDEQ:
    cls, special = KINDS[kind]
    torch.manual_seed(0)
    network = cls(**{**SMALL, **special, **settings}).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():  # nothing at its initial value
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


@pytest.fixture(params=KINDS)
def network(request):
    return build(request.param)


def images(network: ConvMonotoneDEQ, count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = count, network.image_channels, network.image_size, network.image_size
    return torch.rand(shape, generator=generator, dtype=torch.float64)


class Dense(NamedTuple):
    """The network as matrices over the whole torus of s x s, and the positions within the border."""

    weight: Tensor  # W, (n, n)
    inputs: Tensor  # U on images in [0, 1] as large as the torus, (n, image channels s s)
    readout: Tensor  # W_o, (classes, n)
    metric: Tensor  # Λ, (n,)
    inside: Tensor  # bool, (n,)
    pixels: Tensor  # bool, (image channels s s,)

    @property
    def monotone(self) -> Tensor:
        product = self.metric[:, None] * self.weight
        return 2 * self.metric.diag() - product - product.T

    @property
    def restricted(self) -> tuple[Tensor, Tensor, Tensor]:
        """W, U and W_o of the states and images within the border."""
        rows = self.inside
        return self.weight[rows][:, rows], self.inputs[rows][:, self.pixels], self.readout[:, rows]

    def fixed_point(self, bias: Tensor) -> Tensor:
        """Solve z = relu(W z + bias) within the border by many averaged steps, bias (n,)."""
        weight, _, _ = self.restricted
        bias, scale = bias[self.inside], self.metric[self.inside]
        matrix = torch.eye(len(weight), dtype=torch.float64) - weight
        inverse = torch.linalg.inv(torch.eye(len(weight), dtype=torch.float64) + matrix)
        u = torch.zeros_like(scale)
        for _ in range(4000):  # Douglas-Rachford
            z = u.relu()
            u = u + inverse @ (2 * z - u + bias) - z
        return u.relu()


def circular(kernel: Tensor, states: Tensor) -> Tensor:
    """Apply a convolution on the torus by moving the states around, one tap at a time."""
    center = kernel.shape[-1] // 2
    result = torch.zeros(len(states), len(kernel), *states.shape[2:], dtype=torch.float64)
    for y in range(kernel.shape[-1]):
        for x in range(kernel.shape[-1]):
            moved = states.roll((center - y, center - x), dims=(2, 3))
            result += torch.einsum("oi,bihw->bohw", kernel[:, :, y, x], moved)
    return result


def matrix_of(kernel: Tensor, size: int) -> Tensor:
    """Return a convolution on the torus as a matrix, column by column."""
    count = kernel.shape[1] * size * size
    units = torch.eye(count, dtype=torch.float64).view(count, kernel.shape[1], size, size)
    return circular(kernel, units).flatten(1).T


@torch.no_grad()
def dense(network: ConvMonotoneDEQ) -> Dense:
    """Write the definitions of the two papers with explicit matrices."""
    size, channels = network.size, network.encoder.out_channels
    inside = torch.zeros(size, size, dtype=torch.bool)
    edge = slice(network.border, network.border + network.image_size)
    inside[edge, edge] = True
    inputs = matrix_of(network.encoder.weight / network.std.view(1, -1, 1, 1), size)
    skew = matrix_of(network.skew / network.skew.norm() * network.scales[1], size)
    readout = torch.zeros(network.num_classes, channels * size * size, dtype=torch.float64)
    readout[:, inside.flatten().repeat(channels)] = network.decoder.weight @ pooling(network)
    identity = torch.eye(len(inputs), dtype=torch.float64)
    if isinstance(network, ConvMonDEQ):
        part = matrix_of(network.symmetric / network.symmetric.norm() * network.scales[0], size)
        metric = torch.ones(len(identity), dtype=torch.float64)
        weight = (1 - network.m) * identity - part @ part.T + skew - skew.T
    else:
        part = matrix_of(network.monotone / network.monotone.norm() * network.scales[0], size)
        metric = (-network.psi).exp().repeat_interleave(size * size)
        pushed = metric[:, None] * inputs
        bracket = (readout.T @ readout + pushed @ pushed.T) / (2 * network.gamma) + part @ part.T
        bracket = bracket + network.epsilon * identity + skew.T - skew
        weight = identity - bracket / metric[:, None]
    pixels = inside.flatten().repeat(network.image_channels)
    return Dense(weight, inputs, readout, metric, inside.flatten().repeat(channels), pixels)


def pooling(network: ConvMonotoneDEQ) -> Tensor:
    """Return the average pool as a matrix, from the states within the border."""
    shape = network.encoder.out_channels, network.image_size, network.image_size
    units = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return F.avg_pool2d(units, network.pool).flatten(1).T


def test_every_part_is_its_matrix(network):
    expected, x = dense(network), images(network)
    operator, size = network.operator(), network.size
    states = torch.randn(5, network.encoder.out_channels, size, size, dtype=torch.float64)
    bordered = network.activation(states)
    inside = expected.inside
    with torch.no_grad():
        product = (bordered.flatten(1) @ expected.weight.T)[:, inside]
        torch.testing.assert_close(operator(bordered).flatten(1)[:, inside], product)
        step = torch.eye(len(expected.weight), dtype=torch.float64) * (1 + network.alpha)
        solved = torch.linalg.solve(step - network.alpha * expected.weight, states.flatten(1).T).T
        torch.testing.assert_close(operator.resolvent(states).flatten(1), solved)
        torch.testing.assert_close(network.readout_matrix(), expected.readout)
        logits = bordered.flatten(1) @ expected.readout.T + network.decoder.bias
        torch.testing.assert_close(network.readout(bordered), logits)
        pixels = torch.zeros(len(x), len(expected.pixels), dtype=torch.float64)
        pixels[:, expected.pixels] = (x - network.mean).flatten(1)
        bias = pixels @ expected.inputs.T + network.encoder.bias.repeat_interleave(size * size)
        torch.testing.assert_close(network.bias(x).flatten(1)[:, inside], bias[:, inside])


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("size", [5, 6, 9])
def test_frequencies_are_a_convolution_on_the_torus(kernel_size, size):
    kernel, states = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, 5, 5), (4, 3, size, size)))
    kernel = kernel[:, :, :kernel_size, :kernel_size]
    torch.testing.assert_close(convolve(spectrum(kernel, size), states), circular(kernel, states))


@pytest.mark.parametrize(("kind", "splitting"), SPLITTINGS)
@pytest.mark.parametrize("solver", [Picard(max_steps=3000, tolerance=1e-10), EXACT])
def test_every_solver_finds_the_fixed_point_of_the_matrices(kind, splitting, solver):
    network = build(kind, splitting=splitting)
    if splitting == "forward_backward":
        network.alpha = 0.9 * network.step_size_bound()
    expected, x = dense(network), images(network, 3)
    with torch.no_grad():
        injection = network.inject(x)
        solution = solver.solve(lambda z: network.cell(z, injection), network.initial_state(injection))
        assert solution.converged.all()
        z = network.activation(solution.value)
        for row, bias in zip(z, injection.bias, strict=True):
            exact = expected.fixed_point(bias.flatten())
            torch.testing.assert_close(row.flatten()[expected.inside], exact, rtol=1e-6, atol=1e-7)
        assert (z.flatten(1)[:, ~expected.inside] == 0).all()
        torch.testing.assert_close(network.solve(x, solver)[0], network.readout(z))
        prepared = network.for_inference().solve(x, solver)[0]
        torch.testing.assert_close(prepared, network.readout(z), rtol=1e-6, atol=1e-7)


def test_a_step_size_beyond_the_bound_need_not_converge():
    network = build("LBEN gamma=.3", splitting="forward_backward")
    network.alpha = 20 * network.step_size_bound()
    assert not network.solve(images(network), Picard(max_steps=300, tolerance=1e-6))[1].converged.all()


def test_constants_are_those_of_the_matrices(network):
    expected = dense(network)
    pushed = expected.metric[:, None] * expected.inputs
    matrices = expected.monotone, pushed @ pushed.T, expected.readout
    exact, found = pair_constants(*matrices), network.lipschitz_constants()
    off_diagonal = ~torch.eye(network.num_classes, dtype=torch.bool)
    # A scale for which only the dense readout makes the matrix positive definite is not tried.
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0.0)
    assert (found.diagonal() == 0).all()
    trained = network.training_constants()
    assert (trained[off_diagonal] >= found[off_diagonal] * (1 - 1e-6)).all()
    assert (trained[off_diagonal] <= found[off_diagonal] * 1.5).all()
    trained.sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    # Images smaller than the torus can only be moved in fewer directions.
    fewer = pushed[:, expected.pixels]
    assert (pair_constants(expected.monotone, fewer @ fewer.T, expected.readout) <= found * (1 + 1e-6)).all()


@pytest.mark.parametrize("gamma", [0.1, 1.0, 10.0])
def test_gamma_bounds_every_constant(gamma):
    network = build("LBEN", gamma=gamma)
    constants = network.lipschitz_constants()
    assert (constants <= math.sqrt(2) * gamma * (1 + 1e-9)).all()
    assert constants.max() > 0.01 * gamma


def test_no_jacobian_is_larger_than_the_constants(network):
    expected, constants = dense(network), network.lipschitz_constants()
    weight, inputs, readout = expected.restricted
    x = (images(network, 4) * 3 - 1).requires_grad_()  # beyond [0, 1], too: the constants hold everywhere
    optimizer = torch.optim.Adam([x], lr=0.05)
    i, j = torch.triu_indices(network.num_classes, network.num_classes, 1)
    largest = torch.zeros(len(i), dtype=torch.float64)
    for _ in range(4):
        with torch.no_grad():
            injection = network.inject(x)
            solution = EXACT.solve(lambda z, a=injection: network.cell(z, a), network.initial_state(injection))
            active = network.activation(solution.value).flatten(1)[:, expected.inside] > 0
            for slopes in active.double():
                identity = torch.eye(len(weight), dtype=torch.float64)
                jacobian = readout @ torch.linalg.solve(identity - slopes[:, None] * weight, slopes[:, None] * inputs)
                largest = torch.maximum(largest, (jacobian[i] - jacobian[j]).norm(dim=1))
        logits = network.head(ImplicitAdjoint(EXACT).fixed_point(
            lambda z: network.cell(z, network.inject(x)), network.initial_state(injection), EXACT
        ).value)  # fmt: skip
        (gradient,) = torch.autograd.grad((logits[:, i] - logits[:, j]).sum(), x)
        x.grad = -gradient  # moves towards larger gaps: through many different sets of active units
        optimizer.step()
    assert (largest <= constants[i, j]).all()
    assert (largest >= 0.2 * constants[i, j]).any()  # the bound is of this network


@pytest.mark.parametrize("tolerance", [1e-1, 1e-6, 1e-12])
def test_errors_of_the_gaps_are_bounded(network, tolerance):
    x = images(network)
    exact = network.bounded_logits(x, EXACT)
    found = network.for_inference().bounded_logits(x, Anderson(max_steps=500, tolerance=tolerance, ridge=0.0))
    predicted = found.logits.argmax(dim=1, keepdim=True)
    gaps = [logits.gather(1, predicted) - logits for logits in (found.logits, exact.logits)]
    assert ((gaps[0] - gaps[1]).abs() <= found.errors + exact.errors.max()).all()
    assert (found.errors > 0).all()
    assert exact.errors.max() < 1e-6


def test_rows_do_not_depend_on_the_batch(network):
    x, solver = images(network), Anderson(max_steps=60, tolerance=1e-6, ridge=0.0)
    logits, solution = network.solve(x, solver)
    for row in range(len(x)):
        alone, own = network.solve(x[row : row + 1], solver)
        assert own.steps[0] == solution.steps[row]
        torch.testing.assert_close(alone[0], logits[row], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "splitting"), SPLITTINGS)
def test_the_implicit_gradient_is_the_unrolled_one(kind, splitting):
    network = build(kind, splitting=splitting)
    if splitting == "forward_backward":
        network.alpha = 0.9 * network.step_size_bound()
    x, labels = images(network), torch.tensor([0, 1, 2, 0, 1, 2])
    gradients = []
    for estimator in (ImplicitAdjoint(EXACT), Unrolled(500)):
        network.zero_grad()
        injection = network.inject(x)
        start = network.initial_state(injection)
        value = estimator.fixed_point(lambda z, i=injection: network.cell(z, i), start, EXACT).value
        F.cross_entropy(network.head(value), labels).backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters()})
    assert set(gradients[0]) >= {"encoder.weight", "decoder.weight", "skew", "scales"}
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (ConvMonDEQ, {"kernel_size": 2}, "kernel_size = 2: must be odd"),
        (ConvLBEN, {"kernel_size": 4}, "kernel_size = 4: must be odd"),
        (ConvMonDEQ, {"kernel_size": 5}, "kernel_size = 5: must be <= image_size = 4"),
        (ConvMonDEQ, {"kernel_size": 0}, "kernel_size = 0: must be an integer >= 1"),
        (ConvMonDEQ, {"channels": 0}, "channels = 0: must be an integer >= 1"),
        (ConvMonDEQ, {"pool": 3}, "pool = 3: must divide image_size = 4"),
        (ConvMonDEQ, {"m": 0.0}, r"m = 0.0: must be in \(0, 1\]"),
        (ConvMonDEQ, {"m": 1.5}, r"m = 1.5: must be in \(0, 1\]"),
        (ConvLBEN, {"gamma": 0.0}, "gamma = 0.0: must be > 0"),
        (ConvLBEN, {"gamma": math.nan}, "gamma = nan: must be > 0"),
        (ConvLBEN, {"epsilon": 0.0}, "epsilon = 0.0: must be > 0"),
        (ConvLBEN, {"splitting": "newton"}, "splitting = 'newton': must be one of"),
        (ConvLBEN, {"alpha": 0.0}, "alpha = 0.0: must be > 0"),
    ],
)
def test_bad_settings_are_refused(cls, settings, message):
    with pytest.raises(SettingError, match=f"^{message}"):
        cls(**{**SMALL, **settings})


@pytest.mark.parametrize("cls", [ConvMonDEQ, ConvLBEN])
@pytest.mark.parametrize("settings", [{}, {"image_channels": 1, "image_size": 8, "mean": (0.3,), "std": (0.4,)}])
def test_images_of_both_data_sets_are_classified_and_named_in_checkpoints(cls, settings):
    network = cls(channels=4, **settings)
    shape = (2, 1, 8, 8) if settings else (2, 3, 32, 32)
    assert network(torch.rand(shape)).shape == (2, 10)
    kind, arguments = network_of(architecture_of(network))
    assert kind is cls
    assert arguments == network.architecture
