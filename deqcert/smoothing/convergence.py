"""How fast a DEQ converges on noisy samples and what SRS predictions are worth: the price of certifying.

Serialized sampling pays for each noisy sample with a few warm-started steps and for each wrong prediction among them
with audited samples. Both can be measured on a handful of images before any certification.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deqcert.errors import require, require_count
from deqcert.models import DEQ
from deqcert.seeding import Purpose, mixed_seed, require_seed
from deqcert.smoothing.base_classifier import SolvedClassifier
from deqcert.smoothing.checks import demand_evaluation_mode
from deqcert.smoothing.noise import Stream, noisy_batches
from deqcert.smoothing.serialized import Serialized
from deqcert.smoothing.smoothed import SmoothedClassifier
from deqcert.solvers import Anderson, Solver
from deqcert.statistics import FixedAudit, Votes, clopper_pearson_lower, clopper_pearson_upper

_STREAM = 1


@dataclass(frozen=True)
class ConvergenceSettings:
    """What is measured.

    Args:
        sigma: Standard deviation of the noise, in pixels of [0, 1], > 0.
        solver: Cold-start solver that defines the base classifier; its max_steps is the length of the curves. SRS
            predictions come from the same solver with fewer steps.
        mismatch_steps: Warm-started steps whose predictions are audited, distinct, from 1 to max_steps.
        copies: Noisy samples per image, audited where the class is the selected one, >= 1.
        batch_size: Noisy samples side by side, the width of the chain, >= 1; the curves take as many of each image.
        seed: Seed of the noise, in [0, 2^64).

    Raises:
        SettingError: If a setting is out of range.
    """

    sigma: float = 0.5
    solver: Solver = Anderson(max_steps=30)
    mismatch_steps: tuple[int, ...] = (1, 2, 3, 5)
    copies: int = 64
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.sigma < float("inf"), "sigma", self.sigma, "must be a finite number > 0")
        longest = self.solver.max_steps
        require(
            all(1 <= steps <= longest for steps in self.mismatch_steps)
            and len(set(self.mismatch_steps)) == len(self.mismatch_steps),
            "mismatch_steps",
            self.mismatch_steps,
            f"must be distinct integers from 1 to max_steps = {longest}",
        )
        require_count("copies", self.copies, minimum=1)
        require_count("batch_size", self.batch_size, minimum=1)
        require_seed(self.seed)

    @property
    def stream_seed(self) -> int:
        """Seed of the noise itself: never that of a certification.

        Whoever chooses solver steps by this measurement has looked at its noise; certificates need fresh one.
        """
        return mixed_seed(_STREAM, self.seed)

    @property
    def width(self) -> int:
        """Noisy samples in the first batch of a chain."""
        return min(self.batch_size, self.copies)

    def serialized(self, steps: int) -> Serialized:
        """Return the strategy whose SRS predictions take ``steps`` warm-started steps and are all audited."""
        return Serialized(
            n0=self.width,
            n=self.copies,
            batch_size=self.batch_size,
            proposal=_unstopped(self.solver, steps),
            audit=FixedAudit(self.copies),
        )


class MismatchCount(NamedTuple):
    """SRS predictions of the selected class that f does not share, pooled over images.

    Attributes:
        steps: Warm-started steps of a prediction.
        mismatches: Audited samples that f classifies otherwise.
        audited: Samples that were audited.
    """

    steps: int
    mismatches: int
    audited: int

    @classmethod
    def pooled(cls, steps: int, votes: Iterable[Votes]) -> MismatchCount:
        """Add up the audits of ``votes``, taken with ``steps`` steps."""
        audits = [(each.mismatches, each.audited or 0) for each in votes]
        return cls(steps, sum(mismatches for mismatches, _ in audits), sum(audited for _, audited in audits))

    @property
    def rate(self) -> float:
        """The mismatch rate p_m; nan where nothing could be audited."""
        return self.mismatches / self.audited if self.audited else float("nan")

    def interval(self, alpha: float = 0.05) -> tuple[float, float]:
        """Return the two-sided Clopper-Pearson interval of the rate at level 1 - ``alpha``.

        It takes the audited samples for independent, which those of one image are not: a guide to the eye, no part of
        a certificate.
        """
        if not self.audited:
            return 0.0, 1.0
        counts = (self.mismatches, self.audited, alpha / 2)
        return float(clopper_pearson_lower(*counts)), float(clopper_pearson_upper(*counts))


class ConvergenceReport(NamedTuple):
    """The measurement; K is the solver's ``max_steps``.

    A curve holds geometric means over rows, the average that a straight line in a logarithmic plot stays straight
    under. One row that is not finite makes them infinite.

    Attributes:
        cold: Relative residual after 1..K steps from the cold start, K values.
        warm: The same from the fixed point of another noisy sample of the same image, K values.
        mismatches: One count for each of ``mismatch_steps``.
        images: Images that were measured.
    """

    cold: tuple[float, ...]
    warm: tuple[float, ...]
    mismatches: tuple[MismatchCount, ...]
    images: int


@torch.no_grad()
def convergence_report(
    classifier: DEQ, images: Tensor, indices: Tensor, settings: ConvergenceSettings
) -> ConvergenceReport:
    """Measure convergence and mismatch rates on a few images.

    Args:
        classifier: The network in evaluation mode, on the device of ``images``.
        images: Clean images in [0, 1], shape (B, C, H, W), B >= 1.
        indices: Their original indices, which choose the noise, shape (B,).
        settings: What to measure.

    Returns:
        The report; the same arguments give the same report.

    Raises:
        SettingError: If the classifier is in training mode.
    """
    demand_evaluation_mode(classifier)
    streams = [Stream(settings.stream_seed, index) for index in indices.tolist()]
    curves = [_curves(classifier, image, stream, settings) for image, stream in zip(images, streams, strict=True)]
    cold, warm = (torch.cat(rows, dim=1) for rows in zip(*curves, strict=True))
    g = SmoothedClassifier(SolvedClassifier(classifier, settings.solver), settings.sigma)
    mismatches = []
    for steps in settings.mismatch_steps:
        sampling = settings.serialized(steps)
        engine = sampling.engine(g, images[0])
        groups = (
            sampling.group_votes(g, engine, image[None], [each]) for image, each in zip(images, streams, strict=True)
        )
        mismatches.append(MismatchCount.pooled(steps, (votes for group in groups for votes in group)))
    return ConvergenceReport(_geometric_mean(cold), _geometric_mean(warm), tuple(mismatches), len(streams))


def residual_curve(classifier: DEQ, x: Tensor, solver: Solver, start: Tensor | None = None) -> Tensor:
    """Return the relative residuals ‖F(X_k) − X_k‖ / ‖F(X_k)‖ of the iterates X_1, ..., X_K.

    X_k is what ``solver`` returns as last iterate after k steps; tolerances are ignored. K is its ``max_steps``. The
    residual of X_K takes one evaluation more.

    Args:
        classifier: The network in evaluation mode.
        x: Images, shape (B, C, H, W).
        solver: The solver.
        start: X_0, shape of the state; None is the cold start.

    Returns:
        Shape (K, B); infinite where an iterate or F of it is not finite.
    """
    curve: list[Tensor] = []
    with torch.no_grad():
        injection = classifier.inject(x)

        def recorded(z: Tensor) -> Tensor:
            fz = classifier.cell(z, injection)
            curve.append(_relative_residual(z.flatten(1), fz.flatten(1)))
            return fz

        if start is None:
            start = classifier.initial_state(injection)
        _unstopped(solver, solver.max_steps + 1).solve(recorded, start)
    return torch.stack(curve[1:])


def _curves(classifier: DEQ, image: Tensor, stream: Stream, settings: ConvergenceSettings) -> tuple[Tensor, Tensor]:
    """Return the cold and the warm curves of one image's first noisy samples, each of shape (K, width)."""
    sizes = {"sigma": settings.sigma, "count": settings.width, "batch_size": settings.batch_size}
    purposes = Purpose.SELECTION, Purpose.ESTIMATION
    previous, current = (next(noisy_batches(image, stream, purpose, **sizes)) for purpose in purposes)  # type: ignore[arg-type]
    _, solution = classifier.solve(previous, settings.solver)
    cold = residual_curve(classifier, current, settings.solver)
    return cold, residual_curve(classifier, current, settings.solver, solution.value)


def _unstopped(solver: Solver, steps: int) -> Solver:
    """Return ``solver`` with exactly ``steps`` steps, of which it returns the last."""
    return dataclasses.replace(solver, max_steps=steps, tolerance=0.0, iterate="last")


def _relative_residual(z: Tensor, fz: Tensor) -> Tensor:
    difference = fz - z
    size = torch.linalg.vector_norm(fz.to(difference.dtype), dim=1)
    tiny = torch.finfo(difference.dtype).tiny  # F(0) = 0 is a fixed point
    residual = torch.linalg.vector_norm(difference, dim=1) / size.clamp_min(tiny)
    unhidden: Tensor = residual.nan_to_num(nan=torch.inf, posinf=torch.inf)
    return unhidden


def _geometric_mean(curves: Tensor) -> tuple[float, ...]:
    """Average over rows, shape (K, B) to K values; what is below the rounding error of an evaluation counts as that."""
    floor = torch.finfo(curves.dtype).eps
    return tuple(curves.clamp_min(floor).log().mean(dim=1).exp().tolist())
