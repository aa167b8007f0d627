"""The engine: how noisy copies get their labels, launch by launch. It changes the speed of votes, not their meaning."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deqcert.errors import SettingError, require_count
from deqcert.models import DEQ, compile_deq
from deqcert.smoothing.checks import demand_evaluation_mode
from deqcert.smoothing.labels import labels_of
from deqcert.smoothing.workers import Workers
from deqcert.solvers import Solver, Workspace

# Bytes of state per launch. On a CPU a launch then stays in its caches. On a GPU larger launches are faster up to a GiB
# (docs/performance.md); a launch takes some 17 times its states, which must fit into half of the memory.
_STATE_BYTES, _CUDA_STATE_BYTES, _CUDA_SHARE = 3 * 2**20, 2**30, 1 / 40
_FEWEST_ROWS = 8


@dataclass(frozen=True)
class Execution:
    """How copies are spread over launches. Votes depend on it through the rounding of kernels only.

    Args:
        rows: Most copies per launch, >= 1; null chooses by device and size of the state (docs/performance.md).
        images: Images side by side, >= 1; their copies share launches. null: one on a CPU, as many as fill a launch
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


class Labels(NamedTuple):
    """What a classifier says of a batch.

    Attributes:
        labels: Classes, shape (B,), int64; INVALID where a logit is not finite.
        steps: Evaluations of the cell that each label is made of, shape (B,), int64; 1 for classifiers without a cell.
        residual: Relative residual of each solve, shape (B,); nan for classifiers without one.
    """

    labels: Tensor
    steps: Tensor
    residual: Tensor

    @classmethod
    def joined(cls, parts: Iterable[Labels], *shape: int) -> Labels:
        """Join batches into tensors of the given shape."""
        return cls(*(torch.cat(tensors).view(*shape) for tensors in zip(*parts, strict=True)))


class Unconverged(NamedTuple):
    """Solves that ended above their tolerance.

    Attributes:
        share: Their share in all solves with a tolerance; 0 if there was none.
        residual: Mean of their residuals, over those that are finite.
    """

    share: float
    residual: float


