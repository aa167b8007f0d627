"""Attacks on the certificates of many images, judged together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from deqcert.attacks.attack import CertificateAttack, distances
from deqcert.attacks.targets import Target
from deqcert.errors import is_real, require, require_count
from deqcert.statistics import ABSTAIN, Certificate


class Outcome(NamedTuple):
    """One attacked point, judged by fresh noise, or exactly where the certificate was made without noise.

    Attributes:
        prediction: Certified class A.
        radius: Certified radius R.
        factor: Radius of the attack in units of R; None where it was given in pixels.
        epsilon: Radius of the attack, in pixels of [0, 1].
        norm: Norm of the perturbation that was found, at most ``epsilon``, measured in float64.
        n: Fresh noisy samples of the point; without noise all of them get the one class that it has.
        counts: How many of them f gives each class; samples that diverged are in none.
        claimed: What the certificate claims p_A to be at least at this point; without noise 1 inside, 0 outside.
        p_a_upper: Upper bound on p_A at this point by the fresh votes, its error probability shared by all attacks;
            without noise 0 where the class is another beyond solver and rounding error, otherwise 1.
        claimed_b: What a certificate with two sides claims every other class to have at most at this point; else None.
        p_b_lower: Lower bound by the fresh votes on what the most frequent other class has there; None as well.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    label: int
    prediction: int
    radius: float
    sound: bool
    factor: float | None
    epsilon: float
    norm: float
    n: int
    counts: tuple[int, ...]
    claimed: float
    p_a_upper: float
    claimed_b: float | None = None
    p_b_lower: float | None = None

    @property
    def n_a(self) -> int:
        """Fresh samples classified A."""
        return self.counts[self.prediction]

    @property
    def success(self) -> bool:
        """Whether the fresh votes elect another class; near p_A = 1/2 chance may do this too."""
        return max(self.counts) > self.n_a

    @property
    def inside(self) -> bool:
        """Whether the point is strictly inside of the certified radius, where no class may change."""
        return self.norm < self.radius

    @property
    def violation(self) -> bool:
        """Whether the fresh votes refute the certificate: p_A is below, or p_B above, what it claims of this point."""
        too_much = self.p_b_lower is not None and self.claimed_b is not None and self.p_b_lower > self.claimed_b
        return self.p_a_upper < self.claimed or too_much

    def to_json(self) -> dict[str, object]:
        """Return every field and every judgement."""
        judgements = ("n_a", "success", "inside", "violation")
        return {**self._asdict(), **{name: getattr(self, name) for name in judgements}}


@dataclass(frozen=True)
class Campaign:
    """Attacks every image that has a certificate at every radius, and tests each point that was found.

    A certificate claims of the point x + δ that p_A >= Φ(Φ⁻¹(p_A_lower) − ‖δ‖ / σ), one with two sides also that
    p_B <= Φ(Φ⁻¹(p_B_upper) + ‖δ‖ / σ) for every other class B. It is refuted where an exact test on fresh
    votes rejects that (:mod:`deqcert.statistics.claims`), with the error probability ``alpha`` / K in each of all K
    tests: if all certificates are true, a whole campaign refutes any of them with probability at most ``alpha``. A
    certificate itself is false with probability up to its own alpha, so among m of them up to m times that many
    refutations are to be expected of the method, not of its implementation; beyond that, something is wrong.
    Certificates without noise have no error probability, nor has the judgement of a point, which is exact.

    Args:
        attack: How points are looked for.
        radii: Radii in pixels of [0, 1], >= 0; at 0 the image itself is tested.
        factors: Radii in units of the certified radius of each image, > 0.
        n: Fresh noisy samples of each point, >= 1.
        alpha: Probability of any false refutation, in (0, 1).

    Raises:
        SettingError: A setting is out of range.
    """

    attack: CertificateAttack = field(default_factory=CertificateAttack)
    radii: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    factors: tuple[float, ...] = (0.5, 0.9, 0.99, 1.25, 1.5, 2.0)
    n: int = 1000
    alpha: float = 0.001

    def __post_init__(self) -> None:
        for name, values in (("radii", self.radii), ("factors", self.factors)):
            finite = all(is_real(value) and 0 <= value < math.inf for value in values)
            require(finite and len(set(values)) == len(values), name, values, "must be finite, >= 0 and different")
        require(0 not in self.factors, "factors", self.factors, "must be > 0")
        require(bool(self.radii or self.factors), "radii", self.radii, "must not be empty where factors are")
        require_count("n", self.n, minimum=1)
        require(is_real(self.alpha) and 0 < self.alpha < 1, "alpha_attack", self.alpha, "must be in (0, 1)")

    def run(
        self, target: Target, images: Iterable[Tensor], certificates: Sequence[Certificate]
    ) -> Iterator[list[Outcome]]:
        """Yield the outcomes of each image, first of ``radii``, then of ``factors``; none for an abstention.

        Args:
            target: What is attacked.
            images: Clean images in [0, 1], shape (C, H, W), on the device of the classifier.
            certificates: Their certificates, in the same order.
        """
        # K is fixed before any fresh vote is taken.
        attacked = sum(certificate.prediction != ABSTAIN for certificate in certificates)
        tests = attacked * (len(self.radii) + len(self.factors))
        for image, certificate in zip(images, certificates, strict=True):
            yield [] if certificate.prediction == ABSTAIN else self._attack(target, image, certificate, tests)

    def _attack(self, target: Target, image: Tensor, certificate: Certificate, tests: int) -> list[Outcome]:
        index, prediction, radius = certificate.index, certificate.prediction, certificate.radius
        chosen: list[tuple[float | None, float]] = [(None, epsilon) for epsilon in self.radii]
        chosen += [(factor, factor * radius) for factor in self.factors]
        points = self.attack.points(target, image, index, prediction, [epsilon for _, epsilon in chosen])
        norms = distances(points, image, target.norm).tolist()
        counts = target.counts(points, index, self.n)
        level = self.alpha / tests
        return [
            Outcome(
                index=index,
                label=certificate.label,
                prediction=prediction,
                radius=radius,
                sound=certificate.sound,
                factor=factor,
                epsilon=epsilon,
                norm=norm,
                n=self.n,
                counts=votes,
                **target.judged(certificate, norm, votes, self.n, level),
            )
            for (factor, epsilon), norm, votes in zip(chosen, norms, counts, strict=True)
        ]
