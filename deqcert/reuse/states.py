"""What a cache remembers of one key, by policy."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from deqcert.errors import SettingError


class States(ABC):
    """The states of one key; tensors are replaced, never written to, so that starts handed out stay what they are.

    Args:
        limit: Rows to remember at most, for a policy that remembers more than one batch.

    Attributes:
        rows: States, shape (R, ...).
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.rows: Tensor | None = None

    @property
    def known(self) -> Tensor:
        """The states; something has been added."""
        assert self.rows is not None
        return self.rows

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return 0 if self.rows is None else self.rows.nbytes

    @abstractmethod
    def start(self, count: int, features: Tensor | None) -> Tensor:
        """Return the starts of ``count`` rows."""

    @abstractmethod
    def add(self, found: Tensor, kept: Tensor, features: Tensor | None) -> None:
        """Take in fixed points, shape (B, ...), where ``kept``, shape (B,), says so."""


class First(States):
    """The rows of the first batch; row i of a larger one starts from row i modulo their number."""

    def start(self, count: int, features: Tensor | None) -> Tensor:
        """See :meth:`States.start`; a view where the rows suffice."""
        size = len(self.known)
        return self.known[:count] if count <= size else self.known[torch.arange(count, device=self.known.device) % size]

    def add(self, found: Tensor, kept: Tensor, features: Tensor | None) -> None:
        """See :meth:`States.add`."""
        if self.rows is None:
            self.rows = _zeroed(found, kept)


class Previous(First):
    """The newest fixed point of each row."""

    def add(self, found: Tensor, kept: Tensor, features: Tensor | None) -> None:
        """See :meth:`States.add`."""
        older = [] if self.rows is None else [self.rows[len(found) :]]
        self.rows = torch.cat([_zeroed(found, kept), *older])


class Mean(States):
    """The mean of all rows so far."""

    _count = 0

    def start(self, count: int, features: Tensor | None) -> Tensor:
        """See :meth:`States.start`."""
        return self.known.expand(count, *self.known.shape[1:])

    def add(self, found: Tensor, kept: Tensor, features: Tensor | None) -> None:
        """See :meth:`States.add`."""
        found = found[kept]
        if len(found):
            self._count += len(found)
            mean = torch.zeros_like(found[:1]) if self.rows is None else self.rows
            self.rows = mean + (found - mean).sum(dim=0, keepdim=True) / self._count


class Nearest(States):
    """Row by row the state with the nearest features, of the last ``limit`` rows."""

    _features: Tensor

    @property
    def bytes(self) -> int:
        """See :attr:`States.bytes`."""
        return 0 if self.rows is None else self.rows.nbytes + self._features.nbytes

    def start(self, count: int, features: Tensor | None) -> Tensor:
        """See :meth:`States.start`."""
        return self.known[torch.cdist(self._fitting(features), self._features).argmin(dim=1)]

    def add(self, found: Tensor, kept: Tensor, features: Tensor | None) -> None:
        """See :meth:`States.add`."""
        found, features = found[kept], self._fitting(features)[kept]
        if len(found):
            # Copies, since a slice would hold all rows of the batch in memory.
            self.rows = (found if self.rows is None else torch.cat([self.rows, found]))[-self.limit :].clone()
            known = [self._features] if hasattr(self, "_features") else []
            self._features = torch.cat([*known, features])[-self.limit :].clone()

    def _fitting(self, features: Tensor | None) -> Tensor:
        """Return the features as rows of numbers."""
        if features is None:
            raise SettingError("features", None, 'must be given for the policy "nearest"')
        flat = features.detach().flatten(1)
        if hasattr(self, "_features") and flat.shape[1] != self._features.shape[1]:
            allowed = f"must have {self._features.shape[1]} numbers per row, as those that are known"
            raise SettingError("features", tuple(features.shape), allowed)
        return flat


def _zeroed(found: Tensor, kept: Tensor) -> Tensor:
    """Return a copy with zeros in the rows that are not kept."""
    return found.masked_fill(~kept.view(-1, *[1] * (found.dim() - 1)), 0.0)
