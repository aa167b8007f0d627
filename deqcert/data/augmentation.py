"""Random crop and horizontal flip as a pure function of (seed, epoch, original index).

A resumed run therefore sees the same pixels, whatever the order of the images, the number of processes or
the restarts.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deqcert.data.streams import DataPurpose, raw_stream

PADDING = 4
"""Zeros added on each side before cropping, pixels."""


def crop_and_flip(images: Tensor, rows: Tensor, columns: Tensor, flips: Tensor) -> Tensor:
    """Crop each image out of its zero-padded self and mirror it where asked, without a loop over images.

    Args:
        images: (B, C, H, W), any type.
        rows: Upper edge of each crop in the padded image, int64 (B,) in ``[0, 2 * PADDING]``.
        columns: Left edge, as ``rows``.
        flips: Whether to mirror left and right after cropping, bool (B,).
    """
    batch, channels, height, width = images.shape
    device = images.device
    across = torch.arange(width, device=device)
    across = torch.where(flips[:, None], across.flip(0), across)
    row = rows[:, None] + torch.arange(height, device=device)
    column = columns[:, None] + across
    return F.pad(images, [PADDING] * 4)[
        torch.arange(batch, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        row[:, None, :, None],
        column[:, None, None, :],
    ]


class CropAndFlip:
    """Draws one crop and one flip per image and epoch, for original indices below ``count``, and applies them."""

    def __init__(self, seed: int, count: int) -> None:
        self.seed = seed
        self.count = count
        self._cached: tuple[int, Tensor] | None = None

    def __call__(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Return the augmented (B, C, H, W) ``images`` of original ``indices`` (B,) in ``epoch``."""
        rows, columns, flips = self.draws(epoch, images.device)[:, indices]
        return crop_and_flip(images, rows, columns, flips.bool())

    def draws(self, epoch: int, device: torch.device) -> Tensor:
        """Return upper edges, left edges and flips (0 or 1) of all images in ``epoch``: int64 (3, count)."""
        if self._cached is None or self._cached[0] != epoch or self._cached[1].device != device:
            edges = 2 * PADDING + 1
            words = raw_stream(self.count, self.seed, DataPurpose.AUGMENTATION, epoch)
            choices = np.unravel_index((words % (2 * edges * edges)).astype(np.int64), (edges, edges, 2))
            self._cached = epoch, torch.from_numpy(np.stack(choices)).to(device)
        return self._cached[1]
