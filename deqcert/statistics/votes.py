"""Votes: what the noisy samples of one image were classified as.

This is the expensive part of a certificate and knows no error probability. Certificates for any alpha are
arithmetic on it (:mod:`deqcert.statistics.certificate`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from deqcert.errors import DataError

_OPTIONAL = ("alpha_share", "escalations", "escalated", "escalated_a")
_LARGEST = 2**53  # what every reader of JSON, and float64, holds exactly


def most_frequent(counts: Sequence[int]) -> int:
    """Return the class with the largest of the counts, the lowest one on ties: how every class A is selected."""
    return counts.index(max(counts))


class Votes(NamedTuple):
    """The measurement of one image.

    A sample whose logits are not finite votes for nobody, so the counts may sum to less than ``n0`` and
    ``n``.

    Attributes:
        n0: Noisy samples used to select the class A.
        n: Fresh noisy samples used to estimate how often A occurs.
        selection: C counts of the selection samples.
        estimation: C counts of the estimation samples.
        audited: Size of the uniformly random audit subset of ``population``; None if the
            predictions are the base classifier's own, independent ones (standard smoothing), which need no audit.
        mismatches: Audited samples that the base classifier does not classify A.
        nfe_fast: Evaluations of the DEQ cell that the predictions take, selection included, summed over samples. What
            a batch evaluates of a sample that has stopped is not counted.
        nfe_audit: The same for the predictions of the base classifier: audited and escalated samples.
        residual: Mean relative residual of the estimation solves; nan if the classifier is no DEQ.
        seconds: Wall-clock time.
        sigma: Standard deviation of the noise, in pixels of [0, 1], > 0.
        noise_error: Bound, in [0, 1), on how much a class is more probable under the noise that was drawn than under
            exact Gaussian noise, from :func:`~deqcert.statistics.noise_error.noise_error`; 0 takes the noise for exact.
        anytime: Whether sampling could stop because of the votes.
        index: Position of the image in its data set; -1 if it is of none.
        label: True class, in [0, C); -1 if it is unknown.
        alpha_share: Share of alpha that a bound may use, in (0, 1]; where sampling could stop at other looks, these
            have the rest.
        escalations: Estimation samples that the base classifier has classified as well, chosen by what is cheap to
            know.
        escalated: C counts of what it said of them; () if there are none.
        escalated_a: Escalated samples that had been classified A; they are not audited.
    """

    n0: int
    n: int
    selection: tuple[int, ...]
    estimation: tuple[int, ...]
    audited: int | None
    mismatches: int
    nfe_fast: int
    nfe_audit: int
    residual: float
    seconds: float
    sigma: float
    noise_error: float
    anytime: bool = False
    index: int = -1  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    label: int = -1
    alpha_share: float = 1.0
    escalations: int = 0
    escalated: tuple[int, ...] = ()
    escalated_a: int = 0

    @property
    def selected(self) -> int:
        """The class A."""
        return most_frequent(self.selection)

    @property
    def n_a(self) -> int:
        """Estimation samples classified A."""
        return self.estimation[self.selected]

    @property
    def population(self) -> int:
        """Samples classified A that were not escalated, from which the audit is drawn."""
        return self.n_a - self.escalated_a

    def known(self, c: int) -> int:
        """Return how many samples are known to be classified ``c`` by the base classifier, the audit left aside."""
        return self.escalated[c] if self.escalated else 0

    def validate(self) -> None:
        """Check every field by itself and against the others.

        Raises:
            DataError: Naming the field, its value and what it should be.
        """
        for field in ("index", "label", "n0", "n", "mismatches", "nfe_fast", "nfe_audit"):
            expect(self, field, _is_count(getattr(self, field)), "an integer >= 0")
        for field, samples in (("selection", self.n0), ("estimation", self.n)):
            counts = getattr(self, field)
            expect(self, field, isinstance(counts, tuple) and all(map(_is_count, counts)), "integers >= 0")
            expect(self, field, sum(counts) <= samples, f"at most {samples} in all")
        expect(self, "n0", self.n0 >= 1, "at least 1")
        expect(self, "n", self.n >= 1, "at least 1")
        expect(self, "selection", len(self.selection) >= 1, "one count for each class")
        expect(self, "estimation", len(self.estimation) == len(self.selection), "as many classes as selection")
        expect(self, "label", self.label < len(self.selection), f"below {len(self.selection)} classes")

        self._validate_escalations()
        if self.audited is None:
            expect(self, "mismatches", self.mismatches == 0, "0 without an audit")
            expect(self, "nfe_audit", self.nfe_audit == 0, "0 without an audit")
        else:
            expect(self, "audited", _is_count(self.audited), "an integer >= 0, or None")
            expect(
                self, "audited", self.audited <= self.population, f"at most the {self.population} samples classified A"
            )
            expect(self, "mismatches", self.mismatches <= self.audited, f"at most {self.audited} audited samples")
        expect(self, "anytime", isinstance(self.anytime, bool), "true or false")
        expect(self, "alpha_share", _is_number(self.alpha_share) and 0 < self.alpha_share <= 1, "a number in (0, 1]")
        expect(self, "alpha_share", self.anytime or self.alpha_share == 1, "1 where sampling could not stop")
        expect(self, "residual", _is_number(self.residual) and not self.residual < 0, "a number >= 0, or nan")
        expect(self, "seconds", _is_number(self.seconds) and 0 <= self.seconds < math.inf, "a finite number >= 0")
        expect(self, "sigma", _is_number(self.sigma) and 0 < self.sigma < math.inf, "a finite number > 0")
        expect(self, "noise_error", _is_number(self.noise_error) and 0 <= self.noise_error < 1, "a number in [0, 1)")

    def _validate_escalations(self) -> None:
        for field in ("escalations", "escalated_a"):
            expect(self, field, _is_count(getattr(self, field)), "an integer >= 0")
        possible = 0 if self.audited is None else self.n
        expect(self, "escalations", self.escalations <= possible, f"at most {possible}")
        limits = min(self.escalations, self.n_a), len(self.selection) if self.escalations else 0
        expect(self, "escalated_a", self.escalated_a <= limits[0], f"at most {limits[0]}")
        counts = isinstance(self.escalated, tuple) and all(map(_is_count, self.escalated))
        expect(self, "escalated", counts and len(self.escalated) == limits[1], f"{limits[1]} integers >= 0")
        expect(self, "escalated", sum(self.escalated) <= self.escalations, f"at most {self.escalations} in all")

    def to_json(self) -> dict[str, object]:
        """Return a dict that strict JSON can hold: optional fields where they say something, None for no residual."""
        fields = {"index": self.index, "label": self.label, **self._asdict()}
        omitted = {field for field in _OPTIONAL if fields[field] == self._field_defaults[field]}
        if self.anytime:
            omitted.discard("alpha_share")
        fields["residual"] = self.residual if math.isfinite(self.residual) else None
        return {field: value for field, value in fields.items() if field not in omitted}

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> Votes:
        """Read what :meth:`to_json` wrote.

        Args:
            record: Exactly the fields of this class; lists stand for tuples, a residual of None for nan.

        Returns:
            The votes, validated.

        Raises:
            DataError: A field is missing, unknown, of the wrong type or inconsistent with another.
        """
        if missing := [field for field in cls._fields if field not in record and field not in _OPTIONAL]:
            raise DataError(f"votes lack {', '.join(missing)}")
        if record["anytime"] and "alpha_share" not in record:
            raise DataError("votes were taken by a stopping rule that this version of deqcert does not know")
        if unknown := [str(field) for field in record if field not in cls._fields]:
            raise DataError(f"votes have no field {', '.join(unknown)}")
        values: dict[str, Any] = {
            field: tuple(value) if isinstance(value, list) else value for field, value in record.items()
        }
        votes = cls(**{**values, "residual": math.nan if record["residual"] is None else record["residual"]})
        votes.validate()
        return votes


def expect(votes: Votes, field: str, condition: bool, expected: str) -> None:
    """Raise :class:`DataError` naming image, field and value unless ``condition`` holds."""
    if not condition:
        value = getattr(votes, field)
        raise DataError(f"votes of image {votes.index!r}: {field} = {value!r}: expected {expected}")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) <= _LARGEST)
