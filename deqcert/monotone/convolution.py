"""Monotone networks with one convolution, whose inverse is computed by a Fourier transform."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor, nn

from deqcert.errors import require, require_count
from deqcert.monotone.constants import pair_constants, rounding, shifted, smallest_eigenvalue, training_constants
from deqcert.monotone.network import MonotoneDEQ, OperatorBounds
from deqcert.monotone.operators import ConvolutionOperator, Feedback, spectrum
from deqcert.solvers import Anderson, Solver
from deqcert.solvers.splitting import Splitting


class ConvMonotoneDEQ(MonotoneDEQ):
    """A monotone network of feature maps; subclasses say how W follows from their parameters.

    States have shape (B, channels, s, s): the image with a border of half a kernel or more (to an s with fast Fourier
    transforms), on which σ is zero, so that no convolution sees that the grid is closed to a torus. For a proof the
    border changes nothing: an inequality for all states of the torus, and all images on it, holds for those that are
    zero there.
    """

    def _build(
        self,
        settings: Mapping[str, Any],
        channels: int,
        kernel_size: int,
        pool: int,
        splitting: Splitting,
        alpha: float,
    ) -> None:
        """Take the ``locals()`` of the constructor, and make the maps into and out of the fixed point."""
        require_count("channels", channels, minimum=1)
        require_count("kernel_size", kernel_size, minimum=1)
        require(kernel_size % 2 == 1, "kernel_size", kernel_size, "must be odd: an even kernel has no center")
        require_count("pool", pool, minimum=1)
        self._state(settings, "solver")
        allowed = f"must be <= image_size = {self.image_size}"
        require(kernel_size <= self.image_size, "kernel_size", kernel_size, allowed)
        self._split(splitting, alpha)
        require(self.image_size % pool == 0, "pool", pool, f"must divide image_size = {self.image_size}")
        self.border, self.pool = kernel_size // 2, pool
        self.size = next_fast_len(self.image_size + 2 * self.border, real=True)
        self.encoder = nn.Conv2d(self.image_channels, channels, kernel_size, padding=self.border)
        self.decoder = nn.Linear(channels * (self.image_size // pool) ** 2, self.num_classes)

    @abstractmethod
    def kernel(self) -> Tensor:
        """Return K of Λ(I − W) = K + η/2 W_oᵀW_o, shape (channels, channels, 2k − 1, 2k − 1), with a graph."""

    @property
    def feedback(self) -> float:
        """η."""
        return 0.0

    def metric(self) -> Tensor:
        """Return the diagonal of Λ, shape (channels, 1, 1)."""
        return torch.ones_like(self.encoder.weight[:, :1, :1, 0])

    def operator(self) -> ConvolutionOperator:
        """Return W, and the inverse that Peaceman–Rachford splitting needs."""
        feedback = Feedback(self.feedback, self._rows()) if self.feedback else None
        alpha = self.alpha if self.splitting == "peaceman_rachford" else None
        return ConvolutionOperator.of(self.kernel(), self.metric(), feedback, self.size, alpha)

    def activation(self, z: Tensor) -> Tensor:
        """Return relu of ``z`` within the border, and zeros on it."""
        return self._bordered(self._within(z).relu())

    def bias(self, x: Tensor) -> Tensor:
        """Return U x + b of images in [0, 1], shape (B, channels, s, s)."""
        return self._bordered(self.encoder((x - self.mean) / self.std))

    @property
    def terms(self) -> int:
        """Roundings that one entry of W z + U x + b, or of the logits, goes through at most."""
        width, channels = 2 * self.border + 1, self.encoder.out_channels
        return channels * ((2 * width) ** 2 + self.size**2) + self.image_channels * width**2 + self.num_classes + 20

    def sizes(self, z: Tensor, x: Tensor) -> Tensor:
        """Return |W| |z| + |U| |x| + |b|, shape (B, channels, s, s), see :class:`MonotoneDEQ`."""
        pixels, weight, bias = (x.abs() + self.mean.abs()) / self.std, self.encoder.weight, self.encoder.bias
        assert bias is not None
        feedback = Feedback(-self.feedback, self._rows().abs()) if self.feedback else None
        moved = ConvolutionOperator(-self.kernel().abs(), self.metric(), feedback)
        return moved(z.abs()) + self._bordered(F.conv2d(pixels, weight.abs(), bias.abs(), padding=self.border))

    def readout(self, z: Tensor) -> Tensor:
        """Return the logits: mean over squares of ``pool`` x ``pool`` and a linear map."""
        logits: Tensor = self.decoder(F.avg_pool2d(self._within(z), self.pool).flatten(1))
        return logits

    def readout_matrix(self) -> Tensor:
        """Return W_o, shape (classes, channels * s * s)."""
        return self._rows().flatten(1)

    def _rows(self) -> Tensor:
        squares = self.image_size // self.pool
        pooled = self.decoder.weight.view(self.num_classes, -1, squares, squares)
        spread = pooled.repeat_interleave(self.pool, dim=2).repeat_interleave(self.pool, dim=3)
        return self._bordered(spread / self.pool**2)

    def _within(self, z: Tensor) -> Tensor:
        edge = slice(self.border, self.border + self.image_size)
        return z[:, :, edge, edge]

    def _bordered(self, z: Tensor) -> Tensor:
        return F.pad(z, (self.border, self.size - self.image_size - self.border) * 2)

    def pushed_kernel(self) -> Tensor:
        """Return ΛU as it acts on pixels in [0, 1], shape (channels, image channels, k, k)."""
        return self.metric()[..., None] * self.encoder.weight / self.std.flatten()[:, None, None]

    @torch.no_grad()
    def lipschitz_constants(self) -> Tensor:
        """Return the constants of :func:`~deqcert.monotone.constants.pair_constants`, by frequencies."""
        off = self._transform_rounding() * math.sqrt(self.size) * self._rows().norm()
        return pair_constants(*self._inequality(), self.feedback, off)

    def training_constants(self) -> Tensor:
        """Return the constants of :func:`~deqcert.monotone.constants.training_constants`, in float64."""
        return training_constants(*self._inequality(), self.feedback)

    def _inequality(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return M, P and W_o of :mod:`~deqcert.monotone.constants` by frequencies, in float64.

        Rounding makes M smaller and P larger.
        """
        kernel, pushed_kernel, rows = self.kernel().double(), self.pushed_kernel().double(), self._rows().double()
        blocks, pushed = spectrum(kernel, self.size), spectrum(pushed_kernel, self.size)
        relative, terms = self._transform_rounding(), rounding(20 + 4 * self.image_channels)
        columns = torch.arange(self.size // 2 + 1, device=rows.device).expand(self.size, -1).flatten()
        alone = (columns == 0) | (2 * columns == self.size)  # all other frequencies stand for two
        waves = torch.fft.rfft2(rows, norm="ortho").conj().flatten(2).permute(2, 0, 1)
        return (
            shifted(blocks + blocks.mH, -2 * (relative + terms) * _taps(kernel)),
            shifted(pushed @ pushed.mH, (3 * relative + terms) * _taps(pushed_kernel).square()),
            waves * torch.where(alone, 1.0, 2.0).to(rows).sqrt()[:, None, None],
        )

    def operator_bounds(self) -> OperatorBounds:
        """Return what is proved of W: ‖K‖, also of absolute values, is at most the sum of the norms of its taps."""
        monotone = smallest_eigenvalue(self._inequality()[0]).min() / 2
        norm = self.metric().max() + _taps(self.kernel()) + self.feedback / 2 * self._rows().square().sum()
        return OperatorBounds(monotone, norm)

    @torch.no_grad()
    def step_size_bound(self) -> float:
        """Return a step size below which plain forward-backward splitting converges: 2μ/L², in the metric Λ."""
        scale = self.metric().rsqrt()
        blocks = spectrum(scale[..., None] * self.kernel() * scale, self.size)
        rows = (self._rows() * scale).flatten(1)
        length = torch.linalg.matrix_norm(blocks, 2).max() + self.feedback / 2 * torch.linalg.matrix_norm(rows, 2) ** 2
        monotone = torch.linalg.eigvalsh(blocks + blocks.mH).min() / 2
        return float(2 * monotone / length**2)

    def _transform_rounding(self) -> float:
        """Bound the error of a two-dimensional Fourier transform, relative to the sum of all absolute values.

        Along each axis no output has more roundings than the plain sum over ``size`` complex terms.
        """
        return rounding(4 * (self.size + 8))


def _normal(channels: int, kernel_size: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(channels, channels, kernel_size, kernel_size))


def _taps(kernel: Tensor) -> Tensor:
    """Return the sum of the Frobenius norms of the matrices of a kernel."""
    total: Tensor = torch.linalg.matrix_norm(kernel.flatten(2).permute(2, 0, 1)).sum()
    return total


class ConvMonDEQ(ConvMonotoneDEQ):
    """Monotone operator equilibrium network with one convolution (Winston, Kolter, NeurIPS 2020).

    W = (1 − m) I − AAᵀ + B − Bᵀ with circular convolutions A and B, scaled to learned Frobenius norms.

    Args:
        channels: Channels of the state, >= 1.
        kernel_size: Height and width of the kernels of A, B and U, odd; W reaches twice as far.
        pool: Height and width of the squares whose means are classified; divides ``image_size``.
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

    UNSEEN = (*ConvMonotoneDEQ.UNSEEN, "m")

    def __init__(
        self,
        channels: int = 32,
        kernel_size: int = 3,
        pool: int = 4,
        m: float = 1.0,
        num_classes: int = 10,
        image_channels: int = 3,
        image_size: int = 32,
        mean: Sequence[float] = (0.4914, 0.4822, 0.4465),
        std: Sequence[float] = (0.2470, 0.2435, 0.2616),
        splitting: Splitting = "peaceman_rachford",
        alpha: float = 1.0,
        solver: Solver = Anderson(max_steps=50, tolerance=1e-3, ridge=0.0),
    ) -> None:
        super().__init__(solver)
        self._build(locals(), channels, kernel_size, pool, splitting, alpha)
        require(0 < m <= 1, "m", m, "must be in (0, 1]")
        self.m = m
        self.symmetric, self.skew = _normal(channels, kernel_size), _normal(channels, kernel_size)
        self.scales = nn.Parameter(torch.ones(2))

    def kernel(self) -> Tensor:
        """Return that of m I + AAᵀ + Bᵀ − B."""
        return _monotone_kernel(self.m, self.symmetric, self.skew, self.scales)


class ConvLBEN(ConvMonotoneDEQ):
    """Lipschitz bounded equilibrium network with one convolution (Revay, Wang, Manchester, arXiv 2010.01732).

    W = I − Ψ [(W_oᵀW_o + Ψ⁻¹UUᵀΨ⁻¹) / 2γ + VVᵀ + εI + S − Sᵀ] with circular convolutions V and S, scaled to learned
    Frobenius norms, and Ψ = Λ⁻¹ = diag(exp ψ), one ψ for each channel. The map from images to logits has Lipschitz
    constant γ at most, whatever the parameters are.

    Args:
        channels: Channels of the state, >= 1.
        kernel_size: Height and width of the kernels of U, V and S, odd; W reaches twice as far.
        pool: Height and width of the squares whose means are classified; divides ``image_size``.
        gamma: Lipschitz constant γ, in logits per pixel of [0, 1], > 0; ``inf`` leaves it free.
        epsilon: ε, > 0: how monotone Λ(I − W) is at least.
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

    UNSEEN = (*ConvMonotoneDEQ.UNSEEN, "gamma", "epsilon")

    def __init__(
        self,
        channels: int = 32,
        kernel_size: int = 3,
        pool: int = 4,
        gamma: float = 1.0,
        epsilon: float = 1.0,
        num_classes: int = 10,
        image_channels: int = 3,
        image_size: int = 32,
        mean: Sequence[float] = (0.4914, 0.4822, 0.4465),
        std: Sequence[float] = (0.2470, 0.2435, 0.2616),
        splitting: Splitting = "peaceman_rachford",
        alpha: float = 1.0,
        solver: Solver = Anderson(max_steps=50, tolerance=1e-3, ridge=0.0),
    ) -> None:
        super().__init__(solver)
        self._build(locals(), channels, kernel_size, pool, splitting, alpha)
        require(gamma > 0, "gamma", gamma, "must be > 0; inf leaves the Lipschitz constant free")
        require(0 < epsilon < math.inf, "epsilon", epsilon, "must be > 0 and finite")
        self.gamma, self.epsilon = gamma, epsilon
        self.monotone, self.skew = _normal(channels, kernel_size), _normal(channels, kernel_size)
        self.scales = nn.Parameter(torch.ones(2))
        self.psi = nn.Parameter(torch.zeros(channels))

    @property
    def feedback(self) -> float:
        """Return η = 1/γ."""
        return 1 / self.gamma

    def metric(self) -> Tensor:
        """Return the diagonal of Λ, shape (channels, 1, 1)."""
        return (-self.psi).exp()[:, None, None]

    def kernel(self) -> Tensor:
        """Return that of ΛUUᵀΛ / 2γ + VVᵀ + εI + Sᵀ − S."""
        pushed, rest = self.pushed_kernel(), _monotone_kernel(self.epsilon, self.monotone, self.skew, self.scales)
        return _correlation(pushed) / (2 * self.gamma) + rest


def _correlation(kernel: Tensor) -> Tensor:
    """Return the kernel of A Aᵀ, shape (out, out, 2k − 1, 2k − 1), for that of A."""
    return F.conv2d(kernel, kernel, padding=kernel.shape[-1] - 1)


def _monotone_kernel(floor: float, symmetric: Tensor, skew: Tensor, scales: Tensor) -> Tensor:
    """Return the kernel of floor I + g² AAᵀ / ‖A‖² + h (Bᵀ − B) / ‖B‖ for those of A and B and the scales g and h."""
    width = symmetric.shape[-1]
    difference = skew.transpose(0, 1).flip(2, 3) - skew
    identity = torch.eye(len(symmetric), dtype=symmetric.dtype, device=symmetric.device)[..., None, None]
    return (
        scales[0].square() * _correlation(symmetric) / symmetric.square().sum()
        + F.pad(scales[1] * difference / skew.norm(), (width // 2,) * 4)
        + F.pad(floor * identity, (width - 1,) * 4)
    )
