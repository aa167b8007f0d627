"""Input-specific sampling: a number of copies that suits the image, chosen before any of them is drawn."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import floor
from typing import Literal, get_args

from deqcert.errors import is_real, require
from deqcert.statistics.bounds import certified_radius, clopper_pearson_lower, clopper_pearson_upper
from deqcert.statistics.stopping import Stopping

Loss = Literal["relative", "absolute"]


@dataclass(frozen=True)
class InputSpecific(Stopping):
    """Draw as few copies as lose at most a given part of the radius, as far as the selection copies can tell.

    Input-specific sampling (Chen, Li, Yan, Li and Sheng, AAAI 2022, arXiv 2112.12084): the selection copies bound p_A
    from both sides, and for either bound the smallest n is taken whose radius is as demanded beside that of the whole
    budget; the larger of the two is drawn. They serve as the pilot, so take more of them than the usual 100.

    n is a function of the selection copies, which the estimation copies are independent of: the bound of Clopper and
    Pearson holds at the full level, without a correction for looks. The public code of the paper counts the pilot,
    which has chosen class and n, among the estimation copies as well; that has no proof, so it is not done here.

    Args:
        radius_loss: What may be lost: a share of the radius in (0, 1), or a radius in units of sigma, > 0.
        loss: Which of the two: "relative" or "absolute".
        alpha: Error probability of the certificate aimed at, in (0, 1); certificates hold for any other as well.
        doubt: Error probability of the bounds on p_A together, in (0, 1); nothing is claimed by them.

    Raises:
        SettingError: A setting is out of range.
    """

    radius_loss: float = 0.05
    loss: Loss = "relative"
    alpha: float = 0.001
    doubt: float = 0.05

    def __post_init__(self) -> None:
        require(self.loss in get_args(Loss), "loss", self.loss, f"must be one of {get_args(Loss)}")
        most = 1.0 if self.loss == "relative" else float("inf")
        fits = is_real(self.radius_loss) and 0 < self.radius_loss < most
        require(fits, "radius_loss", self.radius_loss, f"must be in (0, {most:g}) for a loss that is {self.loss}")
        for field in ("alpha", "doubt"):
            value = getattr(self, field)
            require(is_real(value) and 0 < value < 1, field, value, "must be in (0, 1)")

    @property
    def anytime(self) -> bool:
        """False: no estimation copy is looked at."""
        return False

    def budget(self, k0: int, n0: int, n_max: int) -> int:
        """Return the larger of the sizes that both bounds on p_A ask for; see :meth:`Stopping.budget`.

        Between them less is needed (a relative loss asks for less as p_A leaves 1/2 and for more again towards 1),
        unless the lower one leaves no radius at all: just above such p_A a relative loss of next to nothing asks for
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
        """Return the smallest n that certifies as much as demanded if a share ``p`` of the copies has the class."""
        whole = self._radius(p, n_max)
        least = whole * (1 - self.radius_loss) if self.loss == "relative" else whole - self.radius_loss
        if least <= 0:
            return 1
        sizes = range(1, n_max)
        return 1 + bisect_left(sizes, least, key=lambda n: self._radius(p, n))

    def _radius(self, p: float, n: int) -> float:
        return float(certified_radius(clopper_pearson_lower(floor(p * n), n, self.alpha), 1.0))
