"""The cell of the multiscale DEQ: a residual block per branch, then fusion of all branches into all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class MDEQCell(nn.Module):
    """One evaluation of the MDEQ transformation (Bai, Koltun, Kolter 2020, figure 2); for the settings see the MDEQ."""

    def __init__(self, channels: Sequence[int], expansion: int, num_groups: int, post_fusion_affine: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_ResidualBlock(c, expansion, num_groups) for c in channels)
        self.fusion = nn.ModuleList(
            nn.ModuleList(_carry(channels, source, target, num_groups) for source in range(len(channels)))
            for target in range(len(channels))
        )
        # A single branch is not fused: its block is the whole cell.
        self.post_fusion = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                weight_norm(nn.Conv2d(c, c, 1, bias=False)),
                nn.GroupNorm(num_groups // 2, c, affine=post_fusion_affine),
            )
            for c in channels
            if len(channels) > 1
        )

    def forward(self, branches: Sequence[Tensor], features: Tensor, masks: Sequence[Tensor] | None) -> list[Tensor]:
        """Return the next state of each branch, shape (B, C_i, H_i, W_i); for the injection see the MDEQ."""
        outputs = [
            block(branch, features if i == 0 else None, None if masks is None else masks[i])
            for i, (block, branch) in enumerate(zip(self.blocks, branches, strict=True))
        ]
        if len(outputs) == 1:
            return outputs
        fused = []
        for post, carries in zip(self.post_fusion, self.fusion, strict=True):
            assert isinstance(carries, nn.ModuleList)
            carried = [carry(output) for carry, output in zip(carries, outputs, strict=True)]
            fused.append(post(reduce(torch.add, carried)))
        return fused


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, expansion: int, num_groups: int) -> None:
        super().__init__()
        wide = expansion * channels
        self.conv1 = weight_norm(nn.Conv2d(channels, wide, 3, padding=1, bias=False))
        self.norm1 = nn.GroupNorm(num_groups, wide)
        self.conv2 = weight_norm(nn.Conv2d(wide, channels, 3, padding=1, bias=False))
        self.norm2 = nn.GroupNorm(num_groups, channels)
        self.norm3 = nn.GroupNorm(num_groups, channels)

    def forward(self, z: Tensor, features: Tensor | None, mask: Tensor | None) -> Tensor:
        out: Tensor = self.conv2(self.norm1(self.conv1(z)).relu_())
        if mask is not None:
            out = out * mask
        if features is not None:
            out = out + features
        result: Tensor = self.norm3((self.norm2(out) + z).relu_())
        return result


def _carry(channels: Sequence[int], source: int, target: int, num_groups: int) -> nn.Module:
    """Build what carries branch ``source`` to the channels and resolution of branch ``target``."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(
            nn.Conv2d(channels[source], channels[target], 1, bias=False),
            nn.GroupNorm(num_groups, channels[target]),
            nn.Upsample(scale_factor=2 ** (source - target), mode="nearest"),
        )
    layers: list[nn.Module] = []
    for stage in range(source + 1, target + 1):
        width = channels[target] if stage == target else channels[source]
        layers += [
            nn.Conv2d(channels[source], width, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(num_groups, width),
        ]
        if stage < target:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
