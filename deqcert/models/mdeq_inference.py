"""The multiscale DEQ for evaluation only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deqcert.models.base import DEQ
from deqcert.models.folding import folded
from deqcert.models.mixing import LearnedMixer
from deqcert.models.starts import MeanStart
from deqcert.solvers import Solver


class InferenceMDEQ(DEQ):
    """The function of an MDEQ in evaluation mode, folded, with a state whose branches are channels last.

    The state has shape (B, Σ_i H_i·W_i·C_i): the numbers of the MDEQ's own state in another order.

    Args:
        parts: Stem, cell and head of the network, in evaluation mode; later changes of their weights do not show here.
        shapes: Shape (C_i, H_i, W_i) of each branch.
        mean: Per-channel mean of the images, shape (C, 1, 1).
        std: Per-channel standard deviation of the images, shape (C, 1, 1).
        solver: Solver of ``forward``.
        start: Anchored start of the network; None is the cold one.
        mixing: Learned mixing of the network; None if it has none.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        parts: tuple[nn.Module, nn.Module, nn.Module],
        shapes: Sequence[tuple[int, int, int]],
        mean: Tensor,
        std: Tensor,
        solver: Solver,
        start: MeanStart | None = None,
        mixing: LearnedMixer | None = None,
    ) -> None:
        super().__init__(solver)
        self.shapes = tuple(shapes)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.stem, self.mdeq_cell, self.mdeq_head = (folded(part, mean) for part in parts)
        self.start = None if start is None else folded(start, mean)
        self.mixing = mixing
        self.eval()

    def inject(self, x: Tensor) -> Tensor:
        """Normalise and apply the stem; shape (B, C_0, H_0, W_0), channels last."""
        x = x.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.stem((x - self.mean) / self.std)
        return features

    def initial_state(self, injection: Tensor) -> Tensor:
        """Return zeros, shape (B, Σ_i H_i·W_i·C_i)."""
        size = sum(c * h * w for c, h, w in self.shapes)
        return injection.new_zeros(len(injection), size, dtype=self.mean.dtype)

    def anchor(self, injection: Tensor) -> Tensor:
        """Return the anchored start, shape (B, Σ_i H_i·W_i·C_i)."""
        if self.start is None:
            return self.initial_state(injection)
        return self._flatten(self.start(injection)).to(self.mean.dtype)

    @property
    def mixer(self) -> LearnedMixer | None:
        """That of the network."""
        return self.mixing

    def cell(self, z: Tensor, injection: Tensor) -> Tensor:
        """Evaluate residual blocks and fusion on the flattened state."""
        branches = self.mdeq_cell(self._unflatten(z), injection, None)
        return self._flatten(branches).to(z.dtype)

    def head(self, z: Tensor) -> Tensor:
        """Classify the flattened state."""
        logits: Tensor = self.mdeq_head(self._unflatten(z))
        return logits

    def _flatten(self, branches: Sequence[Tensor]) -> Tensor:
        return torch.cat([branch.permute(0, 2, 3, 1).flatten(1) for branch in branches], dim=1)

    def _unflatten(self, z: Tensor) -> list[Tensor]:
        parts = torch.split(z, [c * h * w for c, h, w in self.shapes], dim=1)
        return [part.view(-1, h, w, c).permute(0, 3, 1, 2) for part, (c, h, w) in zip(parts, self.shapes, strict=True)]
