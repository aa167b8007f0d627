"""The Jacobian J of F at a point, through vector-Jacobian products only."""

from __future__ import annotations

import torch
from torch import Tensor

from deqcert.errors import require_count


def hutchinson_penalty(state: Tensor, fz: Tensor, vectors: int = 2) -> Tensor:
    """Estimate ‖J‖²_F / numel without bias (Bai, Koltun, Kolter, ICML 2021, section 4).

    Args:
        state: Point of evaluation with ``requires_grad``, shape (B, ...).
        fz: F(state) with its graph, same shape.
        vectors: Gaussian vectors to average over, >= 1.

    Returns:
        Scalar, differentiable with respect to the parameters of F.

    Raises:
        SettingError: If ``vectors`` < 1.
    """
    require_count("vectors", vectors, minimum=1)
    total = state.new_zeros(())
    for _ in range(vectors):
        (product,) = torch.autograd.grad(fz, state, torch.randn_like(fz), create_graph=True)
        total = total + product.square().sum()
    return total / (vectors * fz.numel())


def spectral_radius(state: Tensor, fz: Tensor, iterations: int = 50) -> Tensor:
    """Estimate the spectral radius of J by power iteration on Jᵀ, row by row.

    Args:
        state: Point of evaluation with ``requires_grad``, shape (B, ...).
        fz: F(state) with its graph, same shape; the graph is kept.
        iterations: Products with Jᵀ, >= 1.

    Returns:
        |λ_max| as the growth of the norm in the last product, shape (B,). Where the dominant eigenvalues are a
        complex pair, the growth oscillates around it: read it as a trend, not to three digits.

    Raises:
        SettingError: If ``iterations`` < 1.
    """
    require_count("iterations", iterations, minimum=1)
    vector = torch.randn_like(fz)
    growth = vector.new_zeros(len(vector))
    for _ in range(iterations):
        norm = torch.linalg.vector_norm(vector.flatten(1), dim=1).clamp_min(torch.finfo(vector.dtype).tiny)
        vector = vector / norm.view(-1, *[1] * (vector.dim() - 1))
        (vector,) = torch.autograd.grad(fz, state, vector, retain_graph=True)
        growth = torch.linalg.vector_norm(vector.flatten(1), dim=1)
    return growth
