"""Files of weights, read without running code and written in one step."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save
from torch import Tensor

from deqcert.checkpoints import save_checkpoint
from deqcert.checkpoints.architecture import ARCHITECTURE, demand_plain_architecture
from deqcert.checkpoints.files import (
    PREFIX,
    SAFETENSORS,
    demand_sigma,
    demand_tensors,
    load_plain,
    load_safetensors,
    printable,
)
from deqcert.errors import CheckpointError
from deqcert.files import write_atomically

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
    architecture: Mapping[str, Any] | None


def read_weights(path: str | Path) -> Weights:
    """Read weights from a file of ``torch.save`` (plain, or with other things around them) or safetensors.

    Raises:
        CheckpointError: There is no such file; it is damaged; it holds anything but tensors and plain data, which may
            be code; no weights; a tensor larger than the file, or a sigma that is not one.
    """
    shown = str(path)
    found = _read_safetensors(path) if Path(path).suffix == SAFETENSORS else _read_archive(path)
    if not found.tensors:
        raise CheckpointError(f"{shown}: holds no weights")
    demand_tensors(found.tensors, shown)
    for name, tensor in found.tensors.items():
        if tensor.nbytes > os.path.getsize(path):
            raise CheckpointError(f"{shown}: {printable(name)} has shape {tuple(tensor.shape)}, larger than the file")
    demand_plain_architecture(found.architecture, shown)
    if found.sigma is None:
        return found
    demand_sigma(found.sigma, shown)
    return found._replace(sigma=float(found.sigma))


def write_checkpoint(
    path: str | Path, network_weights: Mapping[str, Tensor], sigma: float, architecture: Mapping[str, Any] | None
) -> None:
    """Write weights, by the network's own names, as a checkpoint of :class:`deqcert.training.DEQClassifier`.

    ``sigma`` is that of the training noise; ``architecture`` is what :func:`architecture_of` says of the network.
    """
    # torch.save would write the rest of the storage of a view too.
    alone = {
        f"{PREFIX}{name}": tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
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
    """Write weights as safetensors, with what is known of them in the metadata, the architecture as JSON."""
    metadata = {"format": "pt", "source_sha256": source_sha256} | ({} if sigma is None else {"sigma": repr(sigma)})
    if architecture is not None:
        metadata[ARCHITECTURE] = json.dumps(architecture)
    # safetensors refuses tensors that share memory or have gaps.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network_weights.items()}
    write_atomically(path, save(tensors, metadata))


def _read_archive(path: str | Path) -> Weights:
    content = load_plain(path, str(path))
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: must hold a dictionary of weights, not a {type(content).__name__}")
    parameters = content.get("hyper_parameters")
    sigma = parameters.get("sigma") if isinstance(parameters, Mapping) else None
    holders = [name for name in _HOLDERS if isinstance(content.get(name), Mapping)]
    if not holders:
        return Weights(dict(content), {}, sigma, None)
    beside = {
        str(name): f"other weights; those of {holders[0]} are taken" if name in holders else "no weights"
        for name in content
        if name not in (holders[0], ARCHITECTURE)
    }
    return Weights(dict(content[holders[0]]), beside, sigma, content.get(ARCHITECTURE))


def _read_safetensors(path: str | Path) -> Weights:
    content = load_safetensors(path, str(path))
    sigma = content.get("hyper_parameters", {}).get("sigma")
    return Weights(content["state_dict"], {}, sigma, content.get(ARCHITECTURE))
