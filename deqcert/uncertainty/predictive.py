"""Predictions of a DEQ under samples of its weights, whose solves may start from one another."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deqcert.errors import require, require_count
from deqcert.models import DEQ
from deqcert.reuse import FixedPointCache
from deqcert.solvers import Solver
from deqcert.uncertainty.posterior import WeightPosterior

Weights = Mapping[str, Tensor]
"""``state_dict`` of a network."""


class Predictive(NamedTuple):
    """What S samples of the weights say of N images.

    Attributes:
        by_sample: Softmax under each sample, shape (S, N, classes).
        steps: Evaluations of the cell, shape (S, N), int64.
        converged: Whether the residual met the tolerance, shape (S, N).
    """

    by_sample: Tensor
    steps: Tensor
    converged: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Predictive probabilities, the mean over the samples, shape (N, classes)."""
        return self.by_sample.mean(dim=0)

    @property
    def entropy(self) -> Tensor:
        """Entropy of the predictive probabilities in nats, shape (N,): large where the network is not to be trusted."""
        entropy: Tensor = torch.special.entr(self.probabilities).sum(dim=1)
        return entropy


@torch.no_grad()
def weight_samples(
    network: DEQ,
    posterior: WeightPosterior,
    count: int,
    batches: Sequence[Tensor] = (),
    solver: Solver | None = None,
    generator: torch.Generator | None = None,
    scale: float = 1.0,
) -> list[dict[str, Tensor]]:
    """Sample weights, and compute the statistics of the batch norms under each sample.

    Args:
        network: In evaluation mode; has its own weights again afterwards.
        posterior: Of this network.
        count: Number of samples, >= 1.
        batches: Training images as the network was trained on them, with noise, shape (B, C, H, W) each; only a network
            without batch norms needs none.
        solver: Solver of their fixed points; None for the network's own.
        generator: On the CPU.
        scale: See :meth:`WeightPosterior.sample`; 0 gives the mean weights.

    Returns:
        Complete ``state_dict`` of each sample, on the device of the network.

    Raises:
        SettingError: A setting is out of range, or see :meth:`WeightPosterior.sample`.
    """
    require_count("count", count, minimum=1)
    norms = [each for each in network.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]
    given = "images" if batches else "none"
    require(bool(batches) or not norms, "batches", given, "must be training images, for the network has batch norms")
    cache, samples = FixedPointCache(), []
    with _lent(network):
        for _ in range(count):
            posterior.sample(network, generator, scale)
            with _averaging(norms):
                for position, x in enumerate(batches):
                    injection = network.inject(x)
                    start = network.initial_state(injection)
                    solve = solver or network.solver
                    solution = cache.solve(lambda z, i=injection: network.cell(z, i), start, solve, key=position)  # type: ignore[misc]
                    network.head(solution.value)
            samples.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
    return samples


@torch.no_grad()
def predictive(
    network: DEQ,
    weights: Sequence[Weights],
    images: Tensor,
    solver: Solver | None = None,
    cache: FixedPointCache | None = None,
    key: Hashable = None,
    batch_size: int = 256,
) -> Predictive:
    """Classify images under samples of the weights.

    Args:
        network: In evaluation mode; has its own weights again afterwards.
        weights: See :func:`weight_samples`; at least one.
        images: In [0, 1], with noise if wanted, shape (N, C, H, W).
        solver: Solver; None for the network's own.
        cache: Where solves start from, ``across_weights=True``: that of an image from its fixed point under the sample
            before. None for cold starts.
        key: What the images are called in the cache, such as their data set.
        batch_size: Images side by side, >= 1.

    Raises:
        SettingError: A setting is out of range, or see :class:`FixedPointCache`.
    """
    require(len(weights) >= 1, "weights", len(weights), "must be at least one sample")
    require(len(images) >= 1, "images", tuple(images.shape), "must be at least one")
    require_count("batch_size", batch_size, minimum=1)
    found: list[Predictive] = []
    with _lent(network):
        for number, x in enumerate(torch.split(images, batch_size)):
            rows = []
            for sample in weights:
                network.load_state_dict(sample)
                if cache is None:
                    logits, solution = network.solve(x, solver or network.solver)
                else:
                    logits, solution = cache.classify(network, x, solver, (key, number))
                rows.append((logits.softmax(dim=1), solution.steps, solution.converged))
            found.append(Predictive(*map(torch.stack, zip(*rows, strict=True))))
    return Predictive(*(torch.cat(parts, dim=1) for parts in zip(*found, strict=True)))


@contextmanager
def _lent(network: nn.Module) -> Iterator[None]:
    """Give a network in evaluation mode its weights back in the end."""
    require(not network.training, "network.training", network.training, "must be False: call network.eval()")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    try:
        yield
    finally:
        network.load_state_dict(before)


@contextmanager
def _averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let batch norms average over what they see.

    ``torch.optim.swa_utils.update_bn`` would put dropout into training mode as well.
    """
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # all batches alike
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