class Engine:
    """Labels batches of noisy copies by one classifier, in launches that suit the device.

    Args:
        classifier: Base classifier in evaluation mode, as :func:`~deqcert.smoothing.checks.checked` returns it; its
            weights must not change while the engine is in use.
        execution: How to spread copies over launches.
        image: One clean image, shape (C, H, W), on the device of the classifier.
        width: Copies of one image that are labelled side by side.

    Attributes:
        images: Images to label side by side.
        rows: Most copies per launch.
        num_classes: Classes, known once something has been labelled.
        state: A cold start of one row, shape (1, ...); None for classifiers that are no DEQ.

    Raises:
        SettingError: If the classifier is in training mode: its labels would depend on the batch.
    """

    def __init__(self, classifier: nn.Module, execution: Execution, image: Tensor, width: int) -> None:
        demand_evaluation_mode(classifier)
        self.num_classes = 0
        self._network = classifier
        self.state = _cold_start(self._network, image)
        fitting = None if self.state is None else _fitting_rows(self.state)
        self.images = execution.images or _images(image.device, fitting, width)
        total = self.images * width
        # Launches of equal size.
        self.rows = execution.rows or math.ceil(total / math.ceil(total / (fitting or total)))
        self._padded = execution.compile
        if execution.compile:
            self._network = _compiled(self._network)
        # Compiled kernels share their launch between cores, and would not let go of Python for other launches. Other
        # classifiers may keep what one call computes in attributes; of DEQs it is known that they do not.
        several = image.device.type == "cpu" and total > self.rows and not execution.compile and self.state is not None
        self._workers = Workers() if several else None
        self._local = threading.local()
        self._solves = 0
        # Solves above their tolerance, those of finite residual, and the sum of their residuals.
        self._ended = torch.zeros(3, dtype=torch.float64, device=image.device)

    def lanes(self, width: int, images: int) -> Tensor:
        """Return zeros for ``width`` states of each of some images, shape (width, images, ...).

        Raises:
            SettingError: If the classifier is no DEQ.
        """
        if self.state is None:
            name = type(self._network).__name__
            raise SettingError("smoothing", "Serialized", f"needs a DEQ; certify a {name} by Standard")
        return self.state.new_zeros(width, images, *self.state.shape[1:])

    @torch.no_grad()
    def label(
        self,
        x: Tensor,
        solver: Solver,
        start: Tensor | None = None,
        keep: Tensor | None = None,
        anchored: bool = False,
    ) -> Labels:
        """Label a batch.

        Args:
            x: Noisy copies, shape (B, C, H, W), B >= 1.
            solver: Solver of a DEQ.
            start: States to start from, shape (B, ...); None is the cold or the anchored start.
            keep: Receives the fixed points, shape (B, ...); zeros in rows that diverged. May be ``start`` itself.
            anchored: Whether to start from the network's anchor where no start is given.

        Returns:
            The labels, on the device of ``x``. Nothing waits for a GPU.
        """

        def launch(first: int) -> Labels:
            rows = slice(first, first + self.rows)
            return self._launch(
                x[rows],
                solver,
                None if start is None else start[rows],
                None if keep is None else keep[rows],
                anchored,
            )

        places = range(0, len(x), self.rows)
        launches = [launch(first) for first in places] if self._workers is None else self._workers.map(launch, places)
        labels = Labels.joined(launches, len(x))
        if self.state is not None and solver.tolerance > 0:
            self._note(labels.residual, solver.tolerance)
        return labels

    def _note(self, residual: Tensor, tolerance: float) -> None:
        ended, finite = residual > tolerance, residual.isfinite()
        total = torch.where(ended & finite, residual.double(), 0.0).sum()
        self._solves += len(residual)
        self._ended += torch.stack([ended.sum().double(), (ended & finite).sum().double(), total])

    @property
    def unconverged(self) -> Unconverged:
        """How many of the solves so far ended at their step limit, or diverged."""
        ended, finite, total = self._ended.tolist()
        return Unconverged(ended / max(self._solves, 1), total / finite if finite else math.nan)

    def _launch(self, x: Tensor, solver: Solver, start: Tensor | None, keep: Tensor | None, anchored: bool) -> Labels:
        size = len(x)
        if self._padded and size < self.rows:
            x, start = _padded(x, self.rows), None if start is None else _padded(start, self.rows)
        if isinstance(self._network, DEQ):
            logits, solution = self._network.solve(x, solver, start, self._workspace(), anchored)
            steps, residual = solution.steps, solution.residual
            if keep is not None:
                keep.copy_(solution.value[:size])
                keep.masked_fill_(solution.diverged[:size].view(-1, *[1] * (keep.dim() - 1)), 0.0)
        else:
            logits = self._network(x)
            steps = torch.ones(len(x), dtype=torch.int64, device=x.device)
            residual = torch.full((len(x),), torch.nan, device=x.device)
        self.num_classes = logits.shape[1]
        return Labels(labels_of(logits)[:size], steps[:size], residual[:size])

    def _workspace(self) -> Workspace:
        """Return the workspace of the calling thread."""
        if not hasattr(self._local, "workspace"):
            self._local.workspace = Workspace()
        workspace: Workspace = self._local.workspace
        return workspace


@torch.no_grad()
def _cold_start(network: nn.Module, image: Tensor) -> Tensor | None:
    return network.initial_state(network.inject(image[None])) if isinstance(network, DEQ) else None


def _fitting_rows(state: Tensor) -> int:
    """Return how many copies with such a state a launch should hold at most."""
    budget = _STATE_BYTES
    if state.device.type == "cuda":
        memory = torch.cuda.get_device_properties(state.device).total_memory
        budget = min(_CUDA_STATE_BYTES, int(_CUDA_SHARE * memory))
    return max(_FEWEST_ROWS, budget // (state.numel() * state.element_size()))


def _images(device: torch.device, fitting: int | None, width: int) -> int:
    """Return how many images fill a launch; one on a CPU, whose launches are smaller than a chain."""
    return 1 if device.type == "cpu" or fitting is None else math.ceil(fitting / width)


def _compiled(network: nn.Module) -> nn.Module:
    if isinstance(network, DEQ):
        return compile_deq(network)
    compiled: nn.Module = torch.compile(network, dynamic=False)  # type: ignore[assignment]  # a module gives a module
    return compiled


def _padded(batch: Tensor, rows: int) -> Tensor:
    """Repeat the last row until there are ``rows`` of them."""
    return torch.cat([batch, batch[-1:].expand(rows - len(batch), *batch.shape[1:])])
