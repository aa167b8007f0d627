"""A Gaussian over the weights of a network, from the iterates of SGD."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deqcert.checkpoints import save_checkpoint
from deqcert.checkpoints.files import load_plain
from deqcert.errors import CheckpointError, SettingError, require, require_count, require_nonnegative


class WeightPosterior:
    r"""SWAG: a Gaussian with mean and covariance of weights that SGD with a constant learning rate passes through.

    Maddox et al., "A simple baseline for Bayesian uncertainty in deep learning", NeurIPS 2019. After n snapshots with
    mean m the weights are distributed as

    .. math:: N(m, (\Sigma_{diag} + D D^T / (K - 1)) / 2),

    with the variance of each weight over all snapshots, and as columns of D the last K = min(rank, n) deviations of a
    snapshot from the mean so far. All parameters of a module take part, in float32 on the CPU: rank + 2 times its size.
    Buffers do not: the statistics of batch norms belong to one sample, see :func:`weight_samples`.

    Args:
        rank: Deviations to remember at most, >= 2.

    Attributes:
        snapshots: Number n of snapshots.

    Raises:
        SettingError: A setting is out of range.
    """

    def __init__(self, rank: int = 20) -> None:
        require_count("rank", rank, minimum=2)
        self.rank = rank
        self.snapshots = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._mean = self._squares = torch.zeros(0)
        self._deviations: list[Tensor] = []

    @torch.no_grad()
    def collect(self, module: nn.Module) -> None:
        """Take in the present weights of a module; usually once per epoch.

        Raises:
            SettingError: The module has no weights, others than the one before, or some that are not finite.
        """
        weights = dict(module.named_parameters())
        require(bool(weights), "module", type(module).__name__, "must have parameters")
        if self.snapshots == 0:
            self._shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        self._demand_same(weights, module)
        found = torch.cat([weight.flatten().to("cpu", torch.float32) for weight in weights.values()])
        require(bool(found.isfinite().all()), "module", type(module).__name__, "must have finite weights")
        if self.snapshots == 0:
            self._mean, self._squares = torch.zeros_like(found), torch.zeros_like(found)
        self.snapshots += 1
        # Welford's update: the difference of two large sums would lose the digits of a small variance.
        change = found - self._mean
        self._mean = self._mean + change / self.snapshots
        deviation = found - self._mean
        self._squares = self._squares + change * deviation
        self._deviations = [*self._deviations, deviation][-self.rank :]

    @torch.no_grad()
    def sample(self, module: nn.Module, generator: torch.Generator | None = None, scale: float = 1.0) -> None:
        """Write a sample of the weights into a module.

        Args:
            module: Has parameters of the same names and shapes as those collected.
            generator: On the CPU; the same sample on every device.
            scale: Factor of the standard deviation, >= 0; 0 writes the mean (SWA).

        Raises:
            SettingError: There are fewer than two snapshots, the module is another, or ``scale`` is out of range.
        """
        require(self.snapshots >= 2, "snapshots", self.snapshots, "must be >= 2; collect(module) takes one")
        require_nonnegative("scale", scale)
        weights = dict(module.named_parameters())
        self._demand_same(weights, module)
        columns = len(self._deviations)
        diagonal = (self._squares / self.snapshots).sqrt() * torch.randn(len(self._mean), generator=generator)
        low_rank = torch.randn(columns, generator=generator) @ torch.stack(self._deviations) / math.sqrt(columns - 1)
        sampled = self._mean + scale / math.sqrt(2) * (diagonal + low_rank)
        parts = torch.split(sampled, [weight.numel() for weight in weights.values()])
        for weight, part in zip(weights.values(), parts, strict=True):
            weight.copy_(part.view_as(weight))

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors and plain data."""
        return {
            "rank": self.rank,
            "snapshots": self.snapshots,
            "shapes": {name: list(shape) for name, shape in self._shapes.items()},
            "mean": self._mean,
            "squares": self._squares,
            "deviations": torch.stack(self._deviations) if self._deviations else torch.zeros(0, 0),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what :meth:`state_dict` returned.

        Raises:
            CheckpointError: It did not return this.
        """
        try:
            other = WeightPosterior(state["rank"])
            other._shapes = {name: tuple(shape) for name, shape in state["shapes"].items()}
            other.snapshots, other._mean, other._squares = state["snapshots"], state["mean"], state["squares"]
            other._deviations = list(state["deviations"])
            require_count("snapshots", other.snapshots, minimum=0)
            size = sum(map(math.prod, other._shapes.values()))
            vectors = [other._mean, other._squares, *other._deviations]
            whole = all(each.shape == (size,) and each.dtype == torch.float32 for each in vectors)
            columns = min(other.rank, other.snapshots)
            require(whole, "sizes", size, "must be those of the weights")
            require(len(other._deviations) == columns, "deviations", len(other._deviations), f"must be {columns}")
            usable = all(bool(each.isfinite().all()) for each in vectors) and bool((other._squares >= 0).all())
            require(usable, "values", "some", "must be finite, squares >= 0")
        except (KeyError, TypeError, AttributeError, SettingError) as error:
            raise CheckpointError(f"not the state of a WeightPosterior: {type(error).__name__} {error}") from error
        vars(self).update(vars(other))

    def save(self, path: str | Path) -> None:
        """Write a file, in one step, that loads with ``weights_only=True``."""
        save_checkpoint(self.state_dict(), path)

    @classmethod
    def load(cls, path: str | Path) -> WeightPosterior:
        """Read a file that :meth:`save` wrote.

        Raises:
            CheckpointError: There is no such file, or it is damaged or something else.
        """
        shown = f"path = {str(path)!r}"
        state, posterior = load_plain(path, shown, "a file of WeightPosterior.save"), cls()
        try:
            posterior.load_state_dict(state)
        except CheckpointError as error:
            raise CheckpointError(f"{shown}: {error}") from error
        return posterior

    def _demand_same(self, weights: Mapping[str, Tensor], module: nn.Module) -> None:
        """Refuse a module with other names or shapes of parameters, or in another order."""
        shapes = [(name, tuple(weight.shape)) for name, weight in weights.items()]
        allowed = "must have parameters of the names and shapes that were collected"
        require(shapes == list(self._shapes.items()), "module", type(module).__name__, allowed)
