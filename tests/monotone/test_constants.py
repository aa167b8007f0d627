"""Lipschitz constants: upper bounds in exact arithmetic, the best the matrix inequality gives, never below a slope."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from scipy.optimize import minimize_scalar

from deqcert.checkpoints import load_network
from deqcert.monotone import LBEN, MonDEQ
from deqcert.monotone.constants import _verified, pair_constants, shifted
from deqcert.solvers import Anderson

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
PRECISE = Anderson(max_steps=1000, tolerance=1e-10, ridge=0.0)


def exactly(matrix):
    return [[Fraction(value) for value in row] for row in matrix.tolist()]


def solve_exactly(matrix, right):
    """Gaussian elimination without rounding; the matrix is positive definite, so every pivot is positive."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for k in range(len(rows)):
        assert rows[k][k] > 0, "positive definite"
        for i in range(len(rows)):
            if i != k:
                factor = rows[i][k] / rows[k][k]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return [row[-1] / row[k] for k, row in enumerate(rows)]


def exact_square(monotone, pushed, row, scale):
    """s² wᵀ (sM − P)⁻¹ w of matrices of fractions."""
    matrix = [[scale * a - b for a, b in zip(*rows, strict=True)] for rows in zip(monotone, pushed, strict=True)]
    solved = solve_exactly(matrix, row)
    return scale**2 * sum(a * b for a, b in zip(row, solved, strict=True))


