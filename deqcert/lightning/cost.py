"""What the images of a run have cost so far."""

from __future__ import annotations

from deqcert.statistics import Votes


class RunningCost:
    """Sums over the images so far, whose means at the end of a run are those of its summary."""

    def __init__(self) -> None:
        self._images = self._samples = self._fast = self._audit = self._audited = self._mismatches = 0
        self._seconds = self._residual = 0.0

    def add(self, votes: Votes) -> None:
        """Add an image."""
        self._images += 1
        self._samples += votes.n0 + votes.n
        self._fast += votes.nfe_fast
        self._audit += votes.nfe_audit
        self._audited += votes.audited or 0
        self._mismatches += votes.mismatches
        self._seconds += votes.seconds
        self._residual += votes.residual

    @property
    def evaluations(self) -> tuple[float, float]:
        """Evaluations of the DEQ cell per noisy sample: for the predictions, and for the audit."""
        return self._fast / self._samples, self._audit / self._samples

    @property
    def seconds(self) -> float:
        """Mean wall-clock time of an image."""
        return self._seconds / self._images

    @property
    def residual(self) -> float:
        """Mean over images of the relative residual; not finite if that of an image is not."""
        return self._residual / self._images

    @property
    def mismatch_rate(self) -> float | None:
        """Fraction of the audited samples whose cheap prediction was wrong; None without an audit."""
        return self._mismatches / self._audited if self._audited else None
