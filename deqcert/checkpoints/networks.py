"""The network in a checkpoint, built from what the checkpoint states about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deqcert.checkpoints.architecture import ARCHITECTURE, demand_same_architecture, network_of
from deqcert.checkpoints.files import PREFIX, demand_usable_weights, printable, read_checkpoint
from deqcert.errors import CheckpointError


class LoadedNetwork(NamedTuple):
    """A network in evaluation mode, and the sigma of the noise it was trained with; None if its checkpoint has none."""

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


def load_network(path: str | Path, network: nn.Module | None = None) -> LoadedNetwork:
    """Return the network of a file written by ``deqcert fit``, ``convert`` or ``anchor``, ready to classify.

    ``network`` takes the weights; without it the network that the checkpoint states is built, on the CPU. Weights alone
    are read too, see :func:`read_checkpoint`; ``path`` may be ``deqcert:NAME``.

    Raises:
        CheckpointError: The checkpoint cannot be used, is of another architecture than ``network``, or does not state
            a network of deqcert while none is given.
    """
    checkpoint = read_checkpoint(path)
    weights = network_weights(checkpoint["state_dict"])
    if network is None:
        with torch.device("meta"):  # a file could state a network far larger than itself
            demand_usable_weights(_stated_network(checkpoint).state_dict(), weights)
        network = _stated_network(checkpoint)
    else:
        demand_same_architecture(network, checkpoint, "ckpt_path")
        demand_usable_weights(network.state_dict(), weights)
    network.load_state_dict(weights)
    return LoadedNetwork(network.eval(), checkpoint.get("hyper_parameters", {}).get("sigma"))


def _stated_network(checkpoint: Mapping[str, Any]) -> nn.Module:
    found = network_of(checkpoint.get(ARCHITECTURE))
    if found is None:
        raise CheckpointError("ckpt_path: states no network of deqcert; --config must name one, in Python pass one too")
    kind, settings = found
    try:
        return kind(**settings)
    except Exception as error:  # constructors raise whatever wrong types lead to
        raise CheckpointError(f"ckpt_path: states a network that cannot be built: {error}") from error
