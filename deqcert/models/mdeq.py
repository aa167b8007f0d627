"""Multiscale deep equilibrium model (Bai, Koltun, Kolter, NeurIPS 2020)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from deqcert.errors import require, require_count
from deqcert.models.base import DEQ, StatedNetwork
from deqcert.models.folding import folded
from deqcert.models.mdeq_cell import MDEQCell
from deqcert.models.mdeq_head import MDEQHead
from deqcert.models.starts import StartKind, build_start
from deqcert.solvers import Broyden, Solver


class MDEQInjection(NamedTuple):
    """What the cell needs besides its state.

    ``features`` are injected into the branch of the highest resolution, shape (B, C_0, H_0, W_0); ``masks`` are one
    dropout mask per branch, shape (B, C_i, 1, 1), for all iterations of this sample, or None in evaluation mode.
    """

    features: Tensor
    masks: tuple[Tensor, ...] | None


class MDEQ(DEQ, StatedNetwork):
    """Feature maps at several resolutions that reach their equilibrium together.

    The state is the concatenation of the flattened branches, shape (B, Σ_i C_i·H_i·W_i); it starts at zero.

    Args:
        channels: Channels C_i of the branches, highest resolution first; branch i has 1/2^i of the resolution.
        head_channels: Bottleneck channels per branch in the head; the branches carry four times as many.
        final_channels: Features before the linear classifier (published: final_chansize).
        num_classes: Classes, >= 2.
        image_channels: Channels of the images.
        image_size: Height and width of the images, pixels.
        mean: Per-channel mean of the images, in [0, 1].
        std: Per-channel standard deviation of the images.
        downsample_times: Halvings of the resolution in the stem, >= 0.
        expansion: Widening of the residual blocks, >= 1.
        num_groups: Groups of the group norms; divides every C_i, and even.
        post_fusion_affine: Whether the group norm after the fusion has affine parameters.
        dropout: Probability of the variational dropout, in [0, 1).
        solver: Solver of ``forward``.
        start: Anchored start: zero, the mean fixed point, or learned from the injection; the last two are computed by
            ``deqcert anchor``.

    Attributes:
        shapes: Shape (C_i, H_i, W_i) of each branch.
        has_stage0: Whether the stem ends in a 1×1 stage (published: stage0).

    Raises:
        SettingError: If a setting is out of range or the settings do not fit together.
    """

    _channels_last = False  # order of the numbers within each branch of the state

    UNSEEN = ("mean", "std", "image_size", "downsample_times", "num_groups")

    def __init__(
        self,
        channels: Sequence[int] = (8, 16, 32),
        head_channels: Sequence[int] = (7, 14, 28),
        final_channels: int = 200,
        num_classes: int = 10,
        image_channels: int = 3,
        image_size: int = 32,
        mean: Sequence[float] = (0.4914, 0.4822, 0.4465),
        std: Sequence[float] = (0.2023, 0.1994, 0.2010),
        downsample_times: int = 0,
        expansion: int = 5,
        num_groups: int = 8,
        post_fusion_affine: bool = False,
        dropout: float = 0.2,
        solver: Solver = Broyden(max_steps=8, tolerance=1e-3),
        start: StartKind = "zero",
    ) -> None:
        super().__init__(solver)
        self._state(locals(), "dropout", "solver")
        branches = len(channels)
        require(branches >= 1, "channels", tuple(channels), "needs at least one branch")
        fitting = len(head_channels) == branches
        require(fitting, "head_channels", tuple(head_channels), f"needs {branches} entries, as channels")
        for name, widths in (("channels", channels), ("head_channels", head_channels)):
            require(min(widths) >= 1, name, tuple(widths), "must all be >= 1")
        require_count("final_channels", final_channels, minimum=1)
        require_count("downsample_times", downsample_times, minimum=0)
        require_count("expansion", expansion, minimum=1)
        dividing = num_groups >= 2 and num_groups % 2 == 0 and all(c % num_groups == 0 for c in channels)
        allowed = f"must be even and divide every entry of channels = {tuple(channels)}"
        require(dividing, "num_groups", num_groups, allowed)
        require(0 <= dropout < 1, "dropout", dropout, "must be in [0, 1)")
        require(start in get_args(StartKind), "start", start, f"must be one of {', '.join(get_args(StartKind))}")
        smallest = 2 ** (downsample_times + branches - 1)
        allowed = f"must be a multiple of {smallest} (2 to the power of downsample_times + branches - 1)"
        require(image_size >= smallest and image_size % smallest == 0, "image_size", image_size, allowed)

        self.dropout = dropout
        resolution = image_size // 2**downsample_times
        self.shapes = tuple((c, resolution // 2**i, resolution // 2**i) for i, c in enumerate(channels))
        self.has_stage0 = downsample_times > 0 or branches > 2
        self.stem = _stem(image_channels, channels[0], downsample_times, last_stage=self.has_stage0)
        self.mdeq_cell = MDEQCell(channels, expansion, num_groups, post_fusion_affine)
        self.mdeq_head = MDEQHead(channels, head_channels, final_channels, num_classes)
        self._initialize()
        self.start = build_start(start, self.shapes)
        self._start_kind = start

    def _initialize(self) -> None:
        """Draw convolutions from N(0, 0.01²).

        Weight-normalized ones keep torch's default: the published initialization writes to their recomputed weight
        and so leaves the parameters alone.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not hasattr(module, "parametrizations"):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=0.01)

    def inject(self, x: Tensor) -> MDEQInjection:
        """Normalize, apply the stem and, in training mode, draw the dropout masks."""
        if self._channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        features = self.stem((x - self.mean) / self.std)
        if not (self.training and self.dropout > 0):
            return MDEQInjection(features, None)
        keep = 1 - self.dropout
        masks = tuple(features.new_empty(len(x), c, 1, 1).bernoulli_(keep) / keep for c, _, _ in self.shapes)
        return MDEQInjection(features, masks)

    def initial_state(self, injection: MDEQInjection) -> Tensor:
        """Return zeros, shape (B, Σ_i C_i·H_i·W_i)."""
        size = sum(c * h * w for c, h, w in self.shapes)
        # The dtype of the parameters, not of the features: under autocast those are too coarse for a solver.
        return injection.features.new_zeros(len(injection.features), size, dtype=self.mean.dtype)

    def anchor(self, injection: MDEQInjection) -> Tensor:
        """Return the anchored start, shape (B, Σ_i C_i·H_i·W_i)."""
        if self.start is None:
            return self.initial_state(injection)
        return self._flattened(self.start(injection.features)).to(self.mean.dtype)

    @property
    def start_kind(self) -> str:
        """``zero``, ``mean`` or ``learned``."""
        return self._start_kind

    @property
    def start_sigma(self) -> float | None:
        """Noise that the anchored start was computed under; None for zero, 0 if it was not yet."""
        return None if self.start is None else float(self.start.sigma)

    def cell(self, z: Tensor, injection: MDEQInjection) -> Tensor:
        """Evaluate residual blocks and fusion on the flattened state."""
        branches = self.mdeq_cell(self.branches_of(z), injection.features, injection.masks)
        return self._flattened(branches).to(z.dtype)

    def head(self, z: Tensor) -> Tensor:
        """Classify the flattened state."""
        logits: Tensor = self.mdeq_head(self.branches_of(z))
        return logits

    def for_inference(self) -> MDEQ:
        """Return a copy with weight and batch normalization folded into the convolutions.

        The branches of its state are channels last: the numbers of this network's state in another order.
        """
        if self._channels_last:
            return self
        twin = copy.copy(self)
        parts = {"stem", "mdeq_cell", "mdeq_head", "start"} & self._modules.keys()
        twin._modules = self._modules | {name: folded(self.get_submodule(name), self.mean) for name in parts}
        twin._channels_last = True
        return twin

    def branches_of(self, z: Tensor) -> list[Tensor]:
        """Return the branches of a flattened state, shape (B, C_i, H_i, W_i) each."""
        parts = zip(torch.split(z, [c * h * w for c, h, w in self.shapes], dim=1), self.shapes, strict=True)
        if self._channels_last:
            return [part.view(-1, h, w, c).permute(0, 3, 1, 2) for part, (c, h, w) in parts]
        return [part.reshape(-1, *shape) for part, shape in parts]

    def _flattened(self, branches: Sequence[Tensor]) -> Tensor:
        if self._channels_last:
            branches = [branch.permute(0, 2, 3, 1) for branch in branches]
        return torch.cat([branch.flatten(1) for branch in branches], dim=1)


def _stem(image_channels: int, channels: int, downsample_times: int, last_stage: bool) -> nn.Sequential:
    """Build 3×3 stages, the first ``downsample_times`` of them with stride 2, at least two; then a 1×1 stage."""
    layers: list[nn.Module] = []
    for stage in range(max(2, downsample_times)):
        stride = 2 if stage < downsample_times else 1
        width = image_channels if stage == 0 else channels
        layers += [nn.Conv2d(width, channels, 3, stride, padding=1, bias=False), nn.BatchNorm2d(channels)]
        layers.append(nn.ReLU(inplace=True))
    if last_stage:
        layers += [nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
