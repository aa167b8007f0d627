"""What makes two certification runs the same run."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from deqcert.data import CertificationSet
from deqcert.smoothing.identity import stable_name
from deqcert.version import __version__


def classifier_digest(classifier: nn.Module) -> str:
    """Return the SHA-256 of structure, parameters, buffers (also those that checkpoints leave out) and attributes.

    Attributes count as far as they are plain data, tensors, arrays, dataclasses, or lists, tuples, sets and dicts of
    those: what a constructor keeps of its settings. Of any other object only the class counts, of a function or
    class its name.
    """
    digest = hashlib.sha256(repr(classifier).encode())
    tensors = [*classifier.named_parameters(), *classifier.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {_described(tensor)}".encode())
    inherited = vars(LightningModule()).keys()  # torch's and Lightning's own: weights, hooks, progress
    for name, module in classifier.named_modules():
        own = {key: value for key, value in vars(module).items() if key not in inherited}
        digest.update(f"{name} {_described(own)}".encode())
    return digest.hexdigest()


def _described(value: object) -> str:
    """Describe an attribute by what it says, never by where it is in memory."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype)):
        return repr(value)
    named: Any = value if hasattr(value, "__qualname__") else type(value)  # a class, a function; or the class of it
    kind = stable_name(named)
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{kind} {tuple(value.shape)} {value.dtype} {hashlib.sha256(content).hexdigest()}"
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "?biufcSU":
        return f"{kind} {value.shape} {value.dtype.str} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"{kind} {_described({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})}"
    if isinstance(value, Mapping):
        return f"{kind} {sorted((_described(key), _described(item)) for key, item in value.items())}"
    if isinstance(value, (set, frozenset)):
        return f"{kind} {sorted(map(_described, value))}"
    if isinstance(value, (list, tuple)):
        return f"{kind} {[_described(item) for item in value]}"
    return kind


def run_identity(
    settings: Mapping[str, Any], module: LightningModule, examples: CertificationSet, precision: str
) -> dict[str, Any]:
    """Collect everything that determines the measurements, JSON-able; ``settings`` are those of the method.

    The random numbers and kernels of a device family are its own, hence the device type; processes, order and the
    selection of images do not matter, hence are not here.
    """
    network, device = getattr(module, "network", module), module.device.type
    # Whether float32 products of matrices and of convolutions are rounded to TF32.
    tf32 = {"matmul": torch.get_float32_matmul_precision(), "convolutions": torch.backends.cudnn.allow_tf32}
    return {
        **settings,
        "classifier": {"class": stable_name(type(network)), "digest": classifier_digest(network)},
        "data": examples.identity(),
        "image": list(examples[0][0].shape),
        "device": device,
        "precision": precision,
        "tf32": tf32 if device == "cuda" else None,
        "versions": {"deqcert": __version__, "torch": torch.__version__},
    }
