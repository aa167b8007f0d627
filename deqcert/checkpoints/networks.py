"""The network in a checkpoint, built from what the checkpoint states about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deqcert.checkpoints.architecture import ARCHITECTURE, PREFIX, demand_same_architecture, network_of
from deqcert.checkpoints.files import demand_plain, demand_usable_weights, printable, read_checkpoint
from deqcert.errors import CheckpointError


class LoadedNetwork(NamedTuple):
    """What :func:`load_network` returns.

    Attributes:
        network: The network in evaluation mode, on the CPU unless it was given on another device.
        sigma: Standard deviation of the noise that it was trained with; None if the checkpoint does not say.
    """

    network: nn.Module
    sigma: float | None


def network_weights(weights: Mapping[str, Tensor], field: str = "ckpt_path") -> dict[str, Tensor]:
    """Return the ``state_dict`` of a checkpoint by the network's own names.

    Raises:
        CheckpointError: A weight is not the network's.
    """
    for name in weights:
        if not name.startswith(PREFIX):
            raise CheckpointError(f"{field}: {printable(name)} is not a weight of a network of ours; convert it first")
    return {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}


def load_network(
    source: str | Path | Mapping[str, Any], network: nn.Module | None = None, field: str = "ckpt_path"
) -> LoadedNetwork:
    """Return the network of a checkpoint, ready to classify.

    Args:
        source: File written by ``deqcert fit``, ``convert`` or ``anchor``, or what :func:`read_checkpoint` returned.
        network: Takes the weights; None builds the network that the checkpoint states.
        field: Setting that named the checkpoint, for the error.

    Raises:
        CheckpointError: The checkpoint cannot be used, is of another architecture than ``network``, or does not state
            a network of deqcert while none is given.
    """
    if isinstance(source, Mapping):
        demand_plain(source, field)
    checkpoint = source if isinstance(source, Mapping) else read_checkpoint(source, field)
    weights = network_weights(checkpoint["state_dict"], field)
    if network is None:
        with torch.device("meta"):  # a file could state a network far larger than itself
            demand_usable_weights(_stated_network(checkpoint, field).state_dict(), weights, field)
        network = _stated_network(checkpoint, field)
    else:
        demand_same_architecture(network, checkpoint, field)
        demand_usable_weights(network.state_dict(), weights, field)
    network.load_state_dict(weights)
    return LoadedNetwork(network.eval(), checkpoint.get("hyper_parameters", {}).get("sigma"))


def _stated_network(checkpoint: Mapping[str, Any], field: str) -> nn.Module:
    found = network_of(checkpoint.get(ARCHITECTURE))
    if found is None:
        raise CheckpointError(f"{field}: states no network of deqcert; build the network and pass it too")
    kind, settings = found
    try:
        return kind(**settings)
    except Exception as error:  # constructors raise whatever wrong types lead to
        raise CheckpointError(f"{field}: states a network that cannot be built: {error}") from error
