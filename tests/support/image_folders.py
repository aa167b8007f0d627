"""Folders of random images."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.io import write_jpeg


def write_images(root: Path, classes: list[str], size: int, splits: tuple[str, str], count: int = 1) -> None:
    """Write ``count`` JPEGs of each class into each split of ``root``."""
    generator = torch.Generator().manual_seed(0)
    for split in splits:
        for number, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for index in range(number * count, (number + 1) * count):
                image = torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
                write_jpeg(image, str(root / split / name / f"{index:05d}.jpg"))
