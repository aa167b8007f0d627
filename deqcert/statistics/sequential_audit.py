"""An audit that stops when its outcome says so: a few hundred copies of most images, all of those that need it.

The rule decides about cost, never about truth: certificates use
:func:`~deqcert.statistics.audit.anytime_effective_count`, which holds wherever the audit stops. So the rule may
estimate, as it does of the copies that nobody has audited yet, and a wrong guess costs radius or time at most.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from deqcert.errors import require
from deqcert.statistics.audit import AuditSize, anytime_effective_count, demand_loss, split_alpha, unit_radius
from deqcert.statistics.sequential import anytime_hypergeometric_upper

_DOUBT = 0.05
"""Error probability of what is assumed of copies not audited, as of copies not drawn in ``stopping``."""

# Each look costs one more pass over the noise of all copies: of 10 000 as much as some 90 audits. First looks at 100 to
# 400 copies, or growth to at most twice the size, cost 1 to 5 % more in all.
_FIRST = 800
_SMALLEST_GROWTH, _LARGEST_GROWTH = 1.1, 3.0


@dataclass(frozen=True)
class SequentialAudit(AuditSize):
    """Audit until the rest of the copies would add at most a given share to the radius, or leave no radius at all.

    The first look is taken where the audit ends if there is no mismatch, or after 800 copies; each further one where
    it ends if mismatches go on as they have, but at 1.1 to 3 times what has been audited. Certificates hold for any
    error probability; the ones given here only aim the audit. Needs a single chain: the audit stops by all labels.

    Args:
        radius_loss: Share of the radius at the end of the audit that may be lost, in (0, 1).
        alpha: Error probability of the certificate aimed at, in (0, 1).
        alpha_audit: The audit's share of it, in (0, alpha); None for one half.

    Raises:
        SettingError: A setting is out of range.
    """

    radius_loss: float = 0.05
    alpha: float = 0.001
    alpha_audit: float | None = None

    def __post_init__(self) -> None:
        demand_loss(self.radius_loss)
        split_alpha(self.alpha, self.alpha_audit)

    @property
    def sequential(self) -> bool:
        """True."""
        return True

    def size(self, n_a: int, n: int) -> int:
        """Return ``n_a``, or 0 where even an audit without mismatches would leave no radius."""
        return 0 if self.settled(n_a, n, 0, 0) else n_a

    def next_size(self, n_a: int, n: int, audited: int, mismatches: int) -> int:
        """Return the size at which to look again; see :meth:`AuditSize.next_size`."""
        if self.settled(n_a, n, audited, mismatches):
            return audited
        first, last = 1, _FIRST
        if audited:
            first, last = math.ceil(_SMALLEST_GROWTH * audited), math.floor(_LARGEST_GROWTH * audited)
        first, last = min(first, n_a), min(last, n_a)
        rate = mismatches / max(audited, 1)
        sizes = range(first, last)
        return first + bisect_left(sizes, True, key=lambda size: self.settled(n_a, n, size, round(rate * size)))

    def settled(self, n_a: int, n: int, audited: int, mismatches: int) -> bool:
        """Return whether the radius is at least (1 - radius_loss) of what is attainable.

        That is the radius if all copies were audited and of the rest as few were mismatches as is plausible at the
        level 0.05. A looser level than that of a certificate, because nothing is claimed: only that an image is seldom
        given up too early.

        Args:
            n_a: Copies with cheap label A.
            n: All estimation copies.
            audited: Copies audited so far.
            mismatches: Those of them whose true label is not A.

        Raises:
            SettingError: Not 0 <= mismatches <= audited <= n_a <= n, or ``n_a`` is too large.
        """
        require(0 <= n_a <= n, "n_a", n_a, f"must be in [0, n = {n}]")
        alpha_audit, alpha_count = split_alpha(self.alpha, self.alpha_audit)
        certified = unit_radius(int(anytime_effective_count(n_a, audited, mismatches, alpha_audit)), n, alpha_count)
        matching = int(anytime_hypergeometric_upper(audited - mismatches, n_a, audited, _DOUBT))
        return certified >= (1 - self.radius_loss) * unit_radius(matching, n, alpha_count)
