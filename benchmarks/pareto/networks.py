"""The shipped CIFAR-10 networks that the frontier is measured on."""

from __future__ import annotations

from pathlib import Path

from deqcert.checkpoints import network_weights, read_checkpoint
from deqcert.models import MDEQ
from deqcert.models.starts import StartKind

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
_SMALL = "cifar10_mdeq_small_cpu"

# Name in the tables: checkpoint, start. The mean start is the first part of the learned one.
NETWORKS: dict[str, tuple[str, StartKind]] = {
    "zero": (f"{_SMALL}_consistency", "zero"),
    "mean": (f"{_SMALL}_learned_start", "mean"),
    "learned": (f"{_SMALL}_learned_start", "learned"),
}


def load(name: str) -> MDEQ:
    """Return a network in evaluation mode with the start of that name."""
    directory, start = NETWORKS[name]
    weights = network_weights(read_checkpoint(CHECKPOINTS / directory / "model.ckpt")["state_dict"])
    network = MDEQ(dropout=0, start=start)
    wanted = network.state_dict().keys()
    unused = {key for key in weights if key not in wanted and not (start == "mean" and key.startswith("start."))}
    if unused:
        raise SystemExit(f"{directory} has weights that a {start} start has no use for: {sorted(unused)}")
    network.load_state_dict({key: weights[key] for key in wanted})
    return network.eval()
