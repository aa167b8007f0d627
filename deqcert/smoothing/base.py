"""What all smoothing strategies share."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deqcert.errors import is_real, require, require_count
from deqcert.models import DEQ
from deqcert.seeding import Purpose, require_seed
from deqcert.smoothing.checks import SAMPLES, checked
from deqcert.smoothing.engine import Engine, Execution, Labels
from deqcert.smoothing.labels import count_labels
from deqcert.smoothing.noise import demand_unit_interval, noisy_batches
from deqcert.smoothing.tally import Tally
from deqcert.solvers import Anderson, Broyden, LearnedMixing, Solver
from deqcert.statistics import ChainAudit, ChainLabels, Noise, Stopping, Votes, join_chains, noise_error
from deqcert.statistics.chains import label_type
from deqcert.statistics.noise_error import LARGEST_SIGMA

_MOST = 10**9
"""Largest number of copies: far beyond use, and within what the exact bounds compute."""


class AuditTask(NamedTuple):
    """A chain's share of the audit, still to be labelled.

    Attributes:
        image: Clean image in [0, 1], shape (C, H, W).
        index: Its original index.
        chain: Number of the chain.
        selected: The class A of the image.
        members: Positions within the chain's estimation copies, sorted; of a sequential audit in the order in which
            they are audited.
        agreeing: Copies with cheap label A, N_A, of all chains of the image.
    """

    image: Tensor
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    chain: int
    selected: int
    members: NDArray[np.int64]
    agreeing: int


@dataclass(frozen=True)
class Smoothing(ABC):
    """Takes the votes of noisy copies of images.

    The votes of an image are a function of the classifier, the image, its index and these settings: not of the process,
    the order of the images or what was certified before or beside it, up to the rounding of the kernels.

    The copies of an image are one chain, or several with noise of their own, which different processes can label; see
    :mod:`deqcert.statistics.chains` for why that is sound.

    Args:
        sigma: Standard deviation of the noise, in pixels of [0, 1], > 0.
        n0: Noisy copies that select the class, >= 1.
        n: Fresh noisy copies that estimate its probability, >= 1.
        batch_size: Copies of an image side by side (serialized smoothing: width of the chain), >= 1.
        seed: Seed of all random streams, in [0, 2^64).
        execution: How copies are spread over launches.
        chains: Independent chains that the n copies of an image are split into, from 1 to n.
        noise: "float32" noise is added as published, which rounds; "quantised" noise, for 8-bit images, is off by a
            bound that certificates subtract (docs/floating_point.md).

    Raises:
        SettingError: If a setting is out of range.
    """

    sigma: float = 0.5
    n0: int = 100
    n: int = 10_000
    batch_size: int = 400
    seed: int = 0
    execution: Execution = Execution()
    chains: int = 1
    noise: Noise = "float32"

    def __post_init__(self) -> None:
        require(
            is_real(self.sigma) and 0 < self.sigma < float("inf"), "sigma", self.sigma, "must be a finite number > 0"
        )
        for field in ("n0", "n", "batch_size", "chains"):
            require_count(field, getattr(self, field), minimum=1)
            require(getattr(self, field) <= _MOST, field, getattr(self, field), f"must be <= {_MOST}")
        require_seed(self.seed)
        require(self.chains <= self.n, "chains", self.chains, f"must be at most n = {self.n}")
        noise_error(self.noise, pixels=1)  # refuses other names
        if self.noise == "quantised":
            require(self.sigma <= LARGEST_SIGMA, "sigma", self.sigma, f"must be <= {LARGEST_SIGMA} for quantised noise")
        if self.stopping is not None:
            require(self.n >= self.n0, "n", self.n, f"must be at least n0 = {self.n0} with stopping: it is a budget")
            require(self.chains == 1, "chains", self.chains, "must be 1 with stopping: an image stops by all its votes")

    @property
    @abstractmethod
    def label(self) -> str:
        """Short name for tables, e.g. ``SRS-3A``."""

    def label_for(self, classifier: nn.Module) -> str:
        """Short name for tables of runs on ``classifier``: without a solver if it has none."""
        return self.label

    @property
    @abstractmethod
    def base_solver(self) -> Solver:
        """Solver that makes a DEQ the base classifier f that certificates are about."""

    @property
    def anchored(self) -> bool:
        """Whether that solver starts from the network's anchor; from a cold start otherwise."""
        return False

    @property
    def stopping(self) -> Stopping | None:
        """When an image has votes enough, looked at after each batch; None if it always takes n copies.

        A strategy whose labels are independent labels of the base classifier may make this a setting. n then is a
        budget, and the copies are the first ones of those that n fixed would have.
        """
        return None

    @property
    def anytime(self) -> bool:
        """Whether sampling of an image may stop because of its outcome; see :class:`~deqcert.statistics.Votes`."""
        return self.stopping is not None and self.stopping.anytime

    def base_labels(self, engine: Engine, x: Tensor) -> Labels:
        """Label copies ``x``, shape (B, C, H, W), by the base classifier f."""
        return engine.label(x, self.base_solver, anchored=self.anchored)

    def engine(self, classifier: nn.Module, image: Tensor) -> Engine:
        """Prepare ``classifier`` for :meth:`vote_group`, for images like ``image``, shape (C, H, W).

        Raises:
            SettingError: If the classifier is in training mode, for images of other channels or, on noisy samples of
                the image, no function of one image (:func:`~deqcert.smoothing.checks.checked`); or it lacks the learned
                mixing that the solver needs.
            DataError: If the image is not one of floats in [0, 1], in which sigma and radius are measured.
        """
        demand_unit_interval(image)
        # A grey image would pass through a network for color by broadcasting.
        channels = getattr(classifier, "image_channels", len(image))
        require(
            len(image) == channels, "image", tuple(image.shape), f"must have {channels} channels, as the classifier"
        )
        if isinstance(classifier, DEQ):
            self.base_solver.bound_to(classifier.mixer)  # refuses before any work
        samples = noisy_batches(
            image,
            0,
            Purpose.CHECK,
            sigma=self.sigma,
            count=SAMPLES,
            batch_size=SAMPLES,
            seed=self.seed,
            noise=self.noise,
        )
        network = checked(classifier, next(samples), self.base_solver, self.anchored)
        return Engine(network, self.execution, image, self.batch_size)

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
            SettingError: If :meth:`engine` refuses the classifier, or it is not of the kind that the strategy needs.
            DataError: If the image is not one of floats in [0, 1], in which sigma and radius are measured.
        """
        return self.vote_group(self.engine(classifier, image), image[None], [index], [label])[0]

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
            DataError: If the images are not floats in [0, 1], in which sigma and radius are measured.
        """
        demand_unit_interval(images)
        chains = [self.label_chain(engine, images, indices, chain) for chain in range(self.chains)]
        parts = list(zip(*chains, strict=True))
        tasks = [self.audit_tasks(image, given) for image, given in zip(images, parts, strict=True)]
        audited = iter(self.audit_chains(engine, [task for each in tasks for task in each or ()]))
        audits = [None if each is None else list(islice(audited, len(each))) for each in tasks]
        return [
            self.joined(image, label, given, audit)
            for image, label, given, audit in zip(images, labels, parts, audits, strict=True)
        ]

    def joined(
        self, image: Tensor, label: int, labels: Sequence[ChainLabels], audits: Sequence[ChainAudit] | None
    ) -> Votes:
        """Add up the chains of one image.

        Args:
            image: The image, shape (C, H, W).
            label: Its true class.
            labels: The labels of every chain, in the order of their numbers.
            audits: Their shares of the audit, in the same order; None if the labels need no audit.
        """
        error = noise_error(self.noise, image.numel())
        return join_chains(label, self.n0, labels, audits, self.anytime, sigma=self.sigma, noise_error=error)

    @abstractmethod
    def label_chain(self, engine: Engine, images: Tensor, indices: Sequence[int], chain: int) -> list[ChainLabels]:
        """Label the copies of one chain of each of E images; the first chain labels the selection copies too.

        Args:
            engine: From :meth:`engine`.
            images: Clean images in [0, 1], shape (E, C, H, W), on the device of the classifier.
            indices: Their original indices, E of them.
            chain: Number of the chain, in [0, chains).

        Raises:
            SettingError: If the classifier is not of the kind that the strategy needs.
        """

    def audit_tasks(self, image: Tensor, labels: Sequence[ChainLabels]) -> list[AuditTask] | None:
        """Draw the audit subset of one image once the labels of all its chains are known: one task for each chain.

        None if the labels are those of the base classifier itself, which need no audit.
        """
        return None

    def audit_chains(self, engine: Engine, tasks: Sequence[AuditTask]) -> list[ChainAudit]:
        """Label the members of each task by the base classifier, on the same noise."""
        return []

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the votes besides classifier and data, JSON-able."""
        description: dict[str, Any] = _describe(self)
        return description

    def copies(self, purpose: Purpose, chain: int) -> int:
        """Return how many copies of an image a chain has for ``purpose``."""
        if purpose is Purpose.SELECTION:
            return self.n0 if chain == 0 else 0
        return self.n // self.chains + (chain < self.n % self.chains)

    def _noisy_batches(self, image: Tensor, index: int, purpose: Purpose, chain: int = 0) -> Iterator[Tensor]:
        return noisy_batches(
            image,
            index,
            purpose,
            sigma=self.sigma,
            count=self.copies(purpose, chain),
            batch_size=self.batch_size,
            seed=self.seed,
            chain=chain,
            noise=self.noise,
        )

    def _label_copies(
        self,
        label: Callable[[Tensor], Labels],
        engine: Engine,
        images: Tensor,
        indices: Sequence[int],
        chain: int,
    ) -> list[ChainLabels]:
        """Label selection and estimation copies of one chain of each image by ``label``, batch by batch."""
        started = time.perf_counter()
        given = self._labels_of_images(label, images, indices, chain)
        seconds = (time.perf_counter() - started) / sum(len(each.labels) for each in given)
        selecting = self.copies(Purpose.SELECTION, chain)
        return [
            ChainLabels(
                index=index,
                chain=chain,
                selection=count_labels(each.labels[:selecting].numpy(), engine.num_classes),
                labels=each.labels[selecting:].numpy().astype(label_type(engine.num_classes)),
                nfe=int(each.steps.sum()),
                residual=float(each.residual[selecting:].mean()),
                seconds=seconds * len(each.labels),
            )
            for each, index in zip(given, indices, strict=True)
        ]

    def _labels_of_images(
        self, label: Callable[[Tensor], Labels], images: Tensor, indices: Sequence[int], chain: int
    ) -> list[Labels]:
        """Return the labels of each of E images, selection first; an image that is settled leaves the launches."""
        tallies = [Tally(self.stopping, self.n) for _ in indices]
        going = tallies
        for purpose in Purpose.SELECTION, Purpose.ESTIMATION:
            streams = {
                tally: self._noisy_batches(image, index, purpose, chain)
                for tally, image, index in zip(tallies, images, indices, strict=True)
            }
            for _ in range(0, self.copies(purpose, chain), self.batch_size):
                # Copy by copy: row i·E + e is copy i of image e.
                noisy = torch.stack([next(streams[tally]) for tally in going], dim=1).flatten(0, 1)
                labels = label(noisy)
                for position, tally in enumerate(going):
                    tally.add(Labels(*(tensor[position :: len(going)] for tensor in labels)), purpose)
                going = [tally for tally in going if not tally.settled]
                if not going:
                    break
        return [tally.joined() for tally in tallies]


def solver_label(solver: Solver) -> str:
    """Return the field's name of a solver: steps, then A(nderson), B(royden), N (plain); M is learned mixing.

    kA and kN return X_k, after k evaluations of F; kB the best of X_1, ..., X_k, after k + 1.
    """
    letters = {Anderson: "A", Broyden: "B", LearnedMixing: "M"}
    letter = next((letter for kind, letter in letters.items() if isinstance(solver, kind)), "N")
    return f"{solver.max_steps}{letter}"


def _describe(value: Any) -> Any:
    """Turn nested configuration dataclasses into plain data that names the classes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        kind = type(value)  # deqcert's own classes may move to other files
        prefix = "" if kind.__module__.startswith("deqcert.") else f"{kind.__module__}."
        return {"class": f"{prefix}{kind.__qualname__}", **fields}
    return value
