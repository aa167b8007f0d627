"""Margins: what is measured of one image without noise, and the certificate that follows from it with certainty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from deqcert.errors import DataError
from deqcert.statistics.certificate import ABSTAIN, Certificate
from deqcert.statistics.votes import Cost, Votes

_FARTHEST = 1e9
"""Largest radius, in pixels of [0, 1]: beyond all images, where a network does not change at all."""


class Margins(NamedTuple):
    """The measurement of one image without noise: how far its class is ahead, and how fast that can change.

    Attributes:
        selected: The class A with the largest logit.
        gaps: For each class j a lower bound on y_A - y_j, but for ``errors``; 0 for A. At the image, or, with
            ``epsilon``, over all images of the box.
        errors: For each class a bound on the error of its gap: solver and rounding, >= 0.
        constants: For each class j the Lipschitz constant of y_A - y_j; 0 for A. () for a box.
        epsilon: Half the side of the box, in pixels of [0, 1]; None for Lipschitz constants.
        nfe_fast: Evaluations of the cell.
        residual: Relative residual of the solve; nan if the classifier is no DEQ.
        seconds: Wall-clock time.
        index: Position of the image in its data set; -1 if it is of none.
        label: True class, in [0, C); -1 if it is unknown.
    """

    selected: int
    gaps: tuple[float, ...]
    errors: tuple[float, ...]
    constants: tuple[float, ...]
    epsilon: float | None
    nfe_fast: int
    residual: float
    seconds: float
    index: int = -1  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    label: int = -1

    @property
    def cost(self) -> Cost:
        """What the measurement took."""
        return Cost(1, self.nfe_fast, 0, 0, 0, self.residual, self.seconds)

    @property
    def radius(self) -> float:
        """Certified l2 radius, rounded down; 0 where nothing is certified. That of a box is ``epsilon`` itself."""
        others = [j for j in range(len(self.gaps)) if j != self.selected]
        proven = [math.nextafter(self.gaps[j] - self.errors[j], -math.inf) for j in others]
        if min(proven) <= 0:
            return 0.0
        if self.epsilon is not None:
            return self.epsilon
        reached = [
            math.nextafter(gap / self.constants[j], 0.0)
            for j, gap in zip(others, proven, strict=True)
            if self.constants[j] > 0
        ]
        return min([*reached, _FARTHEST])

    def validate(self) -> None:
        """Check every field by itself and against the others.

        Raises:
            DataError: Naming the field, its value and what it should be.
        """
        for field in ("index", "label", "selected", "nfe_fast"):
            self._expect(field, type(getattr(self, field)) is int and getattr(self, field) >= 0, "an integer >= 0")
        classes = len(self.gaps)
        self._expect("gaps", classes >= 2 and all(map(_is_finite, self.gaps)), "finite numbers, one for each class")
        self._expect("selected", self.selected < classes, f"below {classes} classes")
        self._expect("label", self.label < classes, f"below {classes} classes")
        for field, length in (("errors", classes), ("constants", classes if self.epsilon is None else 0)):
            values = getattr(self, field)
            fits = len(values) == length and all(_is_finite(value) and value >= 0 for value in values)
            self._expect(field, fits, f"{length} finite numbers >= 0")
        if self.epsilon is not None:
            self._expect("epsilon", _is_finite(self.epsilon) and self.epsilon >= 0, "a finite number >= 0, or None")
        self._expect("residual", isinstance(self.residual, float) and not self.residual < 0, "a number >= 0, or nan")
        self._expect("seconds", _is_finite(self.seconds) and self.seconds >= 0, "a finite number >= 0")

    def _expect(self, field: str, condition: bool, expected: str) -> None:
        if not condition:
            value = getattr(self, field)
            raise DataError(f"margins of image {self.index!r}: {field} = {value!r}: expected {expected}")

    def to_json(self) -> dict[str, object]:
        """Return a dict that strict JSON can hold; a residual of nan is None."""
        fields = {"index": self.index, "label": self.label, **self._asdict()}
        return fields | {"residual": self.residual if math.isfinite(self.residual) else None}

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> Margins:
        """Read what :meth:`to_json` wrote, validated.

        Raises:
            DataError: A field is missing, unknown, of the wrong type or inconsistent with another.
        """
        if differing := sorted(set(cls._fields) ^ record.keys()):
            raise DataError(f"margins have or lack {', '.join(differing)}")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        margins = cls(**{**values, "residual": math.nan if record["residual"] is None else record["residual"]})
        margins.validate()
        return margins


Record = Votes | Margins
"""The measurement of one image."""


@dataclass(frozen=True)
class MarginRule:
    """How margins become certificates: with certainty, so there is nothing to choose."""

    alpha = 0.0

    def certify(self, margins: Margins) -> Certificate:
        """Turn the margins of one image into its certificate; an abstention where nothing is certified."""
        radius = margins.radius
        return Certificate(
            index=margins.index,
            label=margins.label,
            prediction=margins.selected if radius > 0 else ABSTAIN,
            radius=radius,
            p_a_lower=None,
            sound=True,
        )


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
