"""Networks as attacks see them: frozen, differentiable in the images, classifying noisy samples in one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deqcert.implicit import GradientEstimator
from deqcert.models import DEQ
from deqcert.solvers import Solver

Classifier = Callable[[Tensor], Tensor]
"""Maps images of shape (B, C, H, W) to logits of shape (B, classes)."""

Cell = Callable[[Tensor, Any], Tensor]
"""Maps states and their injection to the next states: the cell of a DEQ, or its compiled form."""


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode and its parameters out of the graph.

    On exit, also by an error, every submodule and every parameter is again as it was, each on its own.
    """
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        module.eval()
        module.requires_grad_(False)
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad = requires_grad


def few_step_logits(network: DEQ, x: Tensor, steps: int) -> Tensor:
    """Return logits (B, classes) of ``x`` (B, C, H, W) with their graph, after plain steps from the anchor."""
    injection = network.inject(x)
    z = network.anchor(injection)
    for _ in range(steps):
        z = network.cell(z, injection)
    return network.head(z)


def classify_noisy(classifier: Classifier, images: Tensor, noise: Tensor) -> Tensor:
    """Return the logits of ``images + noise``, all in one batch: noise (m, B, C, H, W) to logits (m, B, classes)."""
    samples, batch = noise.shape[:2]
    return classifier((images + noise).flatten(0, 1)).view(samples, batch, -1)


def log_smoothed(logits: Tensor) -> Tensor:
    """Return the logarithm of the softmax averaged over the noisy samples, shape (m, B, classes) to (B, classes)."""
    return F.log_softmax(logits, dim=2).logsumexp(dim=0) - math.log(len(logits))


class WarmStarted:
    """Classifies images with a graph to them; each solve starts from the fixed points of the one before it.

    The steps of an attack are small, so its next fixed points are near. A batch of another size and rows whose last
    fixed point is not finite start cold, and so does every batch where the gradient is unrolled. The network is in
    evaluation mode; ``cell`` is its cell, or the compiled form of it.
    """

    def __init__(self, network: DEQ, cell: Cell, solver: Solver, gradient: GradientEstimator) -> None:
        self._network, self._cell, self._solver, self._gradient = network, cell, solver, gradient
        self._last: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits of ``x``, shape (B, C, H, W) to (B, classes)."""
        injection = self._network.inject(x)
        start = self._network.initial_state(injection)
        if self._last is not None and len(self._last) == len(start):
            finite = self._last.flatten(1).isfinite().all(dim=1).view(-1, *[1] * (start.dim() - 1))
            start = torch.where(finite, self._last, start)
        fixed_point = self._gradient.fixed_point(lambda z: self._cell(z, injection), start, self._solver)
        self._last = None if fixed_point.solution is None else fixed_point.state.detach()
        return self._network.head(fixed_point.value)
