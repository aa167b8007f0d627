"""Votes of small networks, and the noisy samples they are about."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from deqcert.models import MDEQ
from deqcert.seeding import Purpose
from deqcert.smoothing import Sampling, SmoothedClassifier, Smoothing, Stream
from deqcert.statistics import Votes

SMALL = {"n0": 10, "n": 50, "batch_size": 8}
CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "digits_mdeq_tiny" / "model.ckpt"


def shipped_network(start="zero"):
    """The shipped digits MDEQ: near its decision boundaries a prediction says something."""
    settings = {"channels": (8, 16), "head_channels": (4, 8), "final_channels": 64, "expansion": 3}
    network = MDEQ(**settings, image_channels=1, image_size=8, mean=(0.305,), std=(0.376,), start=start)
    weights = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)["state_dict"]
    weights = {name.removeprefix("network."): value for name, value in weights.items()}
    network.load_state_dict(weights, strict=start == "zero")
    return network.eval()


def smoothed(network: nn.Module, sigma: float = 0.5, **settings) -> SmoothedClassifier:
    """Return g; settings are those of :class:`Smoothing`."""
    return Smoothing(sigma=sigma, **settings).of(network)


def votes_of(sampling: Sampling, g: SmoothedClassifier, image: Tensor, index: int = 0, seed: int = 0) -> Votes:
    return sampling.votes(g, image, Stream(seed, index))


def group_votes_of(sampling: Sampling, g: SmoothedClassifier, images: Tensor, indices=None) -> list[Votes]:
    """Take votes side by side; images without indices count from 0."""
    streams = [Stream(0, index) for index in (range(len(images)) if indices is None else indices)]
    return sampling.group_votes(g, sampling.engine(g, images[0]), images, streams)


def recorded_votes(sampling: Sampling, g: SmoothedClassifier, image: Tensor, index: int = 0) -> Votes:
    """Take votes of a ThresholdDEQ, which then has recorded their own calls, and not those of the checks before."""
    engine = sampling.engine(g, image)
    g.base.network.rows.clear()
    g.base.network.inputs.clear()
    return sampling.group_votes(g, engine, image[None], [Stream(0, index)])[0]


def measurement(votes: Votes, *without: str) -> dict[str, object]:
    """Return what is counted: everything but the time."""
    return {key: value for key, value in votes.to_json().items() if key not in ("seconds", *without)}


def noisy(
    sampling: Sampling, g: SmoothedClassifier, image: Tensor, index: int = 0, purpose: Purpose = Purpose.ESTIMATION
) -> Tensor:
    """Return the noisy samples of an image, shape (n, C, H, W)."""
    count = sampling.n0 if purpose is Purpose.SELECTION else sampling.n
    return torch.cat(list(g.noisy(image, Stream(0, index), purpose, count, sampling.batch_size)))
