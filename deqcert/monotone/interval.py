"""A monotone network whose bounds over a box of images have a fixed point of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deqcert.errors import require
from deqcert.models.base import DEQ
from deqcert.models.certified import BoundedLogits, TrainableInterval
from deqcert.monotone.constants import BOUND, rounding, smallest_eigenvalue
from deqcert.monotone.dense import DenseMonotoneDEQ
from deqcert.monotone.operators import DenseOperator
from deqcert.solvers import Picard, Solver


class IBPMonDEQ(DenseMonotoneDEQ, TrainableInterval):
    """IBP-MonDEQ: W = D^-½ M D^-½ with D = diag(½ (|M| 1 + |M|ᵀ 1)) / (1 − m) (Wei, Kolter, ICLR 2022).

    M is free. (1 − m) D − ½ (|M| + |M|ᵀ) is diagonally dominant, so |W| has a spectral radius of 1 − m at most, and
    I − W >= m I. Hence plain iteration converges, for the network and for :class:`IntervalTwin`, which bounds it over a
    box of images; other monotone networks have |W| with a spectral radius far above 1, and no such bounds.

    Args:
        units: Hidden units n, >= 1.
        m: Strong monotonicity of I − |W|, in (0, 1): 1 would leave W = 0.
        num_classes: Classes, >= 2.
        image_channels: Channels of the images.
        image_size: Height and width of the images, pixels.
        mean: Per-channel mean of the images, in [0, 1].
        std: Per-channel standard deviation of the images.
        solver: Solver of ``forward``, and in training of the joint fixed point of both bounds.

    Raises:
        SettingError: If a setting is out of range.
    """

    UNSEEN = ("mean", "std", "m")

    def __init__(
        self,
        units: int = 80,
        m: float = 0.5,
        num_classes: int = 10,
        image_channels: int = 1,
        image_size: int = 8,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        solver: Solver = Picard(max_steps=100, tolerance=1e-4),
    ) -> None:
        super().__init__(solver)
        self._build(locals(), units, "forward_backward", 1.0)
        require(0 < m < 1, "m", m, "must be in (0, 1): |W| has a spectral radius <= 1 - m, so 1 would leave W = 0")
        self.m = m
        self.free = nn.Linear(units, units, bias=False)
        for layer in (self.encoder, self.free, self.decoder):
            # The bounds neither grow nor shrink from layer to layer (Shi et al., NeurIPS 2021).
            nn.init.normal_(layer.weight, std=math.sqrt(2 * math.pi) / layer.in_features)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def weight(self) -> Tensor:
        """Return W, shape (n, n)."""
        free = self.free.weight
        sums = (free.abs().sum(dim=0) + free.abs().sum(dim=1)) / 2
        scale = (sums / (1 - self.m) + 1e-8).rsqrt()
        return scale[:, None] * free * scale

    def step_size_bound(self) -> float:
        """Return 2 / (2 − m): |(1 − α) I + α W| <= |1 − α| I + α |W| contracts for smaller step sizes α, such as 1."""
        return 2 / (2 - self.m)

    def worst_case(self, predicted: Tensor, epsilon: Tensor) -> IntervalTwin:
        """Return the DEQ of both bounds of one batch."""
        return IntervalTwin(self, predicted, epsilon)

    @torch.no_grad()
    def interval_margins(self, x: Tensor, predicted: Tensor, epsilon: Tensor, solver: Solver) -> BoundedLogits:
        """Solve for both bounds, widen them by what the solve left open, and prove the result.

        Let B be a box of states that the cell maps into itself for every image within epsilon, which
        :meth:`IntervalTwin.image` tells with all rounding outward. The cell of one such image is a continuous map of B
        into B, so it has a fixed point in B (Brouwer), and none elsewhere, because 2I − W − Wᵀ is positive definite
        beyond rounding. So z* is in B for each of these images, hence in the image of B, over which the last layer is
        bounded. However coarse the solve is, a box that passes is a proof; where none does, the errors are infinite.

        ``steps`` counts evaluations of both bounds.
        """
        valid = bool((epsilon.isfinite() & (epsilon >= 0)).all())
        require(valid, "epsilon", epsilon.tolist(), "must be finite and >= 0: half the side of each box, in pixels")
        twin = self.worst_case(predicted, epsilon)
        injection = twin.inject(x)
        _, solution = twin.solve(x, solver)
        image, proved = twin.image(twin.widened(solution.value, x, injection), x, injection)
        proved = proved & (smallest_eigenvalue(self.monotone_matrix()) > 0)
        rows, offsets = twin.differences()
        sizes = (rows.abs() @ image[:, len(self.free.weight) :, None])[:, :, 0] + offsets.abs()
        errors = rounding(len(self.free.weight) + 8) * sizes * BOUND
        gaps = 0.0 - twin.head(image)
        return BoundedLogits(gaps, errors.where(proved[:, None], torch.inf), solution.steps + 2, solution.residual)


class IntervalInjection(NamedTuple):
    """U x + b and |U| ε of each image, shape (B, n), and W and |W|, which are the same for all of them."""

    center: Tensor
    radius: Tensor
    operator: DenseOperator
    magnitude: DenseOperator


class IntervalTwin(DEQ):
    """The joint fixed point of a lower and an upper bound on z*, over all images within epsilon, of one batch.

    Its state is the box [l, u], shape (B, 2n), and its cell the interval evaluation of the network's: with center and
    radius of the box, W c + U x + b ∓ (|W| r + |U| ε), rectified. As |W| has a spectral radius below 1, the fixed point
    exists, is unique, and plain iteration converges to it.

    Its logits are the worst of those images for a class A: 0 for A, and for j the maximum of y_j − y_A over the box.

    Args:
        network: The network.
        predicted: The class A of each image of the batch, shape (B,), int64.
        epsilon: Half the side of the box around each image, in pixels of [0, 1], shape (B,).
    """

    def __init__(self, network: IBPMonDEQ, predicted: Tensor, epsilon: Tensor) -> None:
        super().__init__(network.solver)
        self.network, self.predicted, self.epsilon = network, predicted, epsilon

    def inject(self, x: Tensor) -> IntervalInjection:
        """Compute center and radius of U x + b over each box, and W and |W|."""
        weight = self.network.weight()
        radius = self.epsilon[:, None] * self.network.input_matrix().abs().sum(dim=1)
        return IntervalInjection(self.network.bias(x), radius, DenseOperator(weight), DenseOperator(weight.abs()))

    def initial_state(self, injection: IntervalInjection) -> Tensor:
        """Return zeros, shape (B, 2n)."""
        like = next(self.parameters())
        return torch.zeros_like(injection.center, dtype=like.dtype).repeat(1, 2)

    def cell(self, z: Tensor, injection: IntervalInjection) -> Tensor:
        """Return the bounds that follow from those in ``z``, shape (B, 2n)."""
        lower, upper = z.chunk(2, dim=1)
        center = injection.operator((lower + upper) / 2) + injection.center
        radius = injection.magnitude((upper - lower) / 2) + injection.radius
        return torch.cat([center - radius, center + radius], dim=1).relu()

    def differences(self) -> tuple[Tensor, Tensor]:
        """Return readout and bias of y_j − y_A, shapes (B, classes, n) and (B, classes)."""
        weight, bias = self.network.decoder.weight, self.network.decoder.bias
        return weight - weight[self.predicted][:, None], bias - bias[self.predicted][:, None]

    def head(self, z: Tensor) -> Tensor:
        """Return the maximum of y_j − y_A over each box, shape (B, classes)."""
        lower, upper = z.chunk(2, dim=1)
        rows, offsets = self.differences()
        largest = rows @ ((lower + upper) / 2)[:, :, None] + rows.abs() @ ((upper - lower) / 2)[:, :, None]
        worst: Tensor = largest[:, :, 0] + offsets
        return worst

    def widened(self, z: Tensor, x: Tensor, injection: IntervalInjection) -> Tensor:
        """Return a box around the bounds ``z``, shape (B, 2n), that the cell should map into itself.

        Widening by w >= 0 moves the bounds that follow by |W| w at most, so w = (I − |W|)⁻¹ e is enough for an excess e
        of these over ``z``; 1 % more is for the rounding of all this.
        """
        lower, upper = z.chunk(2, dim=1)
        below, above = self.cell(z, injection).chunk(2, dim=1)
        excess = torch.maximum(lower - below, above - upper).relu() + 2 * self._rounding(z, x, injection)
        weight = injection.magnitude.weight
        identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        width = torch.linalg.solve(identity - weight, 1.01 * excess.mT).mT
        return torch.cat([(lower - width).relu(), upper + width], dim=1)

    def image(self, box: Tensor, x: Tensor, injection: IntervalInjection) -> tuple[Tensor, Tensor]:
        """Return the bounds that follow from a box, rounded outward, shape (B, 2n), and which lie in it, shape (B,)."""
        lower, upper = box.chunk(2, dim=1)
        below, above = self.cell(box, injection).chunk(2, dim=1)
        error = self._rounding(box, x, injection)
        below, above = (below - error).relu(), above + error
        inside = (lower <= below) & (above <= upper) & (lower <= upper)
        return torch.cat([below, above], dim=1), inside.all(dim=1)

    def _rounding(self, box: Tensor, x: Tensor, injection: IntervalInjection) -> Tensor:
        """Bound the rounding of the cell, shape (B, n)."""
        lower, upper = box.chunk(2, dim=1)
        sizes = self.network.sizes(torch.maximum(lower.abs(), upper.abs()), x) + injection.radius
        return rounding(self.network.terms) * sizes * BOUND
