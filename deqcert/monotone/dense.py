"""Monotone networks with dense weights."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deqcert.errors import require, require_count
from deqcert.monotone.constants import (
    UNIT,
    pair_constants,
    rounding,
    shifted,
    smallest_eigenvalue,
    training_constants,
)
from deqcert.monotone.network import MonotoneDEQ, OperatorBounds
from deqcert.monotone.operators import DenseOperator
from deqcert.solvers import Anderson, Solver
from deqcert.solvers.splitting import Splitting


class DenseMonotoneDEQ(MonotoneDEQ):
    """A monotone network of ``units`` hidden units; subclasses say how W follows from their parameters."""

    def _build(self, settings: Mapping[str, Any], units: int, splitting: Splitting, alpha: float) -> None:
        """Take the ``locals()`` of the constructor, and make the maps into and out of the fixed point."""
        require_count("units", units, minimum=1)
        self._state(settings, "solver")
        self._split(splitting, alpha)
        self.encoder = nn.Linear(self.image_channels * self.image_size**2, units)
        self.decoder = nn.Linear(units, self.num_classes)

    @abstractmethod
    def weight(self) -> Tensor:
        """Return W, shape (n, n), with a graph to its parameters."""

    def metric(self) -> Tensor:
        """Return the diagonal of Λ, shape (n,)."""
        return torch.ones_like(self.encoder.bias)

    def operator(self) -> DenseOperator:
        """Return W, and the inverse that Peaceman–Rachford splitting needs."""
        return DenseOperator.of(self.weight(), self.alpha if self.splitting == "peaceman_rachford" else None)

    def bias(self, x: Tensor) -> Tensor:
        """Return U x + b of images in [0, 1], shape (B, n)."""
        bias: Tensor = self.encoder(((x - self.mean) / self.std).flatten(1))
        return bias

    def readout(self, z: Tensor) -> Tensor:
        """Return the logits W_o z + b_o, shape (B, n) to (B, classes)."""
        logits: Tensor = self.decoder(z)
        return logits

    def readout_matrix(self) -> Tensor:
        """Return W_o, shape (classes, n)."""
        return self.decoder.weight

    def input_matrix(self) -> Tensor:
        """Return U as it acts on pixels in [0, 1], shape (n, pixels)."""
        pixels = self.image_size**2
        return self.encoder.weight / self.std.flatten().repeat_interleave(pixels)

    def monotone_matrix(self) -> Tensor:
        """Return M = 2Λ − ΛW − WᵀΛ but for rounding, which makes it smaller, shape (n, n)."""
        metric = self.metric()
        product = metric[:, None] * self.weight()
        sizes = 2 * metric.norm() + 2 * torch.linalg.matrix_norm(product)
        return shifted(2 * torch.diag(metric) - product - product.mT, -5 * UNIT * sizes)

    @torch.no_grad()
    def step_size_bound(self) -> float:
        """Return 2m / L² of Λ^½ (I − W) Λ^-½: m is the monotonicity of that matrix, L its norm."""
        root, weight = self.metric().double().sqrt(), self.weight().double()
        matrix = root[:, None] * (torch.eye(len(root), dtype=root.dtype, device=root.device) - weight) / root
        m = torch.linalg.eigvalsh((matrix + matrix.mT) / 2)[0]
        return float(2 * m / torch.linalg.matrix_norm(matrix, 2).square())

    @torch.no_grad()
    def lipschitz_constants(self) -> Tensor:
        """Return the constants of :func:`~deqcert.monotone.constants.pair_constants`."""
        return pair_constants(*self._inequality())

    def training_constants(self) -> Tensor:
        """Return the constants of :func:`~deqcert.monotone.constants.training_constants`, in float64."""
        monotone, pushed, readout = (matrix.double() for matrix in self._inequality())
        return training_constants(monotone, pushed, readout)

    def _inequality(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return M, P and W_o of :mod:`~deqcert.monotone.constants`, where rounding makes P larger."""
        pushed = self.metric()[:, None] * self.input_matrix()
        product = pushed @ pushed.mT
        product = shifted((product + product.mT) / 2, rounding(pushed.shape[1] + 8) * pushed.square().sum())
        return self.monotone_matrix(), product, self.decoder.weight

    @property
    def terms(self) -> int:
        """Roundings that one entry of W z + U x + b goes through at most."""
        return self.encoder.out_features + self.encoder.in_features + 8

    def sizes(self, z: Tensor, x: Tensor) -> Tensor:
        """Return |W| |z| + |U| |x| + |b|, shape (B, n), to which the rounding of W z + U x + b is relative."""
        pixels = ((x.abs() + self.mean.abs()) / self.std).flatten(1)
        pushed = F.linear(pixels, self.encoder.weight.abs(), self.encoder.bias.abs())
        return z.abs() @ self.weight().abs().mT + pushed

    def operator_bounds(self) -> OperatorBounds:
        """Return what is proved of W."""
        norm = torch.linalg.matrix_norm(self.metric()[:, None] * self.weight())
        return OperatorBounds(smallest_eigenvalue(self.monotone_matrix()) / 2, norm)


