"""Data sets in small: the real CIFAR-10 where it is at hand, made-up ones elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deqcert.data.cifar10 import CLASSES
from deqcert.data.images import TensorImages

REAL_CIFAR10 = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10_jpeg.npz"


@pytest.fixture(scope="session")
def real_cifar10() -> Path:
    if not REAL_CIFAR10.is_file():
        pytest.skip("needs ../shared/data/cifar10_jpeg.npz beside the repository")
    return REAL_CIFAR10


@pytest.fixture
def tensor_images() -> Callable[..., TensorImages]:
    """Makes ``count`` random images of ten classes."""

    def make(count: int = 20, size: int = 8, indices: torch.Tensor | None = None) -> TensorImages:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
        return TensorImages(pixels, torch.arange(count) % 10, CLASSES, "random", indices)

    return make


def encode(pixels: np.ndarray, form: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., Path]:
    """Writes a packed file of random JPEGs; keyword arguments replace arrays of it."""

    def write(count: int = 12, size: int = 32, **replaced: Any) -> Path:
        random = np.random.default_rng(0)
        jpegs = [encode(random.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(count)]
        arrays: dict[str, Any] = {
            "classes": np.array(CLASSES),
            "header": np.frombuffer(jpegs[0][:20], np.uint8),
            "trailer": np.frombuffer(jpegs[0][-2:], np.uint8),
        }
        scans = [jpeg[20:-2] for jpeg in jpegs]
        for split in ("train", "test"):
            arrays[f"{split}_labels"] = (np.arange(count) % 10).astype(np.uint8)
            arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, scans)]).astype(np.uint32)
            arrays[f"{split}_scan"] = np.frombuffer(b"".join(scans), np.uint8)
        path = tmp_path / "packed.npz"
        np.savez(path, **{**arrays, **replaced})
        return path

    return write


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of train/{ant,bee} and val/{ant,bee} with JPEG and PNG files of various sizes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for name in ("ant", "bee"):
            folder = tmp_path / "tiny" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                form = "PNG" if number % 2 else "JPEG"
                pixels = random.integers(0, 256, (24 + number, 40, 3), dtype=np.uint8)
                (folder / f"{number}.{form.lower()}").write_bytes(encode(pixels, form))
    return tmp_path / "tiny"
