"""Votes: what the noisy samples of one image were classified as.

This is the expensive part of a certificate and knows no error probability. Certificates for any alpha are
arithmetic on it (:mod:`deqcert.statistics.certificate`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deqcert.errors import DataError
from deqcert.statistics.packing import unpacked

Sides = Literal["one", "two"]

_OPTIONAL = ("alpha_share", "escalations", "escalated", "escalated_from", "audited_as", "mistaken", "predictions")
_LARGEST = 2**53  # what every reader of JSON, and float64, holds exactly


class Cost(NamedTuple):
    """What the measurement of an image took.

    Attributes:
        samples: Inputs classified: noisy samples, or the image itself.
        nfe_fast: Evaluations of the cell for their predictions; ``nfe_audit`` for audit and escalation.
        audited: Audited samples; ``mismatches`` of them were classified otherwise.
        residual: Mean relative residual; nan if the classifier is no DEQ.
        seconds: Wall-clock time.
    """

    samples: int
    nfe_fast: int
    nfe_audit: int
    audited: int
    mismatches: int
    residual: float
    seconds: float


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
            Where the audit is of all classes, how many of its samples are of class A.
        mismatches: Audited samples that the base classifier does not classify A.
        nfe_fast: Evaluations of the DEQ cell that the predictions take, selection included, summed over samples. What
            a batch evaluates of a sample that has stopped is not counted.
        nfe_audit: The same for the predictions of the base classifier: audited and escalated samples.
        residual: Mean relative residual of the estimation solves, of the selection solves where an earlier run has
            predicted the others; nan if the classifier is no DEQ.
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
        escalated_from: C counts of what they had been classified as; () if there are none. They are not audited.
        audited_as: C counts of what the samples of an audit of all classes, for certificates with two sides, had been
            classified as; () where the audit is of class A only.
        mistaken: For each class, how many of these samples the base classifier says it of, but the cheap prediction did
            not; () as above.
        predictions: The estimation samples one by one, in order, as :func:`~deqcert.statistics.packing.packed` writes
            them: what each was classified as, and by the base classifier where it was escalated; "" if not stored.
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
    escalated_from: tuple[int, ...] = ()
    audited_as: tuple[int, ...] = ()
    mistaken: tuple[int, ...] = ()
    predictions: str = ""

    @property
    def selected(self) -> int:
        """The class A."""
        return most_frequent(self.selection)

    @property
    def cost(self) -> Cost:
        """What the measurement took."""
        spent = self.n0 + self.n, self.nfe_fast, self.nfe_audit
        return Cost(*spent, self.audited or 0, self.mismatches, self.residual, self.seconds)

    @property
    def n_a(self) -> int:
        """Estimation samples classified A."""
        return self.estimation[self.selected]

    @property
    def population(self) -> int:
        """Samples classified A that were not escalated."""
        return self.rest[self.selected]

    @property
    def rest(self) -> tuple[int, ...]:
        """C counts of the estimation samples that were not escalated."""
        asked = self.escalated_from or (0,) * len(self.estimation)
        return tuple(count - escalated for count, escalated in zip(self.estimation, asked, strict=True))

    @property
    def escalated_a(self) -> int:
        """Escalated samples that had been classified A."""
        return self.n_a - self.population

    def auditable(self, sides: Sides) -> int:
        """Return the size of what an audit is drawn from: ``population``, with two sides that of all classes."""
        return self.population if sides == "one" else sum(self.rest)

    @property
    def examined(self) -> int:
        """Audited samples of all classes."""
        return sum(self.audited_as) if self.audited_as else self.audited or 0

    def audited_whole(self) -> Votes:
        """Return the votes with an audit, if there is one, of all that it is drawn from, without a further mismatch."""
        if self.audited is None:
            return self
        return self._replace(audited=self.population, audited_as=self.rest if self.audited_as else ())

    def sample_predictions(self) -> NDArray[np.int64]:
        """Return the stored predictions of the estimation samples, shape (n,), -1 where a sample votes for nobody.

        Raises:
            ValueError: None are stored, or they cannot be read.
        """
        return unpacked(self.predictions, self.n, len(self.estimation))

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
        self._validate_audit_of_all()
        self._validate_predictions()
        expect(self, "anytime", isinstance(self.anytime, bool), "true or false")
        expect(self, "alpha_share", _is_number(self.alpha_share) and 0 < self.alpha_share <= 1, "a number in (0, 1]")
        expect(self, "alpha_share", self.anytime or self.alpha_share == 1, "1 where sampling could not stop")
        expect(self, "residual", _is_number(self.residual) and not self.residual < 0, "a number >= 0, or nan")
        expect(self, "seconds", _is_number(self.seconds) and 0 <= self.seconds < math.inf, "a finite number >= 0")
        expect(self, "sigma", _is_number(self.sigma) and 0 < self.sigma < math.inf, "a finite number > 0")
        expect(self, "noise_error", _is_number(self.noise_error) and 0 <= self.noise_error < 1, "a number in [0, 1)")

    def _validate_escalations(self) -> None:
        expect(self, "escalations", _is_count(self.escalations), "an integer >= 0")
        possible = 0 if self.audited is None else self.n
        expect(self, "escalations", self.escalations <= possible, f"at most {possible}")
        for field in ("escalated", "escalated_from"):
            self._expect_counts(field, len(self.selection) if self.escalations else 0, self.escalations)
        expect(self, "escalated_from", min(self.rest) >= 0, f"at most {self.estimation}, class by class")
        fewest = self.escalations - (self.n - sum(self.estimation))
        expect(self, "escalated_from", sum(self.escalated_from) >= fewest, f"at least {fewest} in all")

    def _validate_audit_of_all(self) -> None:
        if self.audited_as == () == self.mistaken:
            return
        expect(self, "audited_as", self.audited is not None, "() without an audit")
        total = sum(self.rest)
        self._expect_counts("audited_as", len(self.selection), total)
        within = all(count <= rest for count, rest in zip(self.audited_as, self.rest, strict=True))
        expect(self, "audited_as", within, f"at most {self.rest}, class by class")
        expect(
            self, "audited", self.audited == self.audited_as[self.selected], f"those of class A of {self.audited_as}"
        )
        examined = sum(self.audited_as)
        self._expect_counts("mistaken", len(self.selection), examined)
        others = all(count <= examined - own for count, own in zip(self.mistaken, self.audited_as, strict=True))
        expect(self, "mistaken", others, f"at most the audited samples of other classes of {self.audited_as}")

    def _validate_predictions(self) -> None:
        if self.predictions == "":
            return
        expect(self, "predictions", isinstance(self.predictions, str), "text")
        try:
            classes = self.sample_predictions()
        except ValueError as error:
            raise DataError(f"votes of image {self.index!r}: predictions: {error}") from error
        counts = np.bincount(classes[classes >= 0], minlength=len(self.estimation)).tolist()
        wanted = [self.known(c) + count for c, count in enumerate(self.rest)]
        if counts != wanted:
            problem = f"are {counts} class by class: expected {wanted} by the counts"
            raise DataError(f"votes of image {self.index!r}: predictions {problem}")

    def _expect_counts(self, field: str, length: int, limit: int) -> None:
        counts = getattr(self, field)
        fits = isinstance(counts, tuple) and all(map(_is_count, counts)) and len(counts) == length
        expect(self, field, fits, f"{length} integers >= 0")
        expect(self, field, sum(counts) <= limit, f"at most {limit} in all")

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
