r"""Lipschitz constants of logit differences from one generalized eigenvalue problem, in float64 with rounding bounds.

Let z = σ(W z + U x + b) with slopes of σ in [0, 1], a diagonal Λ > 0, M = 2Λ − ΛW − WᵀΛ > 0 and P = ΛUUᵀΛ. Two inputs
with differences Δx, Δz satisfy ΔzᵀΛ(WΔz + UΔx − Δz) >= 0, that is ½ ΔzᵀMΔz <= ΔzᵀΛUΔx. For every s with sM − P > 0 and
every readout w

.. math:: |w^T \Delta z| \le s \sqrt{w^T (s M - P)^{-1} w} \, \|\Delta x\|,

which is the linear matrix inequality of Revay, Wang and Manchester (2020), theorem 2, minimized over the scale of Λ:
γ = s c and c = (wᵀ(sM − P)⁻¹w)^½ give M >= (wwᵀ/c + cP)/γ by the Schur complement. The smallest over s is the constant.

A Fourier transform makes convolutions block-diagonal, so all matrices here may be lists of Hermitian blocks. Where
M + ηW_oᵀW_o stands in the place of M, and w = W_oᵀv, the form wᵀ(sM − P + sηW_oᵀW_o)⁻¹w is the smallest value of
wᵀ(sM − P)⁻¹w + ‖v − a‖² / sη over w = W_oᵀa: every a gives a bound.
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
    return symmetric + amount * torch.eye(symmetric.shape[-1], dtype=symmetric.dtype, device=symmetric.device)


def smallest_eigenvalue(symmetric: Tensor) -> Tensor:
    """Return lower bounds on the smallest eigenvalues of Hermitian matrices, shape (..., n, n) to (...).

    It is minus infinity for a matrix that is not finite.
    """
    norm = torch.linalg.matrix_norm(symmetric)
    values = torch.linalg.eigvalsh(torch.where(norm.isfinite()[..., None, None], symmetric, 0.0))
    bound: Tensor = values[..., 0] - 20 * symmetric.shape[-1] * UNIT * norm
    return torch.where(norm.isfinite(), bound, -torch.inf)


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


def pair_constants(
    monotone: Tensor, pushed: Tensor, readout: Tensor, feedback: float = 0.0, readout_error: float | Tensor = 0.0
) -> Tensor:
    """Return the Lipschitz constants of all differences of two logits, see the module.

    Args:
        monotone: M, or a matrix below it, shape (n, n) or (blocks, n, n), float64 or complex128, Hermitian.
        pushed: P, or a matrix above it, of the same shape, Hermitian.
        readout: W_o, shape (classes, n) or (blocks, classes, n); the product of two rows over all blocks is real.
        feedback: η >= 0, if M + ηW_oᵀW_o stands in the place of M.
        readout_error: Bound on the error of ``readout`` in the Frobenius norm.

    Returns:
        Shape (classes, classes), with zeros on the diagonal; infinite where M is not positive definite beyond rounding.
        Computed on the CPU, wherever the matrices are.
    """
    monotone, pushed, readout = monotone.cpu(), pushed.cpu(), readout.cpu()
    readout_error = torch.as_tensor(readout_error, dtype=torch.float64).cpu()
    classes = readout.shape[-2]
    pairs = torch.combinations(torch.arange(classes), 2)
    result = torch.full((classes, classes), torch.inf, dtype=torch.float64).fill_diagonal_(0.0)
    if not smallest_eigenvalue(monotone).min() > 0:
        return result
    identity = torch.eye(classes, dtype=torch.float64)
    differences = identity[pairs[:, 0]] - identity[pairs[:, 1]]
    lowest, grams = _grams(monotone, pushed, readout)

    def curve(scales: Tensor) -> Tensor:
        forms = torch.einsum("pi,sij,pj->sp", differences, _fed_back(grams(scales), feedback * scales), differences)
        return scales[:, None] * forms.clamp_min(0).sqrt()

    for (i, j), difference, scale in zip(pairs.tolist(), differences, best_scales(curve, lowest), strict=True):
        part, rest = difference, torch.zeros_like(scale)
        if feedback:
            part = torch.linalg.solve(shifted(feedback * scale * grams(scale[None])[0], 1.0), difference)
            rest = scale * (difference - part).square().sum() / feedback
        row = torch.tensordot(part.to(readout), readout.movedim(-2, 0), 1)
        # The difference of two rows is rounded once; another combination of rows adds up.
        combined = rounding(classes + 4) * torch.linalg.vector_norm(readout) if feedback else 0.0
        error = part.norm() * (readout_error + combined) + 2 * UNIT * torch.linalg.vector_norm(row)
        constant = _verified(monotone, pushed, row, scale, error)
        result[i, j] = result[j, i] = (constant.square() + rest).sqrt() * BOUND
    return result


def training_constants(monotone: Tensor, pushed: Tensor, readout: Tensor, feedback: float = 0.0) -> Tensor:
    """Return what :func:`pair_constants` returns with a graph, in its precision and without its rounding bounds.

    All pairs share the scale that minimizes the sum of their squares, so these are a little larger. At that scale the
    derivative in s vanishes, so it is taken for a constant.
    """
    with torch.no_grad():
        lowest, grams = _grams(monotone, pushed, readout)
        scales = lowest * (1 + torch.logspace(-3, 3, _SCALES, dtype=lowest.dtype, device=lowest.device))
        squares = _squares(_fed_back(grams(scales), feedback * scales)).sum(dim=(1, 2))
        scale = scales[(scales.square() * squares).argmin()]
    products = (readout @ torch.linalg.solve(scale * monotone - pushed, readout.mH)).real
    squares = _squares(_fed_back(products.view(-1, *products.shape[-2:]).sum(dim=0), feedback * scale))
    identity = torch.eye(len(squares), dtype=squares.dtype, device=squares.device)
    constants: Tensor = scale * ((squares + identity).sqrt() - identity)  # the root has no derivative at 0
    return constants


def _grams(monotone: Tensor, pushed: Tensor, readout: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the infimum of all s with sM − P > 0, and the function of such s, shape (S,), to W_o(sM − P)⁻¹W_oᵀ.

    One eigenvalue problem gives all of them: P q = d M q with qᴴMq = 1.
    """
    factor = torch.linalg.cholesky(monotone)
    half = torch.linalg.solve_triangular(factor, pushed, upper=False)
    eigenvalues, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(factor, half.mH, upper=False))
    parts = vectors.mH @ torch.linalg.solve_triangular(factor, readout.mH, upper=False)
    products = (parts.conj()[..., :, None] * parts[..., None, :]).real.flatten(0, -3)  # (blocks n, classes, classes)
    lowest = eigenvalues.max().clamp_min(torch.finfo(eigenvalues.dtype).tiny)
    return lowest, lambda scales: torch.tensordot(1 / (scales[:, None] - eigenvalues.flatten()), products, 1)


