"""Linear operators W of a monotone equilibrium network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class DenseOperator:
    """A matrix W, shape (n, n), and the inverse of I + α (I − W) where Peaceman–Rachford splitting needs it."""

    weight: Tensor
    inverse: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor, alpha: float | None) -> DenseOperator:
        """Prepare W for splitting with step size ``alpha``; None for what needs no inverse."""
        if alpha is None:
            return cls(weight)
        identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        return cls(weight, torch.linalg.inv((1 + alpha) * identity - alpha * weight))

    def __call__(self, z: Tensor) -> Tensor:
        """Return W z, shape (B, n)."""
        return z @ self.weight.mT

    def resolvent(self, z: Tensor) -> Tensor:
        """Return (I + α (I − W))⁻¹ z, shape (B, n)."""
        assert self.inverse is not None, "made without alpha"
        return z @ self.inverse.mT


def spectrum(kernel: Tensor, size: int) -> Tensor:
    """Return a circular convolution on a grid of ``size`` x ``size`` as blocks, one for each frequency of rfft2.

    Args:
        kernel: Shape (out, in, k, k), as for :func:`torch.nn.functional.conv2d`, k odd.
        size: Height and width of the grid.

    Returns:
        Shape (size * (size // 2 + 1), out, in), complex.
    """
    width = kernel.shape[-1]
    padded = F.pad(kernel, (0, size - width, 0, size - width)).roll((-(width // 2),) * 2, dims=(2, 3))
    blocks: Tensor = torch.fft.rfft2(padded).conj().flatten(2).permute(2, 0, 1).resolve_conj()
    return blocks


def convolve(blocks: Tensor, z: Tensor) -> Tensor:
    """Apply the operator with these blocks of frequencies to ``z``, shapes (F, out, in) and (B, in, s, s)."""
    waves = torch.fft.rfft2(z)
    product = torch.bmm(waves.flatten(2).permute(2, 0, 1), blocks.mT).permute(1, 2, 0)
    convolved: Tensor = torch.fft.irfft2(product.reshape(-1, blocks.shape[1], *waves.shape[2:]), s=z.shape[2:])
    return convolved


class Feedback(NamedTuple):
    """The part η W_oᵀW_o / 2 of Λ(I − W), which is no convolution.

    Attributes:
        strength: η > 0.
        rows: W_o, shape (classes, channels, s, s).
        spread: Of the resolvent: R W_oᵀ, shape (classes, channels, s, s); None without it.
        small: (2 / αη I + W_o R W_oᵀ)⁻¹, shape (classes, classes); None likewise.
    """

    strength: float
    rows: Tensor
    spread: Tensor | None = None
    small: Tensor | None = None


@dataclass(frozen=True)
class ConvolutionOperator:
    """W with Λ(I − W) = K + η/2 W_oᵀW_o, where K is a circular convolution and Λ is constant over the grid.

    Attributes:
        kernel: Of K, shape (channels, channels, k, k), k odd.
        metric: Λ, shape (channels, 1, 1).
        feedback: The other term, of rank ``classes``.
        inverse: R = (Λ + αK)⁻¹ by frequencies, where Peaceman–Rachford splitting needs it.
    """

    kernel: Tensor
    metric: Tensor
    feedback: Feedback | None = None
    inverse: Tensor | None = None

    @classmethod
    def of(
        cls, kernel: Tensor, metric: Tensor, feedback: Feedback | None, size: int, alpha: float | None
    ) -> ConvolutionOperator:
        """Prepare W on a grid of ``size`` x ``size`` for splitting with step size ``alpha``; None needs no inverse."""
        if alpha is None:
            return cls(kernel, metric, feedback)
        blocks = spectrum(kernel, size)
        inverse = torch.linalg.inv(torch.diag_embed(metric.flatten()) + alpha * blocks)
        if feedback is not None:  # the matrix inversion lemma
            spread = convolve(inverse, feedback.rows)
            across = feedback.rows.flatten(1) @ spread.flatten(1).mT
            identity = torch.eye(len(across), dtype=across.dtype, device=across.device)
            small = torch.linalg.inv(across + 2 / (alpha * feedback.strength) * identity)
            feedback = feedback._replace(spread=spread, small=small)
        return cls(kernel, metric, feedback, inverse)

    def __call__(self, z: Tensor) -> Tensor:
        """Return W z within the border, shape (B, channels, s, s), for ``z`` that is zero on it."""
        product = F.conv2d(z, self.kernel, padding="same")
        if self.feedback is not None:
            logits = z.flatten(1) @ self.feedback.rows.flatten(1).mT
            product = product + self.feedback.strength / 2 * torch.tensordot(logits, self.feedback.rows, 1)
        return z - product / self.metric

    def resolvent(self, z: Tensor) -> Tensor:
        """Return (I + α (I − W))⁻¹ z, shape (B, channels, s, s)."""
        assert self.inverse is not None, "made without alpha"
        solved = convolve(self.inverse, self.metric * z)
        if self.feedback is not None:
            assert self.feedback.spread is not None
            assert self.feedback.small is not None
            logits = solved.flatten(1) @ self.feedback.rows.flatten(1).mT
            solved = solved - torch.tensordot(logits @ self.feedback.small.mT, self.feedback.spread, 1)
        return solved
