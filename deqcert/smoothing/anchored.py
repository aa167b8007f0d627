"""Smoothing of few solver steps from an anchored start: independent votes without an audit."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import get_args

from torch import Tensor, nn

from deqcert.errors import SettingError, require
from deqcert.models import DEQ
from deqcert.models.starts import StartKind
from deqcert.smoothing.base import solver_label
from deqcert.smoothing.engine import Engine
from deqcert.smoothing.standard import Standard
from deqcert.solvers import Anderson, Solver


@dataclass(frozen=True)
class Anchored(Standard):
    """Standard smoothing of f_k: k solver steps from a start that depends on the one noisy copy and the checkpoint.

    f_k is a fixed function of one image, so the labels of noisy copies are independent and the theorem of Cohen,
    Rosenfeld and Kolter (ICML 2019) applies as it stands: no chain, no audit, every radius. Certificates are about the
    smoothed f_k (:class:`deqcert.models.AnchoredClassifier`), not about the converged network, and f_k is what must be
    deployed.

    Args:
        sigma: Standard deviation of the noise, in pixels of [0, 1], > 0.
        n0: Noisy copies that select the class, >= 1.
        n: Fresh noisy copies that estimate its probability, >= 1.
        batch_size: Copies of an image per batch of noise, >= 1.
        seed: Seed of all random streams, in [0, 2^64).
        execution: How copies are spread over launches.
        chains: Parts with noise of their own that the n copies of an image are split into, from 1 to n.
        noise: "float32" noise is added as published, which rounds; "quantised" noise, for 8-bit images, is off by a
            bound that certificates subtract (docs/floating_point.md).
        solver: The k steps.
        stopping: When an image has votes enough, looked at after each batch: n then is the most that it takes, and
            certificates use a bound that holds wherever sampling stops, if it looks at them. null takes n copies. Needs
            chains = 1 and n >= n0.
        start: Start that the network must have: "zero", "mean" or "learned".

    Raises:
        SettingError: If a setting is out of range.
    """

    solver: Solver = Anderson(max_steps=3)
    start: StartKind = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.start in get_args(StartKind), "start", self.start, f"must be one of {get_args(StartKind)}")

    @property
    def label(self) -> str:
        """E.g. ``anchored-3A-mean``."""
        return f"anchored-{solver_label(self.solver)}-{self.start}"

    @property
    def anchored(self) -> bool:
        """True."""
        return True

    def engine(self, classifier: nn.Module, image: Tensor) -> Engine:
        """Prepare ``classifier``; see :meth:`Smoothing.engine`.

        Raises:
            SettingError: If it is no DEQ, has another start, or one that was never computed.
        """
        if not isinstance(classifier, DEQ):
            raise SettingError(
                "smoothing", "Anchored", f"needs a DEQ; certify a {type(classifier).__name__} by Standard"
            )
        kind, sigma = classifier.start_kind, classifier.start_sigma
        require(
            self.start == kind,
            "smoothing.start",
            self.start,
            f"must be {kind}, as the network has (model.network.start)",
        )
        if sigma == 0:
            raise SettingError(
                "smoothing.start", self.start, "is missing from the checkpoint; deqcert anchor computes it"
            )
        if sigma is not None and sigma != self.sigma:
            warnings.warn(
                f"The {kind} start was computed at sigma = {sigma}, but is certified at sigma = {self.sigma}.",
                stacklevel=2,
            )
        return super().engine(classifier, image)
