from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deqcert.errors import SettingError
from deqcert.implicit import hutchinson_penalty, spectral_radius


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def linear_map(batch: int = 3, size: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix with gradient, a state and its image under the matrix."""
    matrix = torch.randn(size, size, dtype=torch.float64, requires_grad=True)
    state = torch.randn(batch, size, dtype=torch.float64, requires_grad=True)
    return matrix, state, state @ matrix.T


@pytest.mark.parametrize("vectors", [1, 2, 7])
def test_penalty_is_unbiased(vectors):
    matrix, state, image = linear_map()
    repetitions = 3000 // vectors
    draws = torch.stack([hutchinson_penalty(state, image, vectors).detach() for _ in range(repetitions)])
    # ‖J‖²_F / numel = 3‖A‖²_F / (3·5) and the variance of vᵀJJᵀv is 2‖JJᵀ‖²_F, over every vector.
    exact = matrix.detach().square().sum() / 5
    spread = (2 * 3 * (matrix @ matrix.T).detach().square().sum()).sqrt() / 15
    assert (draws.mean() - exact).abs() < 4 * spread / (repetitions * vectors) ** 0.5
    assert 0.85 < draws.std() / (spread / vectors**0.5) < 1.15


def test_penalty_of_a_nonlinear_map():
    state = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda z: torch.sin(2 * z).cumsum(1), state.detach())
    exact = jacobian.square().sum() / state.numel()
    found = hutchinson_penalty(state, torch.sin(2 * state).cumsum(1), vectors=4000)
    assert found.item() == pytest.approx(exact.item(), rel=0.08)


def test_penalty_is_differentiable():
    matrix, state, image = linear_map()
    penalty = hutchinson_penalty(state, image, vectors=4000)
    assert penalty.shape == ()
    (gradient,) = torch.autograd.grad(penalty, matrix)
    exact = 2 * matrix.detach() / 5
    assert ((gradient - exact).norm() / exact.norm()).item() < 0.08


def test_penalty_leaves_the_graph_for_the_loss():
    matrix, state, image = linear_map()
    penalty = hutchinson_penalty(state, image)
    (image.sum() + penalty).backward()
    assert matrix.grad is not None


@pytest.mark.parametrize("vectors", [0, -2])
def test_penalty_needs_a_vector(vectors):
    _, state, image = linear_map()
    with pytest.raises(SettingError, match=r"^vectors = "):
        hutchinson_penalty(state, image, vectors)


def test_spectral_radius_of_symmetric_maps_row_by_row():
    matrices = torch.randn(4, 6, 6, dtype=torch.float64)
    matrices = (matrices + matrices.mT) * torch.tensor([0.01, 0.3, 1.0, 20.0]).view(-1, 1, 1)
    state = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    estimate = spectral_radius(state, torch.einsum("bij,bj->bi", matrices, state), iterations=2000)
    exact = np.abs(np.linalg.eigvals(matrices.numpy())).max(axis=1)
    np.testing.assert_allclose(estimate.numpy(), exact, rtol=1e-6)


def test_spectral_radius_is_not_the_norm():
    # λ = 0.9 and 0.2 but ‖J‖ ≈ 5.
    matrix = torch.tensor([[0.9, 5.0], [0.0, 0.2]], dtype=torch.float64)
    state = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    estimate = spectral_radius(state, state @ matrix.T, iterations=80)
    torch.testing.assert_close(estimate, torch.full((3,), 0.9, dtype=torch.float64), rtol=0, atol=1e-9)


def test_spectral_radius_of_shaped_states_and_of_nothing():
    state = torch.ones(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    factor = torch.tensor([0.5, 0.0], dtype=torch.float64).view(2, 1, 1, 1)
    estimate = spectral_radius(state, state * factor)
    assert estimate.tolist() == pytest.approx([0.5, 0.0])


def test_spectral_radius_keeps_the_graph():
    matrix, state, image = linear_map()
    estimate = spectral_radius(state, image, iterations=3)
    assert not estimate.requires_grad
    image.sum().backward()
    assert matrix.grad is not None


@pytest.mark.parametrize("iterations", [0, -1])
def test_spectral_radius_needs_an_iteration(iterations):
    _, state, image = linear_map()
    with pytest.raises(SettingError, match=r"^iterations = "):
        spectral_radius(state, image, iterations)
