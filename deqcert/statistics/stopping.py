"""Stopping rules: when an image has enough noisy samples.

A rule decides about cost, never about truth. If it looks at estimation samples, certificates use
:func:`~deqcert.statistics.anytime.anytime_lower`, which holds whatever the rule is; if it looks at the selection
samples only, the bound for a fixed n holds. So a rule may guess what samples not yet drawn will say: a wrong guess only
costs radius or time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Literal, get_args

from deqcert.errors import is_real, require
from deqcert.statistics.anytime import anytime_lower
from deqcert.statistics.arguments import demand_level
from deqcert.statistics.bounds import DEFAULT_ALPHA, clopper_pearson_lower, clopper_pearson_upper, radius_of_count

_DOUBT = 0.05
"""Error probability of what is assumed of samples not drawn: 0.001 would take 5 % more samples, 0.2 3 % fewer."""


class Stopping(ABC):
    """When to stop drawing noisy samples of an image."""

    @property
    def anytime(self) -> bool:
        """Whether it looks at estimation samples, so that certificates need a bound that holds wherever it stops."""
        return True

    def aimed_at(self, alpha: float) -> Stopping:
        """Return the rule with the error probability of the certificates to come, unless it states its own."""
        return self

    def budget(self, k0: int, n0: int, n_max: int) -> int:
        """Return the maximum number of estimation samples, from 1 to ``n_max``; it is rounded up to whole batches.

        Args:
            k0: Selection samples with the selected class.
            n0: Selection samples.
            n_max: The budget of the run.
        """
        return n_max

    @abstractmethod
    def settled(self, k: int, n: int, n_max: int) -> bool:
        """Return whether to stop, given that ``k`` of ``n`` samples so far have the selected class.

        Only rules that are ``anytime`` are asked.

        Args:
            k: Samples with the selected class, 0 <= k <= n.
            n: Samples so far, 1 <= n <= n_max.
            n_max: The budget: samples at which sampling ends anyway.
        """


@dataclass(frozen=True)
class TargetRadius(Stopping):
    """Stop as soon as a given radius is certified, or the rest of the budget would not certify it.

    For certified accuracy at one radius; larger radii are not looked for.

    Args:
        radius_in_sigma: The radius in units of sigma, > 0: 1.5 is 0.75 at sigma = 0.5.
        alpha: Error probability of the certificate aimed at, in (0, 1); None for that of the run's certificates.
            Certificates hold for any other as well.

    Raises:
        SettingError: A setting is out of range.
    """

    radius_in_sigma: float
    alpha: float | None = None

    def __post_init__(self) -> None:
        radius = self.radius_in_sigma
        require(is_real(radius) and 0 < radius < math.inf, "radius_in_sigma", radius, "must be a finite number > 0")
        if self.alpha is not None:
            demand_level("alpha", self.alpha)

    def aimed_at(self, alpha: float) -> TargetRadius:
        """See :meth:`Stopping.aimed_at`."""
        return replace(self, alpha=alpha) if self.alpha is None else self

    def settled(self, k: int, n: int, n_max: int) -> bool:
        """Return whether the radius is certified or out of reach; see :class:`Stopping`."""
        alpha = self.alpha or DEFAULT_ALPHA
        if radius_of_count(k, n, alpha, bound=anytime_lower) >= self.radius_in_sigma:
            return True
        return attainable_radius(k, n, n_max, alpha) < self.radius_in_sigma


def attainable_radius(k: int, n: int, n_max: int, alpha: float) -> float:
    """Radius in units of sigma at the end of the budget, if the remaining samples turn out as well as is plausible.

    That is, if their share with the selected class is the anytime-valid upper bound at the level 0.05. A looser level
    than that of a certificate, because nothing is claimed: only that an image is seldom given up too early.

    Raises:
        SettingError: Not 0 <= k <= n <= n_max with n >= 1, or ``alpha`` is outside of (0, 1).

    Example:
        >>> round(attainable_radius(400, 400, 10_000, 0.001), 2), round(attainable_radius(360, 400, 10_000, 0.001), 2)
        (3.15, 1.49)
    """
    require(n <= n_max, "n", n, f"must be at most n_max = {n_max}")
    rest = math.ceil((n_max - n) * (1.0 - float(anytime_lower(n - k, n, _DOUBT))))
    return radius_of_count(k + rest, n_max, alpha, bound=anytime_lower)


Loss = Literal["relative", "absolute"]


@dataclass(frozen=True)
class InputSpecific(Stopping):
    """Draw as few samples as lose at most a given part of the radius, as far as the selection samples can tell.

    Input-specific sampling (Chen, Li, Yan, Li and Sheng, AAAI 2022, arXiv 2112.12084): the selection samples bound p_A
    from both sides, and for either bound the smallest n is taken whose radius is as demanded beside that of the whole
    budget; the larger of the two is drawn. They serve as the pilot, so take more of them than the usual 100.

    n is a function of the selection samples, which the estimation samples are independent of: the bound of Clopper and
    Pearson holds at the full level, without a correction for looks. The public code of the paper also counts the pilot,
    which has chosen class and n, among the estimation samples; that has no proof, so it is not done here.

    Args:
        radius_loss: What may be lost: a share of the radius in (0, 1), or a radius in units of sigma, > 0.
        loss: Which of the two: "relative" or "absolute".
        alpha: Error probability of the certificate aimed at, in (0, 1); None for that of the run's certificates.
            Certificates hold for any other as well.
        doubt: Error probability of the bounds on p_A together, in (0, 1); nothing is claimed by them.

    Raises:
        SettingError: A setting is out of range.
    """

    radius_loss: float = 0.05
    loss: Loss = "relative"
    alpha: float | None = None
    doubt: float = 0.05

    def __post_init__(self) -> None:
        require(self.loss in get_args(Loss), "loss", self.loss, f"must be one of {get_args(Loss)}")
        limit = 1.0 if self.loss == "relative" else math.inf
        fits = is_real(self.radius_loss) and 0 < self.radius_loss < limit
        require(fits, "radius_loss", self.radius_loss, f"must be in (0, {limit:g}) for a loss that is {self.loss}")
        if self.alpha is not None:
            demand_level("alpha", self.alpha)
        demand_level("doubt", self.doubt)

    @property
    def anytime(self) -> bool:
        """False: it looks at no estimation sample."""
        return False

    def aimed_at(self, alpha: float) -> InputSpecific:
        """See :meth:`Stopping.aimed_at`."""
        return replace(self, alpha=alpha) if self.alpha is None else self

    def budget(self, k0: int, n0: int, n_max: int) -> int:
        """Return the larger of the sizes that both bounds on p_A ask for: between them less is needed.

        Except where the lower one leaves no radius: just above such p_A a relative loss of next to nothing asks for
        nearly the whole budget. As published, that is not looked at.

        Raises:
            SettingError: Not 0 <= k0 <= n0.
        """
        bounds = (bound(k0, n0, self.doubt / 2) for bound in (clopper_pearson_lower, clopper_pearson_upper))
        return max(self._size(max(0.5, float(p)), n_max) for p in bounds)

    def settled(self, k: int, n: int, n_max: int) -> bool:
        """Return False: the budget ends sampling."""
        return False

    def _size(self, p: float, n_max: int) -> int:
        """Return the smallest n that certifies as much as demanded if a share ``p`` of the samples has the class."""
        whole = self._radius(p, n_max)
        least = whole * (1 - self.radius_loss) if self.loss == "relative" else whole - self.radius_loss
        if least <= 0:
            return 1
        return 1 + bisect_left(range(1, n_max), least, key=lambda n: self._radius(p, n))

    def _radius(self, p: float, n: int) -> float:
        return radius_of_count(math.floor(p * n), n, self.alpha or DEFAULT_ALPHA)
