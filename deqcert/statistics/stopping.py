"""Group sequential sampling: few looks at the votes, fixed beforehand, at each of which sampling may stop.

A bound for a fixed n is void if n was chosen by looking at the votes. With looks at n_1 < ... < n_J and shares w_1 +
... + w_J = 1, all fixed before any vote, the bound at look j at the level w_j alpha holds at all looks at once with
probability at least 1 - alpha (union bound), so it holds wherever sampling stops and whatever made it stop. The rule
that stops therefore decides about cost, never about truth, and may guess what samples not yet drawn will say.

Most samples are spent on images whose radius a tenth of them would show nearly as well; a few looks see that as well as
a look after every batch, which takes a wider bound (docs/what_did_not_work.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from deqcert.errors import is_real, require, require_count
from deqcert.statistics.arguments import demand_level
from deqcert.statistics.bounds import DEFAULT_ALPHA, clopper_pearson_upper, radius_of_count

_FRACTIONS = (0.03, 0.06, 0.1, 0.16, 0.25, 0.4, 0.65, 1.0)
_SHARES = (0.04, 0.07, 0.1, 0.13, 0.15, 0.15, 0.16, 0.2)
"""Shares matter little: equal ones take as many samples for at most 0.8 % less of the radius (simulated)."""

_DOUBT = 0.05
"""Error probability of what is assumed of samples not drawn, if a radius is asked for; nothing is claimed by it."""


@dataclass(frozen=True)
class GroupSequential:
    """Stop at a look if going on would not be worth it.

    Args:
        radius_gain: Stop where no later look would add this much to the radius, in units of sigma, > 0, if the share of
            the selected class stayed as it is. Smaller takes more samples and loses less of the ACR
            (docs/frontier.md).
        radius_in_sigma: Radius to certify, in units of sigma, > 0, in the place of that: stop where it is certified, or
            where no later look can plausibly do so. For certified accuracy at one radius.
        looks: Estimation samples at each look, increasing, the last one n; null = 8 looks from 3 % of n on. Each is
            taken at the end of the batch that it falls into.
        shares: Shares of alpha, one for each look, in (0, 1], 1 in all; null = the fixed ones for 8 looks, else equal.
        alpha: Error probability of the certificate aimed at, in (0, 1); null = that of the run's certificates.
            Certificates hold for any other as well.

    Raises:
        SettingError: A setting is out of range.
    """

    radius_gain: float = 0.06
    radius_in_sigma: float | None = None
    looks: tuple[int, ...] | None = None
    shares: tuple[float, ...] | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        for field in ("radius_gain", "radius_in_sigma"):
            value = getattr(self, field)
            if field == "radius_gain" or value is not None:
                require(is_real(value) and 0 < value < math.inf, field, value, "must be a finite number > 0")
        if self.looks is not None:
            for look in self.looks:
                require_count("looks", look, minimum=1)
            increasing = len(self.looks) > 0 and all(a < b for a, b in zip(self.looks, self.looks[1:], strict=False))
            require(increasing, "looks", self.looks, "must be increasing, and at least one")
        if self.shares is not None:
            count = len(_FRACTIONS if self.looks is None else self.looks)
            fits = len(self.shares) == count and all(is_real(share) and 0 < share <= 1 for share in self.shares)
            require(fits, "shares", self.shares, f"must be {count} numbers in (0, 1], one for each look")
            require(abs(sum(self.shares) - 1) <= 1e-9, "shares", self.shares, "must be 1 in all")
        if self.alpha is not None:
            demand_level("alpha", self.alpha)

    def aimed_at(self, alpha: float) -> GroupSequential:
        """Return the rule with the error probability of the certificates to come, unless it states its own."""
        return replace(self, alpha=alpha) if self.alpha is None else self

    def schedule(self, n: int, batch_size: int) -> dict[int, float]:
        """Return the share of alpha at each look, by the number of samples there; shares in one batch add up.

        Raises:
            SettingError: The last look is not at ``n``.
        """
        looks = self.looks or tuple(math.ceil(fraction * n) for fraction in _FRACTIONS)
        require(looks[-1] == n, "looks", looks, f"must end at n = {n}")
        shares = self.shares or (_SHARES if self.looks is None else (1 / len(looks),) * len(looks))
        total = max(1.0, math.fsum(shares))  # no rounding may make them more than 1
        schedule: dict[int, float] = {}
        for look, share in zip(looks, shares, strict=True):
            place = min(n, math.ceil(look / batch_size) * batch_size)
            schedule[place] = min(1.0, schedule.get(place, 0.0) + share / total)
        return schedule

    def settled(self, k: int, look: int, schedule: dict[int, float]) -> bool:
        """Return whether to stop at ``look``, where ``k`` samples have the selected class.

        Args:
            k: Samples with the selected class, 0 <= k <= look.
            look: Samples so far, a key of ``schedule``.
            schedule: From :meth:`schedule`.
        """
        alpha = self.alpha or DEFAULT_ALPHA
        share = k / look if self.radius_in_sigma is None else float(clopper_pearson_upper(k, look, _DOUBT))
        # Rounded up, so that a share of 1 stays one.
        later = {n: k + math.ceil((n - look) * share - 1e-9) for n in schedule if n > look}
        best = max((radius_of_count(each, n, alpha * schedule[n]) for n, each in later.items()), default=0.0)
        radius = radius_of_count(k, look, alpha * schedule[look])
        if self.radius_in_sigma is None:
            return best < radius + self.radius_gain
        return radius >= self.radius_in_sigma or best < self.radius_in_sigma
