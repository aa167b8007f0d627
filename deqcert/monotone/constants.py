r"""Lipschitz constants of logit differences from one generalized eigenvalue problem, in float64 with rounding bounds.

Let z = σ(W z + U x + b) with slopes of σ in [0, 1], a diagonal Λ > 0, M = 2Λ − ΛW − WᵀΛ > 0 and P = ΛUUᵀΛ. Two inputs
with differences Δx, Δz satisfy ΔzᵀΛ(WΔz + UΔx − Δz) >= 0, that is ½ ΔzᵀMΔz <= ΔzᵀΛUΔx. For every s with sM − P > 0 and
every readout w

.. math:: |w^T \Delta z| \le s \sqrt{w^T (s M - P)^{-1} w} \, \|\Delta x\|,

which is the linear matrix inequality of Revay, Wang and Manchester (2020), theorem 2, minimized over the scale of Λ:
γ = s c and c = (wᵀ(sM − P)⁻¹w)^½ give M >= (wwᵀ/c + cP)/γ by the Schur complement. The smallest over s is the constant.

Convolutions make M and P block-diagonal after a Fourier transform, so all matrices here are lists of Hermitian blocks.
With M + ηW_oᵀW_o in the place of M, and G = W_o(sM − P)⁻¹W_oᵀ, the matrix G becomes G(I + sηG)⁻¹.
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
    """
    monotone, pushed, readout = _blocks(monotone, pushed, readout)
    classes = readout.shape[1]
    pairs = torch.combinations(torch.arange(classes), 2)
    result = torch.full((classes, classes), torch.inf, dtype=torch.float64).fill_diagonal_(0.0)
    if not smallest_eigenvalue(monotone).min() > 0:
        return result
    differences = torch.eye(classes, dtype=torch.float64)[pairs[:, 0]] - torch.eye(classes)[pairs[:, 1]]
    lowest, grams = _grams(monotone, pushed, readout, feedback)

    def curve(scales: Tensor) -> Tensor:
        forms = torch.einsum("pi,sij,pj->sp", differences, grams(scales), differences)
        return scales[:, None] * forms.clamp_min(0).sqrt()

    for (i, j), difference, scale in zip(pairs.tolist(), differences, best_scales(curve, lowest), strict=True):
        sizes = scale * torch.linalg.matrix_norm(monotone).max() + torch.linalg.matrix_norm(pushed).max()
        matrix = shifted(scale * monotone - pushed, -5 * UNIT * sizes)
        form = _verified(matrix, readout, scale * feedback, difference, readout_error)
        result[i, j] = result[j, i] = scale * form.sqrt() * BOUND
    return result


def training_constants(monotone: Tensor, pushed: Tensor, readout: Tensor, feedback: float = 0.0) -> Tensor:
    """Return what :func:`pair_constants` returns with a graph, in its precision and without its rounding bounds.

    All pairs share the scale that minimizes the sum of their squares, so these are a little larger. At that scale the
    derivative in s vanishes, so it is taken for a constant.
    """
    monotone, pushed, readout = _blocks(monotone, pushed, readout)
    classes = readout.shape[1]
    with torch.no_grad():
        lowest, grams = _grams(monotone, pushed, readout, feedback)
        scales = lowest * (1 + torch.logspace(-3, 3, _SCALES, dtype=lowest.dtype, device=lowest.device))
        products = grams(scales)
        total = classes * products.diagonal(dim1=1, dim2=2).sum(dim=1) - products.sum(dim=(1, 2))
        scale = scales[(scales.square() * total).argmin()]
    gram = (readout @ torch.linalg.solve(scale * monotone - pushed, readout.mH)).real.sum(dim=0)
    identity = torch.eye(classes, dtype=gram.dtype, device=gram.device)
    gram = torch.linalg.solve(identity + feedback * scale * gram, gram)
    squares = gram.diagonal()[:, None] + gram.diagonal() - gram - gram.mT
    constants: Tensor = scale * ((squares + identity).sqrt() - identity)  # the root has no derivative at 0
    return constants


def _blocks(*matrices: Tensor) -> tuple[Tensor, ...]:
    return tuple(matrix.view(-1, *matrix.shape[-2:]) for matrix in matrices)


def _grams(
    monotone: Tensor, pushed: Tensor, readout: Tensor, feedback: float
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the infimum of all s with sM − P > 0, and the function of such s, shape (S,), to (S, classes, classes).

    That is W_o(sM − P + sηW_oᵀW_o)⁻¹W_oᵀ. One eigenvalue problem gives it for all s: P q = d M q with qᴴMq = 1.
    """
    classes = readout.shape[1]
    factor = torch.linalg.cholesky(monotone)
    half = torch.linalg.solve_triangular(factor, pushed, upper=False)
    eigenvalues, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(factor, half.mH, upper=False))
    parts = (vectors.mH @ torch.linalg.solve_triangular(factor, readout.mH, upper=False)).flatten(0, 1)
    products = (parts.conj()[:, :, None] * parts[:, None]).real.flatten(1)  # (blocks n, classes classes)
    lowest = eigenvalues.max().clamp_min(torch.finfo(eigenvalues.dtype).tiny)

    def grams(scales: Tensor) -> Tensor:
        gram: Tensor = ((1 / (scales[:, None] - eigenvalues.flatten())) @ products).view(-1, classes, classes)
        if feedback:
            gram = torch.linalg.solve(shifted(feedback * scales[:, None, None] * gram, 1.0), gram)
        return gram

    return lowest, grams


def _verified(
    matrix: Tensor, readout: Tensor, feedback: Tensor, difference: Tensor, readout_error: float | Tensor
) -> Tensor:
    """Return vᵀG(I + ηG)⁻¹v rounded up, G = W_oX⁻¹W_oᵀ; infinite unless X is positive definite beyond rounding.

    The matrix that stands for X is a little smaller, so its inverse is larger. With W_oᵀ = X T + R, whatever T is:
    G = W_oT + TᵀR + RᵀX⁻¹R <= W_oT + (‖T‖ ‖R‖ + ‖R‖² / λ_min(X)) I. G(I + ηG)⁻¹ grows with G, and not faster than G.
    """
    smallest = smallest_eigenvalue(matrix).min()
    if not smallest > 0:
        return torch.full_like(smallest, torch.inf)
    solved = torch.cholesky_solve(readout.mH, torch.linalg.cholesky(matrix))
    norm, size = solved.norm(), readout.norm() + readout_error
    formed = 20 * matrix.shape[-1] * UNIT * (torch.linalg.matrix_norm(matrix).max() * norm + size)
    remainder = (readout.mH - matrix @ solved).norm() + formed + readout_error
    gram = (readout @ solved).real.sum(dim=0)
    slack = norm * (remainder + readout_error + rounding(4 * readout[:, 0].numel()) * size)
    slack = (slack + remainder.square() / smallest) * BOUND
    values, vectors = torch.linalg.eigh(shifted((gram + gram.mT) / 2, slack))
    values = values.clamp_min(0)
    decomposed = 100 * len(gram) * UNIT * torch.linalg.vector_norm(values) * difference.square().sum()
    form: Tensor = (vectors.mT @ difference).square() @ (values / (1 + feedback * values)) + decomposed
    return form
