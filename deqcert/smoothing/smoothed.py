"""The smoothed classifier g: the class that the base classifier f gives most often under Gaussian noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deqcert.checkpoints import load_network
from deqcert.errors import SettingError, is_real, require, require_count
from deqcert.models import DEQ, Start
from deqcert.seeding import Purpose
from deqcert.smoothing.base_classifier import CONVERGED, SolvedClassifier
from deqcert.smoothing.checks import SAMPLES, checked, demand_unit_interval
from deqcert.smoothing.engine import Engine, count_classes
from deqcert.smoothing.execution import Execution
from deqcert.smoothing.noise import Stream, noisy_batches
from deqcert.solvers import Solver
from deqcert.statistics import Certificate, CertificationRule, Noise, noise_error, predict
from deqcert.statistics.noise_error import LARGEST_SIGMA

if TYPE_CHECKING:
    from deqcert.smoothing.sampling import Sampling


@dataclass(frozen=True)
class Smoothing:
    """What makes a network a smoothed classifier g: the settings of :class:`SmoothedClassifier` and of its f.

    Args:
        sigma: Standard deviation of the noise, in pixels of [0, 1], > 0.
        noise: "float32" noise is added as published, which rounds; "quantised" noise, for 8-bit images, is off by a
            bound that certificates subtract (docs/floating_point.md).
        solver: Solver that makes a DEQ the base classifier; other networks ignore it.
        start: Where it starts: "zero", or at the "anchor" of the checkpoint (deqcert anchor).
    """

    sigma: float = 0.5
    noise: Noise = "float32"
    solver: Solver = CONVERGED
    start: Start = "zero"

    def __post_init__(self) -> None:
        finite = is_real(self.sigma) and 0 < self.sigma < float("inf")
        require(finite, "sigma", self.sigma, "must be a finite number > 0")
        noise_error(self.noise, pixels=1)  # refuses other names
        fits = self.noise == "float32" or self.sigma <= LARGEST_SIGMA
        require(fits, "sigma", self.sigma, f"must be <= {LARGEST_SIGMA} for quantized noise")
        require(self.start in ("zero", "anchor"), "start", self.start, "must be zero or anchor")

    def of(self, network: nn.Module) -> SmoothedClassifier:
        """Return g; raises :class:`SettingError` if the network has no such start."""
        if isinstance(network, DEQ):
            network = SolvedClassifier(network, self.solver, self.start)
        else:
            allowed = f"needs a DEQ; a {type(network).__name__} has no solver"
            require(self.start == "zero", "start", self.start, allowed)
        return SmoothedClassifier(network, self.sigma, self.noise)


class SmoothedClassifier:
    """g(x) = argmax_c P(f(x + ε) = c), ε ~ N(0, σ² I) (Cohen, Rosenfeld and Kolter, ICML 2019).

    Nobody can evaluate g exactly; :meth:`predict` and :meth:`certify` estimate it with an error probability. Their
    noise is fresh unless a stream is given: an adversary who knows the noise could aim at the votes. Images ``x`` have
    shape (C, H, W) and are on the device of f.

    Args:
        base: Base classifier f in evaluation mode; a DEQ by itself stands for the one that its own solver makes.
        sigma: Standard deviation of the noise, in pixels of [0, 1], > 0.
        noise: As in :class:`Smoothing`.

    Raises:
        SettingError: A setting is out of range; or f is not a function of one image or does not fit.
        DataError: An image does not hold floats in [0, 1], the unit of sigma and radius.
        CheckpointError: A checkpoint cannot be used.
    """

    def __init__(self, base: nn.Module, sigma: float, noise: Noise = "float32") -> None:
        Smoothing(sigma, noise)  # refuses what is out of range
        self.base = SolvedClassifier(base, base.solver) if isinstance(base, DEQ) else base
        self.sigma = sigma
        self.noise: Noise = noise

    @staticmethod
    def from_checkpoint(
        ckpt_path: str | Path,
        sigma: float | None = None,
        solver: Solver = CONVERGED,
        start: Start = "zero",
        network: nn.Module | None = None,
    ) -> SmoothedClassifier:
        """Build g from a checkpoint; ``sigma`` None takes that of training.

        ``network`` takes the weights; without it the network that the checkpoint states is built, on the CPU.
        """
        found = load_network(ckpt_path, network)
        sigma = found.sigma if sigma is None else sigma
        if sigma is None:
            raise SettingError("sigma", sigma, "must be given: the checkpoint states none")
        return Smoothing(sigma, solver=solver, start=start).of(found.network)

    def predict(self, x: Tensor, *, n: int = 1000, alpha: float = 0.001, stream: Stream | None = None) -> int:
        """Return the class of g, or ``ABSTAIN`` (-1) if votes cannot tell it from the next (PREDICT of Cohen et al.).

        Args:
            x: Image in [0, 1].
            n: Noisy samples, >= 1.
            alpha: Probability with which the class may be wrong, in (0, 1).
            stream: Random numbers; None draws fresh ones.
        """
        require_count("n", n, minimum=1)
        CertificationRule(alpha)  # refuses a bad alpha before any work
        counts = self.counts(self.engine(x), x, stream or Stream.fresh(), Purpose.ESTIMATION, n)
        return predict(counts, alpha)

    def certify(
        self,
        x: Tensor,
        *,
        sampling: Sampling | None = None,
        rule: CertificationRule = CertificationRule(),
        stream: Stream | None = None,
    ) -> Certificate:
        """Return the class of g and the radius in which it holds, or abstain (CERTIFY of Cohen et al.).

        Raises :class:`SettingError` where n is too small for any votes to certify something.

        Args:
            x: Image in [0, 1].
            sampling: How votes are taken; None takes independent ones (:class:`~deqcert.smoothing.Standard`).
            rule: Error probability, and how an audit is used.
            stream: Random numbers; None draws fresh ones.
        """
        from deqcert.smoothing.standard import Standard  # builds on this module

        sampling = (sampling or Standard()).aimed_at(rule)
        sampling.demand_decisive(rule)
        return rule.certify(sampling.votes(self, x, stream or Stream.fresh()))

    def engine(
        self, image: Tensor, execution: Execution = Execution(), width: int = 400, proposals: Sequence[Solver] = ()
    ) -> Engine:
        """Check f on noisy samples of an image and prepare it for ``width`` of each such image side by side.

        For ``proposals`` see :class:`~deqcert.smoothing.Engine`.
        """
        samples = next(self.noisy(image, Stream(0, 0), Purpose.CHECK, SAMPLES, SAMPLES))
        return Engine(checked(self.base, samples, self.sigma), execution, image, width, proposals)

    def noisy(self, x: Tensor, stream: Stream, purpose: Purpose, count: int, batch_size: int) -> Iterator[Tensor]:
        """Return noisy samples of an image, batch by batch; see :func:`~deqcert.smoothing.noise.noisy_batches`."""
        demand_unit_interval(x)
        return noisy_batches(x, stream, purpose, self.sigma, count, batch_size, self.noise)

    def counts(self, engine: Engine, x: Tensor, stream: Stream, purpose: Purpose, n: int) -> tuple[int, ...]:
        """Count how often f gives each class to ``n`` noisy samples of ``x``, which may lie between 8-bit images.

        Under quantized noise f rounds its input to multiples of 1/255, and the certificate holds for every point:
        x + ε is rounded, with a Gaussian float ε. That is g to within the rounding of ε, which tests of some thousand
        samples cannot see.
        """
        rounds = self.noise == "quantised"
        batches = noisy_batches(x.double() if rounds else x, stream, purpose, self.sigma, n, batch_size=400)
        rounded = ((each * 255).round().to(torch.float32).div_(255) if rounds else each for each in batches)
        return count_classes(torch.cat([engine.predict(each).classes for each in rounded]), engine.num_classes)