def instance(n, seed, classes=2):
    generator = torch.Generator().manual_seed(seed)
    a, u, rows = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in [(n, n), (n, n + 1), (classes, n)]
    )
    monotone, pushed = a @ a.mT + 0.1 * torch.eye(n), u @ u.mT
    return (monotone + monotone.mT) / 2, (pushed + pushed.mT) / 2, rows


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("offset", [1.0, 1e-3, 1e-6, 1e-9, 1e-12])
def test_the_verified_constant_is_an_upper_bound_without_rounding(n, offset):
    """Also where sM − P is nearly singular and most of it is rounding."""
    finite = 0
    for seed in range(40):
        monotone, pushed, rows = instance(n, seed, classes=1)
        lowest = torch.linalg.eigvals(torch.linalg.solve(monotone, pushed)).real.max()
        scale = lowest * (1 + offset)
        constant = _verified(monotone, pushed, rows[0], scale, 0.0)
        if constant.isinf():
            continue
        finite += 1
        exact = exact_square(exactly(monotone), exactly(pushed), exactly(rows)[0], Fraction(scale.item()))
        assert Fraction(constant.item()) ** 2 >= exact
        if offset >= 1e-6:
            assert constant.item() == pytest.approx(math.sqrt(exact), rel=1e-6)
    assert finite == 40 or offset < 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_constants_of_a_network_are_upper_bounds_without_rounding(seed):
    """From the weights as they are in float64 to the constant: at the best scale that a search in float64 finds."""
    torch.manual_seed(seed)
    network = LBEN(units=3, gamma=0.7, epsilon=1e-3, image_size=2, num_classes=2, std=(0.3,)).double()
    network.psi.data = 3 * torch.randn(3, dtype=torch.float64)
    network.skew.weight.data *= 1e3
    found = network.lipschitz_constants()[0, 1].item()
    metric, weight = exactly(network.metric()[None])[0], exactly(network.weight())
    std = Fraction(network.std.item())
    pushed = [
        [scale * u / std for u in row] for scale, row in zip(metric, exactly(network.encoder.weight), strict=True)
    ]
    readout = exactly(network.decoder.weight)
    row = [a - b for a, b in zip(*readout, strict=True)]
    size = range(3)
    m = [[2 * metric[i] * (i == j) - metric[i] * weight[i][j] - metric[j] * weight[j][i] for j in size] for i in size]
    p = [[sum(a * b for a, b in zip(pushed[i], pushed[j], strict=True)) for j in size] for i in size]

    def at(log_scale):
        try:
            return float(exact_square(m, p, row, Fraction(math.exp(log_scale))))
        except AssertionError:
            return math.inf

    grid = [k / 10 for k in range(-200, 200)]
    start = min(grid, key=at)
    best = minimize_scalar(at, bounds=(start - 0.1, start + 0.1), method="bounded", options={"xatol": 1e-9})
    assert found**2 >= best.fun * (1 - 1e-12)
    assert found**2 <= best.fun * (1 + 1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_constants_are_those_of_the_eigenvalue_problem(seed):
    """γ* = min_c λ_max(M^-½ (wwᵀ/c + c P) M^-½), minimized by another routine in another form."""
    monotone, pushed, readout = instance(6, seed, classes=3)
    values, vectors = torch.linalg.eigh(monotone)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.mT
    found = pair_constants(monotone, pushed, readout)
    for i, j in itertools.combinations(range(3), 2):
        row = readout[i] - readout[j]

        def largest(log_c, row=row):
            form = torch.outer(row, row) / math.exp(log_c) + math.exp(log_c) * pushed
            return float(torch.linalg.eigvalsh(root @ form @ root)[-1])

        best = minimize_scalar(largest, bounds=(-15, 15), method="bounded", options={"xatol": 1e-10})
        assert found[i, j].item() == pytest.approx(best.fun, rel=1e-4)
        assert found[i, j] >= best.fun * (1 - 1e-9)
        assert found[j, i] == found[i, j]


def test_matrices_that_are_not_positive_definite_give_no_constant():
    monotone, pushed, readout = instance(4, 0)
    spoilt = shifted(monotone, -torch.linalg.eigvalsh(monotone)[0].item() * (1 + 1e-12))
    assert pair_constants(spoilt, pushed, readout)[0, 1] == torch.inf


def test_classes_of_equal_rows_cannot_move_apart():
    monotone, pushed, readout = instance(4, 0)
    assert pair_constants(monotone, pushed, readout[[0, 0]])[0, 1] == 0


def largest_slopes(network, x, steps):
    """Ascend on ‖(J_i − J_j)(D)‖ / L_ij from the slopes D of each image, all pairs at once.

    With the slopes free in [0, 1], J = W_o (I − D W)⁻¹ D U covers more than all images together.

    Returns:
        The largest ratio found at the images, and after the ascent.
    """
    weight, u, readout = network.weight().detach(), network.input_matrix().detach(), network.decoder.weight.detach()
    first, second = torch.combinations(torch.arange(len(readout)), 2).T
    constants = network.lipschitz_constants()[first, second]
    gram = u @ u.mT
    z = network.solve(x, PRECISE)[1].value.relu()
    logit = torch.where(z > 0, 3.0, -3.0).double().requires_grad_()

    def ratios(slopes):
        system = torch.eye(len(u), dtype=torch.float64) - slopes[:, :, None] * weight
        jacobian = torch.linalg.solve(system.mT, readout.mT.expand(len(slopes), -1, -1)).mT * slopes[:, None]
        rows = jacobian[:, first] - jacobian[:, second]
        return ((rows @ gram) * rows).sum(dim=2).clamp_min(1e-30).sqrt() / constants

    at_images = ratios((z > 0).double()).max().item()
    optimizer = torch.optim.Adam([logit], lr=0.3)
    best = 0.0
    for _ in range(steps):
        found = ratios(logit.sigmoid()).amax(dim=1)
        best = max(best, found.max().item())
        optimizer.zero_grad()
        (-found.sum()).backward()
        optimizer.step()
    return at_images, best


def test_constants_are_never_below_a_jacobian(build, digits):
    for seed in range(2):
        network = build(seed, units=12)
        at_images, best = largest_slopes(network, digits[0][:100], steps=60)
        assert at_images <= best * 1.01
        assert 0.3 < best <= 1, "a bound, and not an idle one"


@pytest.mark.parametrize("name", ["digits_lben", "digits_mondeq"])
def test_constants_of_the_shipped_networks_are_never_below_a_jacobian(name, digits):
    network = load_network(CHECKPOINTS / name / "model.ckpt").network.double()
    at_images, best = largest_slopes(network, digits[0], steps=15)
    assert 0.3 < max(at_images, best) <= 1


@pytest.mark.parametrize("name", ["digits_lben", "digits_mondeq"])
def test_constants_of_the_shipped_networks_are_never_below_a_secant(name, digits):
    """Ascend on |Δ(y_i − y_j)| / ‖Δx‖ over pairs of images, the two classes being the first of each digit."""
    network = load_network(CHECKPOINTS / name / "model.ckpt").network.double()
    x = digits[0]
    logits = network.solve(x, PRECISE)[0]
    i, j = logits.topk(2, dim=1).indices.T
    constants = network.lipschitz_constants()[i, j]
    rows = network.decoder.weight.detach()[i] - network.decoder.weight.detach()[j]
    weight = network.weight().detach()
    identity = torch.eye(len(weight), dtype=torch.float64)
    delta = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def change(delta):
        both = torch.cat([x, x + delta])
        z = network.solve(both, Anderson(max_steps=300, tolerance=1e-8, ridge=0.0))[1].value.relu()
        before, after = (rows * part for part in z.chunk(2))
        active = (z[len(x) :] > 0).double()
        back = torch.linalg.solve((identity - active[:, :, None] * weight).mT, rows[:, :, None])[:, :, 0] * active
        return (after - before).sum(dim=1), (back @ network.input_matrix().detach()).view_as(delta)

    best = 0.0
    for _ in range(10):
        moved, gradient = change(delta)
        size = delta.flatten(1).norm(dim=1)
        best = max(best, (moved.abs() / size / constants).max().item())
        # Radial growth of a concave secant is not wanted: follow the gradient at the same length.
        step = gradient * moved.sign()[:, None, None, None]
        delta = step / step.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None] * size[:, None, None, None]
    assert 0.2 < best <= 1


