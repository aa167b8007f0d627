"""What all smoothing strategies share."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deqcert.errors import require, require_count
from deqcert.smoothing.engine import Engine, Execution
from deqcert.smoothing.noise import Purpose, noisy_batches
from deqcert.solvers import Anderson, Broyden, Solver
from deqcert.statistics import Votes


@dataclass(frozen=True)
class Smoothing(ABC):
    """Takes the votes of noisy copies of images.

    The votes of an image are a function of the classifier, the image, its index and these settings: not of the process,
    the order of the images or what was certified before or beside it, up to the rounding of the kernels.

    Args:
        sigma: Standard deviation of the noise, in pixels of [0, 1], > 0.
        n0: Noisy copies that select the class, >= 1.
        n: Fresh noisy copies that estimate its probability, >= 1.
        batch_size: Copies of an image side by side (serialized smoothing: width of the chain), >= 1.
        seed: Seed of all random streams, >= 0.
        execution: How copies are spread over launches.

    Raises:
        SettingError: If a setting is out of range.
    """

    sigma: float = 0.5
    n0: int = 100
    n: int = 10_000
    batch_size: int = 400
    seed: int = 0
    execution: Execution = Execution()

    def __post_init__(self) -> None:
        require(0 < self.sigma < float("inf"), "sigma", self.sigma, "must be a finite number > 0")
        for field in ("n0", "n", "batch_size"):
            require_count(field, getattr(self, field), minimum=1)
        require_count("seed", self.seed, minimum=0)

    @property
    @abstractmethod
    def label(self) -> str:
        """Short name for tables, e.g. ``SRS-3A``."""

    def engine(self, classifier: nn.Module, image: Tensor) -> Engine:
        """Prepare ``classifier`` for :meth:`vote_group`, for images like ``image``, shape (C, H, W).

        Raises:
            SettingError: If the classifier is in training mode: its labels would depend on the batch.
        """
        return Engine(classifier, self.execution, image, self.batch_size)

    def vote(self, classifier: nn.Module, image: Tensor, index: int, label: int) -> Votes:
        """Classify noisy copies of one image.

        Args:
            classifier: Base classifier in evaluation mode, on the device of ``image``.
            image: Clean image in [0, 1], shape (C, H, W).
            index: Original index of the image in its split.
            label: True class.

        Returns:
            The votes.

        Raises:
            SettingError: If the classifier is in training mode, or not of the kind that the strategy needs.
        """
        return self.vote_group(self.engine(classifier, image), image[None], [index], [label])[0]

    @abstractmethod
    def vote_group(self, engine: Engine, images: Tensor, indices: Sequence[int], labels: Sequence[int]) -> list[Votes]:
        """Classify noisy copies of E images side by side, best ``engine.images`` of them.

        Args:
            engine: From :meth:`engine`.
            images: Clean images in [0, 1], shape (E, C, H, W), on the device of the classifier.
            indices: Their original indices, E of them.
            labels: Their true classes, E of them.

        Returns:
            The votes of each image.

        Raises:
            SettingError: If the classifier is not of the kind that the strategy needs.
        """

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the votes besides classifier and data, JSON-able."""
        description: dict[str, Any] = _describe(self)
        return description

    def _noisy_batches(self, image: Tensor, index: int, purpose: Purpose, count: int) -> Iterator[Tensor]:
        return noisy_batches(
            image, index, purpose, sigma=self.sigma, count=count, batch_size=self.batch_size, seed=self.seed
        )

    def _noisy_groups(self, images: Tensor, indices: Sequence[int], purpose: Purpose, count: int) -> Iterator[Tensor]:
        """Yield the noisy batches of E images together, copy by copy: row i·E + e is copy i of image e."""
        streams = [
            self._noisy_batches(image, index, purpose, count) for image, index in zip(images, indices, strict=True)
        ]
        for batches in zip(*streams, strict=True):
            yield torch.stack(batches, dim=1).flatten(0, 1)


def solver_label(solver: Solver) -> str:
    """Return the field's name of a solver: steps, then A(nderson), B(royden) or N (plain)."""
    letter = "A" if isinstance(solver, Anderson) else "B" if isinstance(solver, Broyden) else "N"
    return f"{solver.max_steps}{letter}"


def _describe(value: Any) -> Any:
    """Turn nested configuration dataclasses into plain data that names the classes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    return value
