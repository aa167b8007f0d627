r"""Lipschitz constants of logit differences from one generalized eigenvalue problem, in float64 with rounding bounds.

Let z = σ(W z + U x + b) with slopes of σ in [0, 1], a diagonal Λ > 0, M = 2Λ − ΛW − WᵀΛ > 0 and P = ΛUUᵀΛ. Two inputs
with differences Δx, Δz satisfy ΔzᵀΛ(WΔz + UΔx − Δz) >= 0, that is ½ ΔzᵀMΔz <= ΔzᵀΛUΔx. For every s with sM − P > 0 and
every readout w

.. math:: |w^T \Delta z| \le s \sqrt{w^T (s M - P)^{-1} w} \, \|\Delta x\|,

which is the linear matrix inequality of Revay, Wang and Manchester (2020), theorem 2, minimized over the scale of Λ:
γ = s c and c = (wᵀ(sM − P)⁻¹w)^½ give M >= (wwᵀ/c + cP)/γ by the Schur complement. The smallest over s is the constant.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

UNIT = 2.0**-53
"""Largest relative error of one rounding in float64."""

BOUND = 1 + 1e-10
"""Factor for bounds that are sums of nonnegative numbers, computed with rounding: far more than any of ours needs."""

_SCALES = 200  # candidates for s in each of the two searches


def rounding(terms: int) -> float:
    """Return γ_k = k u / (1 − k u): bounds the relative error of a sum of ``terms`` products (Higham 2002)."""
    return terms * UNIT / (1 - terms * UNIT)


def shifted(symmetric: Tensor, amount: Tensor | float) -> Tensor:
    """Return A + ``amount`` · I: above (or below) all matrices that differ from A by that much in norm."""
    return symmetric + amount * torch.eye(len(symmetric), dtype=symmetric.dtype, device=symmetric.device)


def smallest_eigenvalue(symmetric: Tensor) -> Tensor:
    """Return lower bounds on the smallest eigenvalues of Hermitian matrices, shape (..., n, n) to (...)."""
    values = torch.linalg.eigvalsh(symmetric)
    norm = torch.linalg.matrix_norm(symmetric)
    bound: Tensor = values[..., 0] - 20 * symmetric.shape[-1] * UNIT * norm
    return bound


def best_scales(curve: Callable[[Tensor], Tensor], lowest: Tensor) -> Tensor:
    """Return for each pair the s > ``lowest`` with the smallest value of ``curve``, which maps (S,) to (S, pairs).

    Any s gives a bound, so the search need not be exact: a coarse grid of s / lowest − 1, then a fine one around its
    best point.
    """
    offsets = torch.logspace(-6, 6, _SCALES, dtype=torch.float64)
    coarse = curve(lowest * (1 + offsets)).argmin(dim=0)
    found = []
    for pair, place in enumerate(coarse.tolist()):
        low, high = offsets[max(0, place - 1)].log10(), offsets[min(_SCALES - 1, place + 1)].log10()
        fine = lowest * (1 + torch.logspace(float(low), float(high), 25, dtype=torch.float64))
        found.append(fine[curve(fine)[:, pair].argmin()])
    return torch.stack(found)


def pair_constants(monotone: Tensor, pushed: Tensor, readout: Tensor) -> Tensor:
    """Return the Lipschitz constants of all differences of two logits, see the module.

    Args:
        monotone: M, or a matrix below it, shape (n, n), float64, symmetric.
        pushed: P, or a matrix above it, shape (n, n), float64, symmetric.
        readout: W_o, shape (classes, n), float64.

    Returns:
        Shape (classes, classes), with zeros on the diagonal; infinite where M is not positive definite beyond rounding.
    """
    classes = len(readout)
    pairs = torch.combinations(torch.arange(classes), 2)
    result = torch.full((classes, classes), torch.inf, dtype=torch.float64).fill_diagonal_(0.0)
    if not smallest_eigenvalue(monotone) > 0:
        return result
    rows = readout[pairs[:, 0]] - readout[pairs[:, 1]]
    lowest, forms = _forms(monotone, pushed, rows)

    def curve(scales: Tensor) -> Tensor:
        values: Tensor = scales[:, None] * forms(scales).sqrt()
        return values

    for (i, j), row, scale in zip(pairs.tolist(), rows, best_scales(curve, lowest), strict=True):
        result[i, j] = result[j, i] = _verified(monotone, pushed, row, scale)
    return result


def training_constants(monotone: Tensor, pushed: Tensor, readout: Tensor) -> Tensor:
    """Return what :func:`pair_constants` returns with a graph, in its precision and without its rounding bounds.

    All pairs share the scale that minimizes the sum of their squares, so these are a little larger. At that scale the
    derivative in s vanishes, so it is taken for a constant.
    """
    with torch.no_grad():
        centered = readout - readout.mean(dim=0)
        lowest, forms = _forms(monotone, pushed, centered)
        scales = lowest * (1 + torch.logspace(-3, 3, _SCALES, dtype=lowest.dtype, device=lowest.device))
        scale = scales[(scales.square() * forms(scales).sum(dim=1)).argmin()]
    products = readout @ torch.linalg.solve(scale * monotone - pushed, readout.mT)
    squares = products.diagonal()[:, None] + products.diagonal() - products - products.mT
    identity = torch.eye(len(readout), dtype=squares.dtype, device=squares.device)
    constants: Tensor = scale * ((squares + identity).sqrt() - identity)  # the root has no derivative at 0
    return constants


def _forms(monotone: Tensor, pushed: Tensor, rows: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the infimum of all s with sM − P > 0, and the function of such s, shape (S,), to wᵀ(sM − P)⁻¹w, (S, rows).

    One eigenvalue problem gives all of them: P q = d M q with qᵀMq = 1.
    """
    factor = torch.linalg.cholesky(monotone)
    half = torch.linalg.solve_triangular(factor, pushed, upper=False)
    eigenvalues, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(factor, half.mT, upper=False))
    parts = (vectors.mT @ torch.linalg.solve_triangular(factor, rows.mT, upper=False)).square()  # (n, rows)
    lowest = eigenvalues[-1].clamp_min(torch.finfo(eigenvalues.dtype).tiny)
    return lowest, lambda scales: (1 / (scales[:, None] - eigenvalues)) @ parts


def _verified(monotone: Tensor, pushed: Tensor, row: Tensor, scale: Tensor) -> Tensor:
    """Return s (wᵀ X⁻¹ w)^½ rounded up, X = sM − P; infinite unless X is positive definite beyond rounding.

    The matrix that stands for X below is a little smaller, so its inverse is larger.
    With w = X t + r, whatever t is: wᵀX⁻¹w = tᵀw + tᵀr + rᵀX⁻¹r <= tᵀw + ‖t‖ ‖r‖ + ‖r‖² / λ_min(X).
    """
    sizes = scale * torch.linalg.matrix_norm(monotone) + torch.linalg.matrix_norm(pushed)
    matrix = shifted(scale * monotone - pushed, -5 * UNIT * sizes)
    smallest = smallest_eigenvalue(matrix)
    if not smallest > 0:
        return torch.full_like(scale, torch.inf)
    solved = torch.cholesky_solve(row[:, None], torch.linalg.cholesky(matrix))[:, 0]
    size = 20 * len(row) * UNIT * (torch.linalg.matrix_norm(matrix) * solved.norm() + row.norm())
    remainder = (row - matrix @ solved).norm() + size
    form = solved @ row + rounding(2 * len(row)) * (solved.abs() @ row.abs())
    form = form + solved.norm() * remainder + remainder.square() / smallest
    constant: Tensor = scale * form.sqrt() * BOUND
    return constant
