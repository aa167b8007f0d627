"""The engine: how noisy samples are classified, batch by batch. It changes the speed of votes, not their meaning."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deqcert.errors import SettingError
from deqcert.models import compile_deq
from deqcert.smoothing.base_classifier import SolvedClassifier
from deqcert.smoothing.execution import FREE_BYTES, Execution, Workers
from deqcert.smoothing.memory import Footprint, footprint, free_memory
from deqcert.solvers import Solver, Workspace

INVALID = -1  # prediction where a logit is not finite: a vote for nobody


class Predictions(NamedTuple):
    """What a classifier says of a batch.

    Attributes:
        classes: Shape (B,), int64; ``INVALID`` where a logit is not finite.
        steps: Evaluations of the cell behind each prediction, shape (B,), int64; 1 without a cell.
        residual: Relative residual of each solve, shape (B,); nan without one.
        runner_up: Classes with the second largest logit, shape (B,), int64.
        margin: Largest logit less the second, shape (B,); 0 where a logit is not finite.
    """

    classes: Tensor
    steps: Tensor
    residual: Tensor
    runner_up: Tensor
    margin: Tensor

    @classmethod
    def joined(cls, parts: Iterable[Predictions]) -> Predictions:
        """Join batches."""
        return cls(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class _Workspaces(threading.local, Workspace):
    """A workspace for each thread."""


class Engine:
    """Classifies batches of noisy samples by f, or by another solver on f's network.

    Args:
        base: Base classifier f, checked (:mod:`deqcert.smoothing.checks`); its weights must not change any more.
        execution: How to spread noisy samples over batches.
        image: One clean image, shape (C, H, W), on the device of f.
        width: Noisy samples of one image that are classified side by side.
        proposals: Other solvers to come, of a chain that keeps the fixed points of so many samples of each image.

    Attributes:
        images, rows: Images to classify side by side, and maximum number of noisy samples per batch. A batch for which
            a GPU has no memory is halved, and so are those after it.
        num_classes: Number of classes, known once something has been classified.
        state: A cold start of one row, shape (1, ...); None if f is not a :class:`SolvedClassifier`.
        listener: Told what each call of :meth:`predict` has found; None for nobody.
        counter: Told how many noisy samples a batch has classified, by any thread; None for nobody.
    """

    def __init__(
        self, base: nn.Module, execution: Execution, image: Tensor, width: int, proposals: Sequence[Solver] = ()
    ) -> None:
        self.base = self._original = base
        self.num_classes = 0
        self.state: Tensor | None = None
        self.listener: Callable[[Predictions], None] | None = None
        self.counter: Callable[[int], None] | None = None
        self._image, self._width, self._proposals = image, width, proposals
        if isinstance(base, SolvedClassifier):
            with torch.no_grad():
                self.state = base.network.initial_state(base.network.inject(image[None]))
        free = free_memory(image.device) if image.is_cuda else FREE_BYTES
        limited = image.is_cuda or self.state is None
        self.images, self.rows = execution.spread(self.state, width, *((self.footprint, free) if limited else ()))
        self._workers: Workers | None = None
        self._halving = threading.Lock()
        self._workspace = _Workspaces()
        self._solves = 0
        self._unconverged = torch.zeros((), dtype=torch.int64, device=image.device)
        self._residual = torch.zeros((), device=image.device)
        # Compiled kernels share their batch between cores, and would not let go of Python for other batches. Other
        # classifiers may keep what one call computes in attributes; of DEQs it is known that they do not.
        self._compiled = execution.compile
        if execution.compile and isinstance(base, SolvedClassifier):
            self.base = SolvedClassifier(compile_deq(base.network), base.solver, base.start)
        elif execution.compile:
            self.base = torch.compile(base, dynamic=False)  # type: ignore[assignment]  # a module gives a module
        elif image.device.type == "cpu" and self.images * width > self.rows and self.state is not None:
            self._workers = Workers()

    @torch.no_grad()
    def predict(
        self, x: Tensor, solver: Solver | None = None, start: Tensor | None = None, keep: Tensor | None = None
    ) -> Predictions:
        """Classify noisy samples on their device; nothing waits for a GPU.

        Args:
            x: Shape (B, C, H, W), B >= 1.
            solver: Solver to use in the place of f's.
            start: States to start from, shape (B, ...); None is f's own start.
            keep: Receives the fixed points, shape (B, ...); zeros in rows that diverged. May be ``start`` itself.
        """
        batch = partial(self._predict_rows, x, solver, start, keep)
        batches = [range(first, min(first + self.rows, len(x))) for first in range(0, len(x), self.rows)]
        found = list(map(batch, batches)) if self._workers is None else self._workers.map(batch, batches)
        predictions = Predictions.joined(found)
        if solver is None and isinstance(self.base, SolvedClassifier) and self.base.solver.tolerance > 0:
            self._solves += len(x)
            self._unconverged += (predictions.residual > self.base.solver.tolerance).sum()
            self._residual += predictions.residual.sum()
        if self.listener is not None:
            self.listener(predictions)
        return predictions

    @cached_property
    def footprint(self) -> Footprint:
        """Memory that a noisy sample takes."""
        return footprint(self._original, self._image, self._proposals)

    @property
    def memory(self) -> int:
        """Bytes to expect at most while votes are taken, besides the network and libraries."""
        threads = 1 if self._workers is None else torch.get_num_threads()
        side_by_side = self.images * self._width
        solved = min(threads * self.rows, side_by_side)
        return solved * self.footprint.row + side_by_side * self.footprint.held

    @property
    def unconverged(self) -> float:
        """Share of the solves by f so far that ended above its tolerance, if it has one."""
        return int(self._unconverged) / max(self._solves, 1)

    @property
    def mean_residual(self) -> float:
        """Mean relative residual of the same solves."""
        return float(self._residual) / max(self._solves, 1)

    def _predict_rows(
        self, x: Tensor, solver: Solver | None, start: Tensor | None, keep: Tensor | None, rows: range
    ) -> Predictions:
        """Classify these rows in one batch, or in smaller ones if that takes more memory than there is."""
        parts: list[Predictions] = []
        first = rows.start
        while first < rows.stop:
            part = slice(first, min(first + self.rows, rows.stop))
            size = part.stop - first
            try:
                parts.append(self._predict_batch(x, solver, start, keep, part))
            except torch.OutOfMemoryError:
                size = 0
            # Outside of the handler, whose traceback holds the tensors of the batch.
            if size == 0:
                self._halve(part.stop - first)
            elif self.counter is not None:
                self.counter(size)
            first += size
        return Predictions.joined(parts)

    def _halve(self, size: int) -> None:
        """Classify in smaller batches from now on: one of ``size`` rows did not fit."""
        self._workspace = _Workspaces()
        torch.cuda.empty_cache()
        with self._halving:
            if size > self.rows:  # another thread has halved it meanwhile
                return
            if size == 1:
                allowed = "not even one noisy sample fits into the free memory of the device"
                raise SettingError("execution.rows", 1, f"{allowed}; smaller images, network or batch_size take less")
            self.rows = (size + 1) // 2
            what = f"Out of memory with {size} noisy samples per batch; going on with {self.rows}, and the same votes."
            warnings.warn(what, stacklevel=2)

    def _predict_batch(
        self, x: Tensor, solver: Solver | None, start: Tensor | None, keep: Tensor | None, rows: slice
    ) -> Predictions:
        """Classify one batch."""
        f = self.base
        size = rows.stop - rows.start
        x = self._filled(x[rows])
        if isinstance(f, SolvedClassifier):
            begin = f.start if start is None else self._filled(start[rows])
            logits, solution = f.network.solve(x, solver or f.solver, begin, self._workspace)
            steps, residual = solution.steps, solution.residual
        else:
            logits, solution = f(x), None
            steps = torch.ones(len(x), dtype=torch.int64, device=x.device)
            residual = torch.full((len(x),), torch.nan, device=x.device)
        self.num_classes = logits.shape[1]
        found = Predictions(classes_of(logits)[:size], steps[:size], residual[:size], *_margins(logits[:size]))
        if keep is not None and solution is not None:  # last: it may be the start, which another try would need
            diverged = solution.diverged[:size].view(-1, *[1] * (keep.dim() - 1))
            keep[rows].copy_(solution.value[:size]).masked_fill_(diverged, 0.0)
        return found

    def _filled(self, batch: Tensor) -> Tensor:
        """Repeat the last row until the batch has the size that kernels are compiled for."""
        missing = self.rows - len(batch) if self._compiled else 0
        return torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing > 0 else batch


def classes_of(logits: Tensor) -> Tensor:
    """Return the class of each row, or ``INVALID`` where a logit is NaN or infinite; shape (B, C) to (B,)."""
    return torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), INVALID)


def _margins(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class of the second largest logit and the distance from it, (B, C) to (B,); infinite for one class."""
    if logits.shape[1] == 1:
        return torch.full_like(logits[:, 0], INVALID, dtype=torch.int64), torch.full_like(logits[:, 0], torch.inf)
    values, classes = logits.topk(2, dim=1)
    return classes[:, 1], torch.where(logits.isfinite().all(dim=1), values[:, 0] - values[:, 1], 0.0)


def count_classes(classes: Tensor, num_classes: int) -> tuple[int, ...]:
    """Count each class in ``classes``, shape (N,); ``INVALID`` is not counted."""
    return tuple(torch.bincount(classes[classes != INVALID], minlength=num_classes).tolist())
