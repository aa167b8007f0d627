"""The classification head of the multiscale DEQ."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

_WIDENING = 4


class MDEQHead(nn.Module):
    """Widens every branch, carries each to the next lower resolution, pools and classifies; settings are the MDEQ's."""

    def __init__(
        self, channels: Sequence[int], head_channels: Sequence[int], final_channels: int, num_classes: int
    ) -> None:
        super().__init__()
        widths = [_WIDENING * c for c in head_channels]
        self.bottlenecks = nn.ModuleList(_Bottleneck(c, h) for c, h in zip(channels, head_channels, strict=True))
        self.downsample = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(fine, coarse, 3, stride=2, padding=1), nn.BatchNorm2d(coarse), nn.ReLU(inplace=True)
            )
            for fine, coarse in pairwise(widths)
        )
        self.final = nn.Sequential(
            nn.Conv2d(widths[-1], final_channels, 1), nn.BatchNorm2d(final_channels), nn.ReLU(inplace=True)
        )
        self.classifier = nn.Linear(final_channels, num_classes)

    def forward(self, branches: Sequence[Tensor]) -> Tensor:
        """Map the branches, shape (B, C_i, H_i, W_i) each, to logits, shape (B, classes)."""
        carried: Tensor = self.bottlenecks[0](branches[0])
        for i, downsample in enumerate(self.downsample, start=1):
            carried = self.bottlenecks[i](branches[i]) + downsample(carried)
        logits: Tensor = self.classifier(self.final(carried).mean(dim=(2, 3)))
        return logits


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        wide = _WIDENING * inner
        self.body = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner, affine=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner, affine=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, wide, 1, bias=False),
            nn.BatchNorm2d(wide, affine=False),
        )
        # The published head has no convolution in the shortcut where the width does not change.
        self.shortcut: nn.Module = (
            nn.Identity()
            if channels == wide
            else nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide))
        )

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = (self.body(z) + self.shortcut(z)).relu_()
        return out
