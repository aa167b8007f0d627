"""When an image has votes enough: rules that look at the votes so far, between batches.

A rule decides about cost, never about truth: certificates of votes that were stopped use
:func:`~deqcert.statistics.sequential.anytime_lower`, which holds whatever the rule is. So the rules may estimate, as
they do of the copies that nobody has drawn yet, and a wrong guess costs radius at most. Where a rule looks at the
selection copies only (:mod:`~deqcert.statistics.input_specific`), the bound for a fixed n holds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from deqcert.errors import is_real, require
from deqcert.statistics.bounds import certified_radius
from deqcert.statistics.sequential import anytime_lower, anytime_upper

_DOUBT = 0.05
"""Error probability of what is assumed of copies not drawn: 0.001 would take 5 % more copies, 0.2 3 % fewer."""


class Stopping(ABC):
    """When to stop drawing copies of an image."""

    @property
    def anytime(self) -> bool:
        """Whether it looks at estimation copies, so that certificates need a bound that holds wherever it stops."""
        return True

    def budget(self, k0: int, n0: int, n_max: int) -> int:
        """Return how many estimation copies to draw at most, from 1 to ``n_max``, rounded up to whole batches.

        Args:
            k0: Selection copies with the selected class.
            n0: Selection copies.
            n_max: The budget of the run.
        """
        return n_max

    @abstractmethod
    def settled(self, k: int, n: int, n_max: int) -> bool:
        """Return whether to stop, given that ``k`` of ``n`` copies so far have the selected class.

        Only rules that are ``anytime`` are asked.

        Args:
            k: Copies with the selected class, 0 <= k <= n.
            n: Copies so far, 1 <= n <= n_max.
            n_max: The budget: copies at which sampling ends anyway.
        """


@dataclass(frozen=True)
class RelativePrecision(Stopping):
    """Stop as soon as the rest of the budget would add at most a given share to the radius, or leave no radius at all.

    Args:
        precision: Share of the radius at the end of the budget that may be lost, in (0, 1).
        alpha: Error probability of the certificate aimed at, in (0, 1); certificates hold for any other as well.

    Raises:
        SettingError: A setting is out of range.
    """

    precision: float = 0.05
    alpha: float = 0.001

    def __post_init__(self) -> None:
        require(is_real(self.precision) and 0 < self.precision < 1, "precision", self.precision, "must be in (0, 1)")
        _demand_level(self.alpha)

    def settled(self, k: int, n: int, n_max: int) -> bool:
        """Return whether the radius is at least (1 - precision) of :func:`attainable_radius`; see :class:`Stopping`."""
        return _radius(k, n, self.alpha) >= (1 - self.precision) * attainable_radius(k, n, n_max, self.alpha)


@dataclass(frozen=True)
class AbsolutePrecision(Stopping):
    """Stop as soon as the rest of the budget would add at most a given radius, or leave no radius at all.

    For averages over images (ACR): a share of every radius, as :class:`RelativePrecision` has it, spends most copies
    where the radius is smallest.

    Args:
        precision_in_sigma: Radius at the end of the budget that may be lost, in units of sigma, > 0.
        alpha: Error probability of the certificate aimed at, in (0, 1); certificates hold for any other as well.

    Raises:
        SettingError: A setting is out of range.
    """

    precision_in_sigma: float = 0.1
    alpha: float = 0.001

    def __post_init__(self) -> None:
        _demand_radius("precision_in_sigma", self.precision_in_sigma)
        _demand_level(self.alpha)

    def settled(self, k: int, n: int, n_max: int) -> bool:
        """Return whether at most the precision is missing to :func:`attainable_radius`; see :class:`Stopping`."""
        return _radius(k, n, self.alpha) >= attainable_radius(k, n, n_max, self.alpha) - self.precision_in_sigma


@dataclass(frozen=True)
class TargetRadius(Stopping):
    """Stop as soon as a given radius is certified, or the rest of the budget would not certify it.

    For certified accuracy at one radius; larger radii are not looked for.

    Args:
        radius_in_sigma: The radius in units of sigma, > 0: 1.5 is 0.75 at sigma = 0.5.
        alpha: Error probability of the certificate aimed at, in (0, 1); certificates hold for any other as well.

    Raises:
        SettingError: A setting is out of range.
    """

    radius_in_sigma: float
    alpha: float = 0.001

    def __post_init__(self) -> None:
        _demand_radius("radius_in_sigma", self.radius_in_sigma)
        _demand_level(self.alpha)

    def settled(self, k: int, n: int, n_max: int) -> bool:
        """Return whether the radius is certified or out of reach; see :class:`Stopping`."""
        certified = _radius(k, n, self.alpha) >= self.radius_in_sigma
        return certified or attainable_radius(k, n, n_max, self.alpha) < self.radius_in_sigma


def attainable_radius(k: int, n: int, n_max: int, alpha: float) -> float:
    """Radius in units of sigma at the end of the budget, if the rest of the copies turn out as well as is plausible.

    That is, if their share with the selected class is :func:`~deqcert.statistics.sequential.anytime_upper` at the level
    0.05, and thus never more than if all of them have it. A looser level than that of a certificate, because nothing is
    claimed: only that an image is seldom given up too early.

    Args:
        k: Copies with the selected class, 0 <= k <= n.
        n: Copies so far, 1 <= n <= n_max.
        n_max: Copies at the end of the budget.
        alpha: Error probability of the certificate, in (0, 1).

    Raises:
        SettingError: ``k`` or ``n`` is out of range.

    Example:
        >>> round(attainable_radius(400, 400, 10_000, 0.001), 2), round(attainable_radius(360, 400, 10_000, 0.001), 2)
        (3.15, 1.49)
    """
    require(n <= n_max, "n", n, f"must be at most n_max = {n_max}")
    rest = math.ceil((n_max - n) * float(anytime_upper(k, n, _DOUBT)))
    return _radius(k + rest, n_max, alpha)


def _radius(k: int, n: int, alpha: float) -> float:
    return float(certified_radius(anytime_lower(k, n, alpha), 1.0))


def _demand_radius(field: str, radius: float) -> None:
    require(is_real(radius) and 0 < radius < math.inf, field, radius, "must be a finite number > 0")


def _demand_level(alpha: float) -> None:
    require(is_real(alpha) and 0 < alpha < 1, "alpha", alpha, "must be in (0, 1)")