def test_lben_keeps_gamma(build):
    for gamma in (0.1, 1.0, 5.0):
        torch.manual_seed(1)
        network = LBEN(units=20, gamma=gamma).double()
        network.psi.data = torch.randn_like(network.psi)
        assert (network.lipschitz_constants() <= math.sqrt(2) * gamma * (1 + 1e-6)).all()


def test_gamma_is_no_more_than_the_scale_of_the_logits(digits):
    """W_o, U, b times a and γ, b_o times a²: the same W, the same radii."""
    torch.manual_seed(0)
    network, scaled = LBEN(units=20, gamma=0.5).double(), LBEN(units=20, gamma=0.5 * 9).double()
    scaled.load_state_dict(network.state_dict())
    with torch.no_grad():
        for parameter in (scaled.encoder.weight, scaled.encoder.bias, scaled.decoder.weight):
            parameter *= 3
        scaled.decoder.bias *= 9
    torch.testing.assert_close(scaled.weight(), network.weight())
    torch.testing.assert_close(scaled.lipschitz_constants(), 9 * network.lipschitz_constants(), rtol=1e-5, atol=0)
    logits = (each.bounded_logits(digits[0][:50], PRECISE).logits for each in (network, scaled))
    torch.testing.assert_close(9 * next(logits), next(logits), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("m", [0.05, 0.5, 1.0])
def test_mondeq_is_never_worse_than_its_published_bound(m):
    torch.manual_seed(1)
    network = MonDEQ(units=20, m=m).double()
    rows = network.decoder.weight[:, None] - network.decoder.weight
    published = rows.norm(dim=2) * torch.linalg.matrix_norm(network.input_matrix(), 2) / m
    assert (network.lipschitz_constants() <= published * (1 + 1e-6)).all()


def test_training_constants_are_close_and_have_the_gradient_of_the_best(build):
    network = build(units=12, num_classes=3, image_size=3)
    exact, trained = network.lipschitz_constants(), network.training_constants()
    off = ~torch.eye(3, dtype=torch.bool)
    assert (trained.diagonal() == 0).all()
    assert (trained[off] >= exact[off] * (1 - 1e-6)).all()
    assert (trained[off] <= exact[off] * 1.3).all()

    trained.square().sum().backward()
    for parameter in (network.encoder.weight, network.decoder.weight):
        gradient = parameter.grad[0, 0].item()
        values = []
        for step in (-1e-4, 1e-4):
            parameter.data[0, 0] += step
            values.append(network.training_constants().square().sum().item())
            parameter.data[0, 0] -= step
        # The scale comes from a grid, so its derivative vanishes but for the grid's coarseness.
        assert (values[1] - values[0]) / 2e-4 == pytest.approx(gradient, rel=0.05, abs=1e-3 * values[0])
