"""Starts of a solve that depend on the one noisy image and the checkpoint only, never on other noisy samples.

With one of them, k solver steps are a fixed function of one image: a classifier of its own with independent votes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

StartKind = Literal["zero", "mean", "learned"]

Shape = tuple[int, int, int]


class MeanStart(nn.Module):
    """The mean fixed point over noisy training images: one constant per checkpoint.

    ``shapes`` are those of the branches of the MDEQ, (C_i, H_i, W_i); ``sigma`` is the standard deviation of the noise
    that it was computed under, 0 = not computed yet.
    """

    sigma: Tensor

    def __init__(self, shapes: Sequence[Shape]) -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        self.register_buffer("sigma", torch.zeros((), dtype=torch.float64))
        for i, shape in enumerate(self.shapes):
            self.register_buffer(f"branch{i}", torch.zeros(shape))

    def forward(self, features: Tensor) -> list[Tensor]:
        """Return the state of each branch, shape (B, C_i, H_i, W_i), from the injection, shape (B, C_0, H_0, W_0)."""
        return [self.get_buffer(f"branch{i}").expand(len(features), *shape) for i, shape in enumerate(self.shapes)]

    @torch.no_grad()
    def set_mean(self, branches: Sequence[Tensor]) -> None:
        """Take over the mean fixed point, shape (C_i, H_i, W_i) for each branch."""
        for i, branch in enumerate(branches):
            self.get_buffer(f"branch{i}").copy_(branch)


class LearnedStart(MeanStart):
    """The mean fixed point and a correction that a small convolutional network guesses from the injection.

    As the initializer of Bai, Koltun and Kolter, "Neural deep equilibrium solvers" (ICLR 2022), it is trained on the
    frozen network by regression on converged fixed points. Before that the correction is zero.
    """

    def __init__(self, shapes: Sequence[Shape]) -> None:
        super().__init__(shapes)
        width = self.shapes[0][0]
        self.stem = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True))
        self.carry = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU(inplace=True))
            for _ in self.shapes[1:]
        )
        self.correction = nn.ModuleList(nn.Conv2d(width, channels, 3, padding=1) for channels, _, _ in self.shapes)
        for correction in self.correction:
            for parameter in correction.parameters():
                nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Guess the fixed point of each image."""
        carried: Tensor = self.stem(features)
        corrections = [self.correction[0](carried)]
        for carry, correction in zip(self.carry, self.correction[1:], strict=True):
            carried = carry(carried)
            corrections.append(correction(carried))
        return [mean + each for mean, each in zip(super().forward(features), corrections, strict=True)]


def build_start(kind: StartKind, shapes: Sequence[Shape]) -> MeanStart | None:
    """Build the start of a kind; None for zero."""
    kinds: dict[str, type[MeanStart]] = {"mean": MeanStart, "learned": LearnedStart}
    return kinds[kind](shapes) if kind in kinds else None
