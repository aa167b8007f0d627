"""The engine: how noisy samples are classified, batch by batch. It changes the speed of votes, not their meaning."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deqcert.errors import require_count
from deqcert.models import compile_deq
from deqcert.smoothing.base_classifier import SolvedClassifier
from deqcert.smoothing.checks import demand_evaluation_mode
from deqcert.smoothing.workers import Workers
from deqcert.solvers import Solver, Workspace

# Bytes of state per batch. On a CPU a batch then stays in its caches. On a GPU larger batches are faster up to a GiB
# (docs/performance.md); a batch takes some 17 times its states, which must fit into half of the memory.
_STATE_BYTES, _CUDA_STATE_BYTES, _CUDA_SHARE = 3 * 2**20, 2**30, 1 / 40
_MINIMUM_ROWS = 8

INVALID = -1
"""Prediction where a logit is not finite: a vote for nobody."""


@dataclass(frozen=True)
class Execution:
    """How noisy samples are spread over batches. Votes depend on it through the rounding of kernels only.

    Args:
        rows: Maximum number of noisy samples per batch, >= 1; null chooses by device and size of the state
            (docs/performance.md).
        images: Images side by side, >= 1; their samples share batches. null: one on a CPU, as many as fill a batch
            elsewhere.
        compile: Compile the network with ``torch.compile`` (needs a C++ compiler on a CPU; CUDA graphs on a GPU).

    Raises:
        SettingError: If a setting is out of range.
    """

    rows: int | None = None
    images: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        for field in ("rows", "images"):
            value = getattr(self, field)
            if value is not None:
                require_count(f"execution.{field}", value, minimum=1)


class Predictions(NamedTuple):
    """What a classifier says of a batch.

    Attributes:
        classes: Predicted classes, shape (B,), int64; ``INVALID`` where a logit is not finite.
        steps: Evaluations of the cell that each prediction is made of, shape (B,), int64; 1 for a classifier without a
            cell.
        residual: Relative residual of each solve, shape (B,); nan for a classifier without one.
    """

    classes: Tensor
    steps: Tensor
    residual: Tensor

    @classmethod
    def joined(cls, parts: Iterable[Predictions]) -> Predictions:
        """Join batches."""
        return cls(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class Unconverged(NamedTuple):
    """Solves that ended above their tolerance.

    Attributes:
        share: Their share in all solves with a tolerance; 0 if there was none.
        residual: Mean of their residuals, over those that are finite.
    """

    share: float
    residual: float


class Engine:
    """Classifies batches of noisy samples by f, or by another solver on f's network.

    Args:
        base: Base classifier f in evaluation mode, as :func:`~deqcert.smoothing.checks.checked` returns it; its weights
            must not change while the engine is in use.
        execution: How to spread noisy samples over batches.
        image: One clean image, shape (C, H, W), on the device of the classifier.
        width: Noisy samples of one image that are classified side by side.

    Attributes:
        base: f.
        images: Images to classify side by side.
        rows: Maximum number of noisy samples per batch.
        num_classes: Number of classes, known once something has been classified.
        state: A cold start of one row, shape (1, ...); None if f is not a :class:`SolvedClassifier`.

    Raises:
        SettingError: If the classifier is in training mode: its predictions would depend on the batch.
    """

    def __init__(self, base: nn.Module, execution: Execution, image: Tensor, width: int) -> None:
        demand_evaluation_mode(base)
        self.num_classes = 0
        self.base = base
        self.state = _cold_start(base, image)
        fitting = None if self.state is None else _fitting_rows(self.state)
        self.images = execution.images or _images(image.device, fitting, width)
        total = self.images * width
        # Batches of equal size.
        self.rows = execution.rows or math.ceil(total / math.ceil(total / (fitting or total)))
        self._padded = execution.compile
        if execution.compile:
            self.base = _compiled(base)
        # Compiled kernels share their batch between cores, and would not let go of Python for other batches. Other
        # classifiers may keep what one call computes in attributes; of DEQs it is known that they do not.
        several = image.device.type == "cpu" and total > self.rows and not execution.compile and self.state is not None
        self._workers = Workers() if several else None
        self._local = threading.local()
        self._solves = 0
        # Solves above their tolerance, those of finite residual, and the sum of their residuals.
        self._ended = torch.zeros(3, dtype=torch.float64, device=image.device)

    @torch.no_grad()
    def predict(
        self, x: Tensor, solver: Solver | None = None, start: Tensor | None = None, keep: Tensor | None = None
    ) -> Predictions:
        """Classify a batch; nothing waits for a GPU.

        Args:
            x: Noisy samples, shape (B, C, H, W), B >= 1.
            solver: Solver to use in the place of f's.
            start: States to start from, shape (B, ...); None is f's own start.
            keep: Receives the fixed points, shape (B, ...); zeros in rows that diverged. May be ``start`` itself.

        Returns:
            The predictions, on the device of ``x``.
        """

        def one(first: int) -> Predictions:
            rows = slice(first, first + self.rows)
            starts, kept = (None if states is None else states[rows] for states in (start, keep))
            return self._predict_batch(x[rows], solver, starts, kept)

        places = range(0, len(x), self.rows)
        found = [one(first) for first in places] if self._workers is None else self._workers.map(one, places)
        predictions = Predictions.joined(found)
        if isinstance(self.base, SolvedClassifier):
            self._note(predictions.residual, (solver or self.base.solver).tolerance)
        return predictions

    def _note(self, residual: Tensor, tolerance: float) -> None:
        if tolerance > 0:
            ended, finite = residual > tolerance, residual.isfinite()
            total = torch.where(ended & finite, residual.double(), 0.0).sum()
            self._solves += len(residual)
            self._ended += torch.stack([ended.sum().double(), (ended & finite).sum().double(), total])

    @property
    def unconverged(self) -> Unconverged:
        """How many of the solves so far ended at their step limit, or diverged."""
        ended, finite, total = self._ended.tolist()
        return Unconverged(ended / max(self._solves, 1), total / finite if finite else math.nan)

    def _predict_batch(
        self, x: Tensor, solver: Solver | None, start: Tensor | None, keep: Tensor | None
    ) -> Predictions:
        size = len(x)
        if self._padded and size < self.rows:
            x, start = _padded(x, self.rows), None if start is None else _padded(start, self.rows)
        if isinstance(self.base, SolvedClassifier):
            f = self.base
            begin = f.start if start is None else start
            logits, solution = f.network.solve(x, solver or f.solver, begin, self._workspace())
            steps, residual = solution.steps, solution.residual
            if keep is not None:
                keep.copy_(solution.value[:size])
                keep.masked_fill_(solution.diverged[:size].view(-1, *[1] * (keep.dim() - 1)), 0.0)
        else:
            logits = self.base(x)
            steps = torch.ones(len(x), dtype=torch.int64, device=x.device)
            residual = torch.full((len(x),), torch.nan, device=x.device)
        self.num_classes = logits.shape[1]
        return Predictions(classes_of(logits)[:size], steps[:size], residual[:size])

    def _workspace(self) -> Workspace:
        """Return the workspace of the calling thread."""
        if not hasattr(self._local, "workspace"):
            self._local.workspace = Workspace()
        workspace: Workspace = self._local.workspace
        return workspace


def classes_of(logits: Tensor) -> Tensor:
    """Return the class of each row, or ``INVALID`` where a logit is NaN or infinite; shape (B, C) to (B,)."""
    return torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), INVALID)


def count_classes(classes: NDArray[np.int64], num_classes: int) -> tuple[int, ...]:
    """Count each class in ``classes``, shape (N,); ``INVALID`` is not counted."""
    return tuple(np.bincount(classes[classes != INVALID], minlength=num_classes).tolist())


@torch.no_grad()
def _cold_start(base: nn.Module, image: Tensor) -> Tensor | None:
    if not isinstance(base, SolvedClassifier):
        return None
    return base.network.initial_state(base.network.inject(image[None]))


def _fitting_rows(state: Tensor) -> int:
    """Return the maximum number of noisy samples with such a state in a batch."""
    budget = _STATE_BYTES
    if state.device.type == "cuda":
        memory = torch.cuda.get_device_properties(state.device).total_memory
        budget = min(_CUDA_STATE_BYTES, int(_CUDA_SHARE * memory))
    return max(_MINIMUM_ROWS, budget // (state.numel() * state.element_size()))


def _images(device: torch.device, fitting: int | None, width: int) -> int:
    """Return how many images fill a batch; one on a CPU, whose batches are smaller than a chain."""
    return 1 if device.type == "cpu" or fitting is None else math.ceil(fitting / width)


def _compiled(base: nn.Module) -> nn.Module:
    if isinstance(base, SolvedClassifier):
        return SolvedClassifier(compile_deq(base.network), base.solver, base.start)
    compiled: nn.Module = torch.compile(base, dynamic=False)  # type: ignore[assignment]  # a module gives a module
    return compiled


def _padded(batch: Tensor, rows: int) -> Tensor:
    """Repeat the last row until there are ``rows`` of them."""
    return torch.cat([batch, batch[-1:].expand(rows - len(batch), *batch.shape[1:])])
