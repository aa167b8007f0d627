"""What a checkpoint says of the network whose weights it has: plain data, in which nothing is imported or called.

Names and shapes of weights do not show everything that the function depends on: not the normalization of the images,
nor how many groups a group norm has. So checkpoints carry the settings of the network beside its weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from deqcert.errors import CheckpointError
from deqcert.models import MDEQ, CifarResNet, ResNet50
from deqcert.monotone import LBEN, ConvLBEN, ConvMonDEQ, IBPMonDEQ, MonDEQ

ARCHITECTURE = "architecture"
"""Where it stands in a checkpoint."""

_KINDS = (MDEQ, CifarResNet, ResNet50, MonDEQ, LBEN, ConvMonDEQ, ConvLBEN, IBPMonDEQ)
_NETWORKS: dict[str, type[nn.Module]] = {kind.__name__: kind for kind in _KINDS}
"""All that a checkpoint may choose from: a class named by a file would have to be imported."""

_OBJECTS = {"solver"}
"""Arguments of theirs that are not plain data: a string in their place would name a class too."""

_RETIRED = {"mixing_steps": 0}
"""Settings that networks no longer have, with the value that meant they did without."""


def architecture_of(network: nn.Module) -> dict[str, Any] | None:
    """Return class and settings of a network as plain data; None for a class that does not state its settings.

    A class states them in the attribute ``architecture``: constructor arguments that the function in evaluation mode
    depends on, by name, as numbers, strings and lists of numbers.
    """
    settings = getattr(network, ARCHITECTURE, None)
    return None if settings is None else {"network": type(network).__name__, "settings": dict(settings)}


def demand_plain_architecture(stated: Any, shown: str) -> None:
    """Raise :class:`CheckpointError` unless what a file states is None or of the form of :func:`architecture_of`."""
    if stated is None:
        return
    form = isinstance(stated, Mapping) and stated.keys() == {"network", "settings"}
    if not (form and isinstance(stated["network"], str) and isinstance(stated["settings"], Mapping)):
        raise CheckpointError(f"{shown}: {ARCHITECTURE} must have the name of a network and its settings")
    for name, value in stated["settings"].items():
        numbers = value if isinstance(value, list) else [value]
        plain = isinstance(value, str) or all(isinstance(each, int | float) for each in numbers)
        if not (isinstance(name, str) and plain):
            raise CheckpointError(f"{shown}: {ARCHITECTURE} must have numbers, strings and lists of numbers only")


def network_of(stated: Mapping[str, Any] | None) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """Return class and arguments of the network that a checked file states; None if that is not one of deqcert's."""
    if stated is None or stated["network"] not in _NETWORKS:
        return None
    kind = _NETWORKS[stated["network"]]
    known = inspect.signature(kind).parameters.keys() - _OBJECTS
    return kind, {name: value for name, value in stated["settings"].items() if name in known}


def architecture_differences(
    network: nn.Module, stated: Mapping[str, Any] | None, ignoring: Collection[str] = ()
) -> list[str]:
    """Name each setting of ``network`` that is another one in a checked file, with both values.

    Settings that the file does not state are taken for equal, so that a later version may have more; those named in
    ``ignoring`` need not be.
    """
    own = architecture_of(network)
    if own is None or stated is None:
        return []
    if own["network"] != stated["network"]:
        return [f"model.network is {own['network']}, must be {_shown(stated['network'])[1:-1]}"]
    known = own["settings"]
    return [
        f"model.network.init_args.{_shown(name)[1:-1]} = {known[name]!r}, must be {_shown(value)}"
        if name in known
        else f"{_shown(name)[1:-1]} = {_shown(value)} is not a setting of {own['network']} in this version of deqcert"
        for name, value in stated["settings"].items()
        if name not in ignoring and known.get(name, _RETIRED.get(name)) != value
    ]


def demand_same_architecture(
    network: nn.Module, checkpoint: Mapping[str, Any], field: str, ignoring: Collection[str] = ()
) -> None:
    """Raise :class:`CheckpointError` if a setting of ``network`` is another one in what a checked checkpoint states."""
    if differences := architecture_differences(network, checkpoint.get(ARCHITECTURE), ignoring):
        problems = "; ".join(differences)
        raise CheckpointError(f"{field}: the checkpoint is of another architecture than the model: {problems}")


def _shown(value: object) -> str:
    """Return what a file says as it may be shown: escape sequences could command the terminal."""
    return ascii(value)[:200]