class MonDEQ(DenseMonotoneDEQ):
    """Monotone operator equilibrium network: W = (1 − m) I − AᵀA + B − Bᵀ (Winston, Kolter, NeurIPS 2020).

    A and B are scaled to learned Frobenius norms, as the authors do for convolutions. Every W with I − W >= m I has
    this form; the fixed point exists, is unique, and moves by at most ‖U‖ / m per unit of the image.

    Args:
        units: Hidden units n, >= 1.
        m: Strong monotonicity of I − W, in (0, 1].
        num_classes: Classes, >= 2.
        image_channels: Channels of the images.
        image_size: Height and width of the images, pixels.
        mean: Per-channel mean of the images, in [0, 1].
        std: Per-channel standard deviation of the images.
        splitting: Splitting that the cell is a step of: forward_backward or peaceman_rachford.
        alpha: Its step size, > 0.
        solver: Solver of ``forward``.

    Raises:
        SettingError: If a setting is out of range.
    """

    UNSEEN = (*DenseMonotoneDEQ.UNSEEN, "m")

    def __init__(
        self,
        units: int = 80,
        m: float = 1.0,
        num_classes: int = 10,
        image_channels: int = 1,
        image_size: int = 8,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        splitting: Splitting = "peaceman_rachford",
        alpha: float = 1.0,
        solver: Solver = Anderson(max_steps=100, tolerance=1e-4, ridge=0.0),
    ) -> None:
        super().__init__(solver)
        self._build(locals(), units, splitting, alpha)
        require(0 < m <= 1, "m", m, "must be in (0, 1]")
        self.m = m
        self.symmetric = nn.Linear(units, units, bias=False)
        self.skew = nn.Linear(units, units, bias=False)
        self.scales = nn.Parameter(torch.ones(2))

    def weight(self) -> Tensor:
        """Return W, shape (n, n)."""
        a, b = self.symmetric.weight, self.skew.weight
        identity = torch.eye(len(a), dtype=a.dtype, device=a.device)
        b = self.scales[1] * b / b.norm()
        weight: Tensor = (1 - self.m) * identity - self.scales[0].square() * (a.mT @ a) / a.square().sum() + b - b.mT
        return weight


class LBEN(DenseMonotoneDEQ):
    """Lipschitz bounded equilibrium network (Revay, Wang, Manchester, arXiv 2010.01732).

    W = I − Ψ [(W_oᵀW_o + Ψ⁻¹UUᵀΨ⁻¹) / 2γ + VᵀV + εI + S − Sᵀ] with Ψ = Λ⁻¹ = diag(exp ψ), so that the map from images
    to logits has Lipschitz constant γ at most, whatever the parameters are.

    Args:
        units: Hidden units n, >= 1.
        gamma: Lipschitz constant γ, in logits per pixel of [0, 1], > 0; ``inf`` leaves it free.
        epsilon: ε, > 0: how monotone Λ(I − W) is at least.
        num_classes: Classes, >= 2.
        image_channels: Channels of the images.
        image_size: Height and width of the images, pixels.
        mean: Per-channel mean of the images, in [0, 1].
        std: Per-channel standard deviation of the images.
        splitting: Splitting that the cell is a step of: forward_backward or peaceman_rachford.
        alpha: Its step size, > 0; near 0.1 Peaceman–Rachford splitting needs fewest steps, for small γ far fewer.
        solver: Solver of ``forward``.

    Raises:
        SettingError: If a setting is out of range.
    """

    UNSEEN = (*DenseMonotoneDEQ.UNSEEN, "gamma", "epsilon")

    def __init__(
        self,
        units: int = 80,
        gamma: float = 1.0,
        epsilon: float = 1.0,
        num_classes: int = 10,
        image_channels: int = 1,
        image_size: int = 8,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        splitting: Splitting = "peaceman_rachford",
        alpha: float = 0.1,
        solver: Solver = Anderson(max_steps=100, tolerance=1e-4, ridge=0.0),
    ) -> None:
        super().__init__(solver)
        self._build(locals(), units, splitting, alpha)
        require(gamma > 0, "gamma", gamma, "must be > 0; inf leaves the Lipschitz constant free")
        require(0 < epsilon < math.inf, "epsilon", epsilon, "must be > 0 and finite")
        self.gamma, self.epsilon = gamma, epsilon
        self.monotone = nn.Linear(units, units, bias=False)
        self.skew = nn.Linear(units, units, bias=False)
        self.psi = nn.Parameter(torch.ones(units))

    def metric(self) -> Tensor:
        """Return the diagonal of Λ, shape (n,)."""
        return (-self.psi).exp()

    def weight(self) -> Tensor:
        """Return W, shape (n, n)."""
        v, s, out = self.monotone.weight, self.skew.weight, self.decoder.weight
        pushed = self.metric()[:, None] * self.input_matrix()
        identity = torch.eye(len(v), dtype=v.dtype, device=v.device)
        bracket = (out.mT @ out + pushed @ pushed.mT) / (2 * self.gamma)
        bracket = bracket + v.mT @ v + self.epsilon * identity + s - s.mT
        return identity - self.psi.exp()[:, None] * bracket