def _fed_back(grams: Tensor, feedback: Tensor) -> Tensor:
    """Return G(I + ηG)⁻¹, shapes (..., classes, classes) and (...)."""
    fed_back: Tensor = torch.linalg.solve(shifted(feedback[..., None, None] * grams, 1.0), grams)
    return fed_back


def _squares(grams: Tensor) -> Tensor:
    """Return (e_i − e_j)ᵀG(e_i − e_j) for all i and j, shape (..., classes, classes)."""
    diagonal = grams.diagonal(dim1=-2, dim2=-1)
    return diagonal[..., :, None] + diagonal[..., None, :] - grams - grams.mT


def _verified(monotone: Tensor, pushed: Tensor, row: Tensor, scale: Tensor, row_error: float | Tensor) -> Tensor:
    """Return s (wᵀ X⁻¹ w)^½ rounded up, X = sM − P; infinite unless X is positive definite beyond rounding.

    The matrix that stands for X below is a little smaller, so its inverse is larger.
    With w = X t + r, whatever t is: wᵀX⁻¹w = tᵀw + tᵀr + rᵀX⁻¹r <= tᵀw + ‖t‖ ‖r‖ + ‖r‖² / λ_min(X).
    """
    sizes = scale * torch.linalg.matrix_norm(monotone) + torch.linalg.matrix_norm(pushed)
    matrix = shifted(scale * monotone - pushed, -5 * UNIT * sizes.max())
    smallest = smallest_eigenvalue(matrix).min()
    if not smallest > 0:
        return torch.full_like(scale, torch.inf)
    column = row.conj()[..., None]
    solved = torch.cholesky_solve(column, torch.linalg.cholesky(matrix))
    norm, length = torch.linalg.vector_norm(solved), torch.linalg.vector_norm(row)
    size = 20 * row.shape[-1] * UNIT * (torch.linalg.matrix_norm(matrix).max() * norm + length)
    remainder = torch.linalg.vector_norm(column - matrix @ solved) + size + row_error
    product = solved[..., 0] * row
    form = product.sum().real + rounding(4 * row.numel()) * product.abs().sum() + norm * row_error
    form = form + norm * remainder + remainder.square() / smallest
    constant: Tensor = scale * form.sqrt() * BOUND
    return constant
