"""What makes two certification runs the same run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from deqcert.smoothing import Smoothing
from deqcert.version import __version__


def classifier_digest(classifier: nn.Module) -> str:
    """Return the SHA-256 of structure, parameters and buffers (also those that checkpoints leave out)."""
    digest = hashlib.sha256(repr(classifier).encode())
    tensors = [*classifier.named_parameters(), *classifier.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tf32() -> dict[str, object]:
    """Return whether float32 products of matrices and of convolutions are rounded to TF32."""
    return {"matmul": torch.get_float32_matmul_precision(), "convolutions": torch.backends.cudnn.allow_tf32}


def run_identity(
    smoothing: Smoothing,
    classifier: nn.Module,
    data: dict[str, object],
    image: Sequence[int],
    device: torch.device,
    precision: str,
) -> dict[str, Any]:
    """Collect everything that determines the votes, JSON-able.

    The random numbers and kernels of a device family are its own, hence the device type; processes, order and the
    selection of images do not matter, hence are not here. ``image`` is the shape of an image.
    """
    return {
        "smoothing": smoothing.identity,
        "classifier": {
            "class": f"{type(classifier).__module__}.{type(classifier).__qualname__}",
            "digest": classifier_digest(classifier),
        },
        "data": data,
        "image": list(image),
        "device": device.type,
        "precision": precision,
        "tf32": _tf32() if device.type == "cuda" else None,
        "versions": {"deqcert": __version__, "torch": torch.__version__},
    }
