"""The smoothed classifier g: the class that the base classifier f gives most often under Gaussian noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deqcert.checkpoints import load_network
from deqcert.errors import is_real, require, require_count
from deqcert.models import DEQ, Start
from deqcert.seeding import Purpose
from deqcert.smoothing.base_classifier import CONVERGED, SolvedClassifier, base_classifier
from deqcert.smoothing.checks import SAMPLES, checked
from deqcert.smoothing.engine import Engine, Execution, count_classes
from deqcert.smoothing.noise import Stream, demand_unit_interval, noisy_batches
from deqcert.solvers import Solver
from deqcert.statistics import Certificate, CertificationRule, Noise, noise_error, predict
from deqcert.statistics.noise_error import LARGEST_SIGMA

if TYPE_CHECKING:
    from deqcert.smoothing.sampling import Sampling


class SmoothedClassifier:
    """g(x) = argmax_c P(f(x + ε) = c), ε ~ N(0, σ² I) (Cohen, Rosenfeld and Kolter, ICML 2019).

    Nobody can evaluate g exactly; :meth:`predict` and :meth:`certify` estimate it with an error probability. Their
    noise is fresh unless a stream is given: an adversary who knows the noise could aim at the votes.

    Args:
        base: Base classifier f in evaluation mode; a DEQ by itself stands for the one that its own solver makes.
        sigma: Standard deviation of the noise, in pixels of [0, 1], > 0.
        noise: "float32" noise is added as published, which rounds; "quantised" noise, for 8-bit images, is off by a
            bound that certificates subtract (docs/floating_point.md).

    Attributes:
        base: f.

    Raises:
        SettingError: A setting is out of range.
    """

    def __init__(self, base: nn.Module, sigma: float, noise: Noise = "float32") -> None:
        _demand_noise(sigma, noise)
        self.base = SolvedClassifier(base, base.solver) if isinstance(base, DEQ) else base
        self.sigma = sigma
        self.noise: Noise = noise

    @classmethod
    def from_checkpoint(
        cls, ckpt_path: str | Path, sigma: float | None = None, solver: Solver = CONVERGED, start: Start = "zero"
    ) -> SmoothedClassifier:
        """Build g from a checkpoint that states its network, on the CPU.

        Args:
            ckpt_path: Checkpoint written by ``deqcert fit``, ``anchor`` or ``convert``.
            sigma: Standard deviation of the noise; None takes that of training.
            solver: Solver of a DEQ.
            start: Its start.

        Raises:
            CheckpointError: The checkpoint cannot be used.
            SettingError: A setting is out of range, or there is no sigma.
        """
        found = load_network(ckpt_path)
        trained = found.sigma if sigma is None else sigma
        require(trained is not None, "sigma", sigma, "must be given: the checkpoint states none")
        return cls(base_classifier(found.network, solver, start), trained)  # type: ignore[arg-type]  # not None

    def predict(self, x: Tensor, *, n: int = 1000, alpha: float = 0.001, stream: Stream | None = None) -> int:
        """Return the class of g at an image, or abstain (PREDICT of Cohen et al.).

        Args:
            x: Image in [0, 1], shape (C, H, W), on the device of f.
            n: Noisy samples, >= 1.
            alpha: Probability with which the class may be wrong, in (0, 1).
            stream: Random numbers; None draws fresh ones.

        Returns:
            The class, or ``ABSTAIN`` (-1) if the votes cannot tell it from the next one.

        Raises:
            SettingError: A setting is out of range, or f is not a function of one image.
            DataError: The image is not one of floats in [0, 1].
        """
        require_count("n", n, minimum=1)
        CertificationRule(alpha)  # refuses a bad alpha before any work
        engine = self.engine(x)
        return predict(self.counts(engine, x, stream or Stream.fresh(), Purpose.ESTIMATION, n), alpha)

    def certify(
        self,
        x: Tensor,
        *,
        sampling: Sampling | None = None,
        rule: CertificationRule = CertificationRule(),
        stream: Stream | None = None,
    ) -> Certificate:
        """Return the class of g at an image and the radius in which it holds (CERTIFY of Cohen et al.).

        Args:
            x: Image in [0, 1], shape (C, H, W), on the device of f.
            sampling: How votes are taken; None takes independent ones (:class:`~deqcert.smoothing.Standard`).
            rule: Error probability, and how an audit is used.
            stream: Random numbers; None draws fresh ones.

        Returns:
            The certificate; an abstention where nothing can be proven.

        Raises:
            SettingError: A setting is out of range, or f is not what the sampling needs.
            DataError: The image is not one of floats in [0, 1].
        """
        if sampling is None:
            from deqcert.smoothing.standard import Standard  # builds on this module

            sampling = Standard()
        return rule.certify(sampling.aimed_at(rule).votes(self, x, stream or Stream.fresh()))

    def engine(self, image: Tensor, execution: Execution = Execution(), width: int = 400) -> Engine:
        """Prepare f for images like ``image``, shape (C, H, W).

        Args:
            image: Clean image in [0, 1], on the device of f.
            execution: How to spread noisy samples over batches.
            width: Noisy samples of one image that are classified side by side.

        Raises:
            SettingError: f is in training mode, for images of other channels or, on noisy samples of the image, not a
                function of one image (:func:`~deqcert.smoothing.checks.checked`).
            DataError: The image is not one of floats in [0, 1], in which sigma and radius are measured.
        """
        demand_unit_interval(image)
        network = self.base
        if isinstance(self.base, SolvedClassifier):
            network = self.base.network
            self.base.warn_about_noise(self.sigma)
        # A grey image would pass through a network for color by broadcasting.
        channels = getattr(network, "image_channels", len(image))
        allowed = f"must have {channels} channels, as the classifier"
        require(len(image) == channels, "image", tuple(image.shape), allowed)
        samples = next(self.noisy(image, Stream(0, 0), Purpose.CHECK, SAMPLES, SAMPLES))
        return Engine(checked(self.base, samples), execution, image, width)

    def noisy(
        self, image: Tensor, stream: Stream, purpose: Purpose, count: int, batch_size: int, part: int = 0
    ) -> Iterator[Tensor]:
        """Yield noisy samples of an image; see :func:`~deqcert.smoothing.noise.noisy_batches`."""
        settings = {"sigma": self.sigma, "count": count, "batch_size": batch_size, "part": part}
        return noisy_batches(image, stream, purpose, noise=self.noise, **settings)  # type: ignore[arg-type]

    def counts(
        self, engine: Engine, x: Tensor, stream: Stream, purpose: Purpose, n: int, batch_size: int = 400
    ) -> tuple[int, ...]:
        """Count how often f gives each class to ``n`` noisy samples of ``x``, shape (C, H, W).

        ``x`` may be a point between 8-bit images. Under quantised noise f rounds its input to multiples of 1/255, and
        the certificate holds for every point: x + ε is rounded, with a Gaussian float ε. That is g to within the
        rounding of ε, which tests of some thousand samples cannot see. A sample whose logits are not finite counts for
        no class.
        """
        quantised = self.noise == "quantised"
        batches = noisy_batches(
            x.double() if quantised else x, stream, purpose, sigma=self.sigma, count=n, batch_size=batch_size
        )
        classes = [
            engine.predict((batch * 255).round().to(torch.float32).div_(255) if quantised else batch).classes
            for batch in batches
        ]
        return count_classes(torch.cat(classes).cpu().numpy(), engine.num_classes)


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
        _demand_noise(self.sigma, self.noise)
        require(self.start in ("zero", "anchor"), "start", self.start, "must be zero or anchor")

    def of(self, network: nn.Module) -> SmoothedClassifier:
        """Return g.

        Raises:
            SettingError: The network has no such start.
        """
        return SmoothedClassifier(base_classifier(network, self.solver, self.start), self.sigma, self.noise)


def _demand_noise(sigma: float, noise: Noise) -> None:
    finite = is_real(sigma) and 0 < sigma < float("inf")
    require(finite, "sigma", sigma, "must be a finite number > 0")
    noise_error(noise, pixels=1)  # refuses other names
    if noise == "quantised":
        require(sigma <= LARGEST_SIGMA, "sigma", sigma, f"must be <= {LARGEST_SIGMA} for quantised noise")
