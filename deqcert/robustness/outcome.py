"""What came of one attack."""

from __future__ import annotations

from typing import NamedTuple


class Outcome(NamedTuple):
    """One attacked point, judged by fresh noise.

    Attributes:
        index: Original index of the image.
        label: True class.
        prediction: Certified class A.
        radius: Certified l2 radius R.
        sound: Whether the certificate has a proof.
        factor: Radius of the attack in units of R; None where it was given in pixels.
        epsilon: Radius of the attack, in pixels of [0, 1].
        norm: l2 norm of the perturbation that was found, at most ``epsilon``, measured in float64.
        n: Fresh noisy copies of the point.
        counts: How many of them the base classifier gives each class; copies that diverged are in none.
        claimed: What the certificate claims p_A to be at least at this point.
        p_a_upper: Upper bound on p_A at this point by the fresh votes, its error probability shared by all attacks.
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

    @property
    def n_a(self) -> int:
        """Fresh copies that are classified A."""
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
        """Whether the fresh votes refute the certificate: p_A is below what it claims of this point."""
        return self.p_a_upper < self.claimed

    def to_json(self) -> dict[str, object]:
        """Return every field and every judgement."""
        judgements = ("n_a", "success", "inside", "violation")
        return {**self._asdict(), **{name: getattr(self, name) for name in judgements}}
