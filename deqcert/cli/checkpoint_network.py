"""The network that a checkpoint states, as a configuration below all that are given."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from deqcert.checkpoints import read_checkpoint
from deqcert.checkpoints.architecture import ARCHITECTURE, network_of

_VERBS = ("certify", "validate", "test")
_OPTION = "--ckpt_path"


def with_checkpoint_network(args: Sequence[str]) -> list[str]:
    """Put the network of ``--ckpt_path`` before the configurations of a command line, which overrule it.

    Nothing is put there for other verbs, a checkpoint that states no network of ours, or one that a configuration
    file names.

    Args:
        args: Arguments with a verb.

    Raises:
        CheckpointError: The checkpoint cannot be used.
    """
    place = next((place for place, argument in enumerate(args) if argument in _VERBS), None)
    path = _checkpoint(args)
    if place is None or not os.path.isfile(path):
        return list(args)
    found = network_of(read_checkpoint(path).get(ARCHITECTURE))
    if found is None:
        return list(args)
    kind, settings = found
    network = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": settings}
    config = json.dumps({"model": {"network": network}})
    return [*args[: place + 1], "--config", config, *args[place + 1 :]]


def _checkpoint(args: Sequence[str]) -> str:
    """Return the last value of ``--ckpt_path``; empty if there is none."""
    path = ""
    for position, argument in enumerate(args):
        option, equals, value = argument.partition("=")
        if option == _OPTION:
            path = value if equals else "".join(args[position + 1 : position + 2])
    return path
