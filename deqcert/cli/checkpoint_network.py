"""The network that a checkpoint states, as a configuration below all that are given."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from deqcert.checkpoints import read_checkpoint
from deqcert.checkpoints.architecture import ARCHITECTURE, network_of
from deqcert.cli.arguments import values_of


def with_checkpoint_network(args: Sequence[str]) -> list[str]:
    """Put the network of ``--ckpt_path`` before the configurations of a command line, which overrule it.

    Nothing is put there for ``fit``, a checkpoint that states no network of ours, or one that a configuration names.

    Args:
        args: Arguments, the verb first.

    Raises:
        CheckpointError: The checkpoint cannot be used.
    """
    verb, *rest = args
    path = (values_of(rest, "--ckpt_path") or [""])[-1]
    found = None
    if verb != "fit" and os.path.isfile(path):
        found = network_of(read_checkpoint(path).get(ARCHITECTURE))
    if found is None:
        return list(args)
    kind, settings = found
    network = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": settings}
    return [verb, "--config", json.dumps({"model": {"network": network}}), *rest]
