"""The cache of fixed points."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from deqcert.errors import SettingError, require, require_count
from deqcert.models import DEQ
from deqcert.models.base import map_tensors
from deqcert.reuse.states import First, Mean, Nearest, Previous, States
from deqcert.solvers import Function, Solution, Solver

Policy = Literal["previous", "first", "mean", "nearest"]

_STATES: dict[str, type[States]] = {"previous": Previous, "first": First, "mean": Mean, "nearest": Nearest}


class Savings(NamedTuple):
    """What the solves of a cache took.

    Attributes:
        hits: Rows whose solve started from the cache.
        misses: Rows whose solve started cold.
        nfe_hits: Evaluations for the hits; ``nfe_misses`` for the misses.
    """

    hits: int
    misses: int
    nfe_hits: int
    nfe_misses: int

    @property
    def saved(self) -> float:
        """Evaluations saved, if the hits had else taken as many per row as the misses did; 0 without a miss."""
        return self.hits * self.nfe_misses / self.misses - self.nfe_hits if self.misses else 0.0


class FixedPointCache:
    """Starts solves from the fixed points of related ones: the last video frame, weight sample or noisy sample.

    Related solves share a ``key``, anything hashable, such as ``("camera", 3)``. A solve is a batch, whose rows are
    lanes: row i starts from what an earlier row i found, and of a larger batch from row i modulo the rows known. What
    comes out has the solver's tolerance, whatever the start: where that is loose, or steps are few, the result depends
    on the start, and :func:`deqcert.statistics.audited_mean` tells by how much. Rows that diverged are not kept.

    Args:
        policy: What to start from: the "previous" fixed points of the key; its "first" ones; the "mean" over all rows
            so far; or, row by row, that of the "nearest" known injection (l2), of the last ``rows`` ones.
        rows: Fixed points that "nearest" remembers of a key, >= 1.
        max_bytes: Maximum size of all states, >= 1; None for no limit. Keys not used for longest are forgotten first.
        across_weights: Whether networks of one architecture may share the cache, e.g. weight samples. Otherwise
            another network, or this one with other weights, is refused.

    Raises:
        SettingError: A setting is out of range; or later: a key comes with states of another shape, type or device,
            the cache with another network, or one key's states are larger than ``max_bytes``.

    Example:
        >>> import torch
        >>> from deqcert.solvers import Anderson
        >>> cache, solver = FixedPointCache(), Anderson(max_steps=50, tolerance=1e-4)
        >>> for frame in range(10):
        ...     x = 1 + 0.001 * frame
        ...     solution = cache.solve(lambda z: torch.cos(z) * x, torch.zeros(1, 4), solver, key="camera")
        >>> cache.savings.hits, cache.savings.saved > 0
        (9, True)
    """

    def __init__(
        self,
        policy: Policy = "previous",
        *,
        rows: int = 256,
        max_bytes: int | None = None,
        across_weights: bool = False,
    ) -> None:
        require(policy in get_args(Policy), "policy", policy, f"must be one of {', '.join(get_args(Policy))}")
        require_count("rows", rows, minimum=1)
        if max_bytes is not None:
            require_count("max_bytes", max_bytes, minimum=1)
        self.policy, self.max_bytes, self.across_weights = policy, max_bytes, across_weights
        self._rows = rows
        self._states: OrderedDict[Hashable, States] = OrderedDict()
        self._network: Callable[[], DEQ | None] = lambda: None
        self._versions: list[int] = []
        self._digest: str | None = None
        self._counts: dict[bool, tuple[int, int | Tensor]] = {True: (0, 0), False: (0, 0)}
        self._lock = threading.RLock()

    def solve(
        self,
        function: Function,
        cold: Tensor,
        solver: Solver,
        key: Hashable = None,
        features: Tensor | None = None,
    ) -> Solution:
        """Solve z = F(z) from the cache and remember the solution.

        Args:
            function: F, shape (B, ...) to the same shape, row by row.
            cold: Start where nothing is known, shape (B, ...).
            solver: Solver.
            key: What the solve is related to.
            features: What F depends on, shape (B, ...), for the policy "nearest".

        Raises:
            SettingError: See :class:`FixedPointCache`; or "nearest" has no ``features``.
        """
        start = self._start(key, cold, features)
        solution = solver.solve(function, cold if start is None else start)
        self._remember(key, solution, features, hit=start is not None)
        return solution

    def classify(
        self, network: DEQ, x: Tensor, solver: Solver | None = None, key: Hashable = None
    ) -> tuple[Tensor, Solution]:
        """Classify images by a DEQ, from the cache, and remember the fixed points.

        Args:
            network: The DEQ, in evaluation mode.
            x: Images in [0, 1], shape (B, C, H, W).
            solver: Solver; None for the network's own.
            key: What the solve is related to.

        Returns:
            Logits, shape (B, classes), and the solution.

        Raises:
            SettingError: See :class:`FixedPointCache`.
        """
        self._demand_owner(network)
        features: Tensor | None = None
        hit = False

        def begin(injection: Any) -> Tensor:
            nonlocal features, hit
            features = _features(injection) if self.policy == "nearest" else None
            cold = network.initial_state(injection)
            start = self._start(key, cold, features)
            hit = start is not None
            return cold if start is None else start

        logits, solution = network.solve(x, solver or network.solver, begin)
        self._remember(key, solution, features, hit)
        return logits, solution

    def hold(self, key: Hashable, cold: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Hand out the rows of a key themselves, for a caller that solves a large batch part by part, without copies.

        One thread at a time may hold a key; the policy must be "previous" or "first".

        Args:
            key: What the solve is related to.
            cold: Cold start, shape (B, ...); may be expanded.

        Returns:
            States to start from, None where the key is unknown; and where to write the fixed points, None where the
            policy wants them no more. Both are of shape (B, ...), or both the same tensor.

        Raises:
            SettingError: See :class:`FixedPointCache`; or the policy is another.
        """
        require(self.policy in ("previous", "first"), "policy", self.policy, "must be previous or first to be held")
        with self._lock:
            known = self._known(key, cold)
            states = self._states.setdefault(key, _STATES[self.policy](self._rows))
            if known is None:
                states.rows = cold.new_empty(cold.shape)
            elif len(known.known) < len(cold):
                states.rows = known.start(len(cold), None)
            self._forget_others(key)
            rows = states.known[: len(cold)]
        return (None if known is None else rows), (rows if known is None or self.policy == "previous" else None)

    @property
    def savings(self) -> Savings:
        """What the solves took so far; waits for a GPU."""
        with self._lock:
            (hits, nfe_hits), (misses, nfe_misses) = self._counts[True], self._counts[False]
        return Savings(hits, misses, int(nfe_hits), int(nfe_misses))

    @property
    def bytes(self) -> int:
        """Size of all states."""
        with self._lock:
            return sum(states.bytes for states in self._states.values())

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._states)

    def _start(self, key: Hashable, cold: Tensor, features: Tensor | None) -> Tensor | None:
        """Return the start of a solve, shape of ``cold``; None where the key is unknown."""
        with self._lock:
            known = self._known(key, cold)
            return None if known is None else known.start(len(cold), features)

    def _remember(self, key: Hashable, solution: Solution, features: Tensor | None, hit: bool) -> None:
        """Take in the fixed points of a solve, and what it took."""
        with self._lock:
            states = self._known(key, solution.value) or _STATES[self.policy](self._rows)
            states.add(solution.value.detach(), ~solution.diverged, features)
            if states.rows is not None:
                self._states[key] = states
                self._states.move_to_end(key)
                self._forget_others(key)
            rows, nfe = self._counts[hit]
            self._counts[hit] = rows + len(solution.steps), nfe + solution.steps.sum()

    def _known(self, key: Hashable, like: Tensor) -> States | None:
        """Return the states of a key, now used last, or None; refuse those that differ from ``like``."""
        if (states := self._states.get(key)) is None:
            return None
        known, given = ((tuple(each.shape[1:]), each.dtype, each.device) for each in (states.known, like))
        require(known == given, "key", key, f"has states of shape, type and device {known}, which are not {given}")
        self._states.move_to_end(key)
        return states

    def _forget_others(self, key: Hashable) -> None:
        """Forget the keys that were not used for longest until the others fit beside this one."""
        while self.max_bytes is not None and (size := self.bytes) > self.max_bytes:
            oldest = next(iter(self._states))
            if oldest == key:
                del self._states[key]
                raise SettingError("max_bytes", self.max_bytes, f"must be at least {size}, the states of key {key!r}")
            del self._states[oldest]

    def _demand_owner(self, network: DEQ) -> None:
        """Refuse a network that is not the one whose fixed points these are; cheap while its weights stay."""
        tensors = [*network.parameters(), *network.buffers()]
        # An in-place change of a tensor raises its version.
        versions = [-1 if each.is_inference() else each._version for each in tensors]
        with self._lock:
            if self._network() is network and versions == self._versions:
                return
            digest = _digest(network, weights=not self.across_weights)
            same = "architecture" if self.across_weights else "weights"
            expected = self._digest in (None, digest)
            require(expected, "network", type(network).__name__, f"must have the {same} that this cache began with")
            self._network, self._versions, self._digest = weakref.ref(network), versions, digest


def _digest(network: nn.Module, weights: bool) -> str:
    """Return the SHA-256 of structure, names and shapes, and perhaps weights."""
    digest = hashlib.sha256(repr(network).encode())
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if weights:
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _features(injection: Any) -> Tensor:
    """Return the injection as one row of numbers per image."""
    tensors: list[Tensor] = []
    map_tensors(tensors.append, injection)
    return torch.cat([each.flatten(1) for each in tensors], dim=1)
