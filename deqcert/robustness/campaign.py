"""Attacks on the certificates of many images, judged together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from deqcert.errors import is_real, require, require_count
from deqcert.robustness.outcome import Outcome
from deqcert.robustness.smoothed_attack import SmoothedAttack, distances
from deqcert.robustness.target import Target
from deqcert.statistics import ABSTAIN, Certificate, claimed_probability, clopper_pearson_upper


@dataclass(frozen=True)
class Campaign:
    """Attacks every image that has a certificate at every radius, and tests each point that was found.

    A certificate claims of the point x + δ that p_A >= Φ((R − ‖δ‖) / σ). It is refuted where an exact test on fresh
    votes rejects that (:mod:`deqcert.statistics.claims`), with the error probability ``alpha`` / K in each of all K
    tests: if all certificates are true, a whole campaign refutes any of them with probability at most ``alpha``. A
    certificate itself is false with probability up to its own alpha, so among m of them up to m times that many
    refutations are to be expected of the method, not of its implementation; beyond that, something is wrong.

    Args:
        attack: How points are looked for.
        radii: l2 radii in pixels of [0, 1], >= 0; at 0 the image itself is tested.
        factors: Radii in units of the certified radius of each image, > 0.
        n: Fresh noisy copies of each point, >= 1.
        alpha: Probability of any false refutation, in (0, 1).

    Raises:
        SettingError: A setting is out of range.
    """

    attack: SmoothedAttack = field(default_factory=SmoothedAttack)
    radii: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    factors: tuple[float, ...] = (0.5, 0.9, 0.99, 1.25, 1.5, 2.0)
    n: int = 1000
    alpha: float = 0.001

    def __post_init__(self) -> None:
        for radius in self.radii:
            require(is_real(radius) and 0 <= radius < math.inf, "radii", radius, "must be finite and >= 0")
        for factor in self.factors:
            require(is_real(factor) and 0 < factor < math.inf, "factors", factor, "must be finite and > 0")
        for name, values in (("radii", self.radii), ("factors", self.factors)):
            require(len(set(values)) == len(values), name, values, "must be different ones")
        require(bool(self.radii or self.factors), "radii", self.radii, "must not be empty where factors are")
        require_count("n", self.n, minimum=1)
        require(is_real(self.alpha) and 0 < self.alpha < 1, "alpha_attack", self.alpha, "must be in (0, 1)")

    def run(
        self, target: Target, images: Iterable[Tensor], certificates: Sequence[Certificate]
    ) -> Iterator[list[Outcome]]:
        """Attack image by image.

        Args:
            target: What is attacked.
            images: Clean images in [0, 1], shape (C, H, W), on the device of the classifier.
            certificates: Their certificates, in the same order.

        Yields:
            The outcomes of each image, first those of ``radii``, then those of ``factors``; none for an abstention.
        """
        # Fixed before any fresh vote is taken.
        tests = self.attacks_on(certificates)
        for image, certificate in zip(images, certificates, strict=True):
            yield [] if certificate.prediction == ABSTAIN else self._attack(target, image, certificate, tests)

    def attacks_on(self, certificates: Sequence[Certificate]) -> int:
        """Return the number K of attacks; an abstention claims nothing and is not attacked."""
        attacked = sum(certificate.prediction != ABSTAIN for certificate in certificates)
        return attacked * (len(self.radii) + len(self.factors))

    def _attack(self, target: Target, image: Tensor, certificate: Certificate, tests: int) -> list[Outcome]:
        chosen: list[tuple[float | None, float]] = [(None, radius) for radius in self.radii]
        chosen += [(factor, factor * certificate.radius) for factor in self.factors]
        points = self.attack.points(
            target, image, certificate.index, certificate.prediction, [epsilon for _, epsilon in chosen]
        )
        norms = distances(points, image).tolist()
        counts = target.counts(points, certificate.index, self.n)
        return [
            Outcome(
                index=certificate.index,
                label=certificate.label,
                prediction=certificate.prediction,
                radius=certificate.radius,
                sound=certificate.sound,
                factor=factor,
                epsilon=epsilon,
                norm=norm,
                n=self.n,
                counts=votes,
                claimed=float(claimed_probability(certificate.radius, norm, target.g.sigma)),
                p_a_upper=float(clopper_pearson_upper(votes[certificate.prediction], self.n, self.alpha / tests)),
            )
            for (factor, epsilon), norm, votes in zip(chosen, norms, counts, strict=True)
        ]
