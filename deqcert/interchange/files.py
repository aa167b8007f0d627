"""Files of weights, read without running code and written in one step."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from deqcert.checkpoints import save_checkpoint
from deqcert.checkpoints.architecture import ARCHITECTURE, plain_architecture
from deqcert.checkpoints.files import SAFETENSORS, demand_no_other_kind, demand_tensors, load_plain, printable
from deqcert.errors import CheckpointError
from deqcert.files import write_atomically
from deqcert.interchange.numpy_scalars import STAND_INS

_HOLDERS = ("state_dict", "model_state_dict", "model", "net", "params", "ema")
"""Where training scripts put the weights beside other things; of several in one file, the first is read."""


class Weights(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: The weights by their names in the file.
        beside: Names of what else is in it, e.g. the state of an optimizer, with the reason why it is left out.
        sigma: Standard deviation of the training noise, where the file tells.
        architecture: Class and settings of the network, see :func:`architecture_of`, where the file tells.
    """

    tensors: dict[str, Tensor]
    beside: dict[str, str]
    sigma: float | None
    architecture: Mapping[str, Any] | None = None


def read_weights(path: str | Path) -> Weights:
    """Read weights from a file of ``torch.save`` (plain, or with other things around them) or safetensors.

    Raises:
        CheckpointError: There is no such file; it is damaged; it holds anything but tensors and plain data, which may
            be code; no weights; a tensor larger than the file, or a sigma that is none.
    """
    shown = str(path)
    if Path(path).suffix == SAFETENSORS:
        return _read_safetensors(Path(path))
    content = load_plain(path, shown, stand_ins=STAND_INS)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{shown}: must hold a dictionary of weights, not a {type(content).__name__}")
    holders = [name for name in _HOLDERS if isinstance(content.get(name), Mapping)]
    holder = next(iter(holders), None)
    tensors = content if holder is None else content[holder]
    demand_tensors(tensors, shown)
    if not tensors:
        raise CheckpointError(f"{shown}: holds no weights")
    for name, tensor in tensors.items():
        if tensor.nbytes > os.path.getsize(path):
            raise CheckpointError(f"{shown}: {printable(name)} has shape {tuple(tensor.shape)}, larger than the file")
    beside = {
        str(name): f"other weights; those of {holder} are taken" if name in holders else "no weights"
        for name in content
        if holder is not None and name not in (holder, ARCHITECTURE)
    }
    parameters = content.get("hyper_parameters")
    sigma = parameters.get("sigma") if isinstance(parameters, Mapping) else None
    architecture = None if holder is None else plain_architecture(content.get(ARCHITECTURE), shown)
    return Weights(dict(tensors), beside, _sigma(sigma, shown), architecture)


def write_checkpoint(
    path: str | Path, network_weights: Mapping[str, Tensor], sigma: float, architecture: Mapping[str, Any] | None
) -> None:
    """Write weights as a checkpoint of :class:`deqcert.training.DEQClassifier`.

    Args:
        path: File to write; replaced in one step.
        network_weights: Weights of the network by its own names.
        sigma: Standard deviation of the noise that the network was trained with.
        architecture: Class and settings of the network, see :func:`architecture_of`; None if it does not state them.
    """
    # torch.save would write the rest of the storage of a view too.
    alone = {
        f"network.{name}": tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
        for name, tensor in network_weights.items()
    }
    checkpoint: dict[str, Any] = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": version("lightning"),
        "state_dict": alone,
        "hyper_parameters": {"sigma": sigma},
    }
    if architecture is not None:
        checkpoint[ARCHITECTURE] = dict(architecture)
    save_checkpoint(checkpoint, path)


def write_safetensors(
    path: str | Path,
    network_weights: Mapping[str, Tensor],
    sigma: float | None,
    source_sha256: str,
    architecture: Mapping[str, Any] | None = None,
) -> None:
    """Write weights as safetensors, with sigma, source and architecture (as JSON) in the metadata.

    Args:
        path: File to write; replaced in one step.
        network_weights: Weights of the network by its own names.
        sigma: Standard deviation of the training noise; None if it is not known.
        source_sha256: Digest of the checkpoint that the weights are of.
        architecture: Class and settings of the network; None if they are not known.
    """
    metadata = {"format": "pt", "source_sha256": source_sha256} | ({} if sigma is None else {"sigma": repr(sigma)})
    if architecture is not None:
        metadata[ARCHITECTURE] = json.dumps(architecture)
    # safetensors refuses tensors that share memory or have gaps.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network_weights.items()}
    write_atomically(path, save(tensors, metadata))


def _read_safetensors(path: Path) -> Weights:
    try:
        demand_no_other_kind(path, str(path))
        tensors = load(path.read_bytes())
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        sigma = _sigma(float(metadata["sigma"]) if "sigma" in metadata else None, str(path))
        architecture = json.loads(metadata[ARCHITECTURE]) if ARCHITECTURE in metadata else None
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from error
    if not tensors:
        raise CheckpointError(f"{path}: holds no weights")
    return Weights(tensors, {}, sigma, plain_architecture(architecture, str(path)))


def _sigma(value: object, shown: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
        raise CheckpointError(f"{shown}: sigma = {value!r}, must be finite and >= 0")
    return float(value)
