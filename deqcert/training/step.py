"""One training step as an objective sees it: noise level, epoch, and the network to train or to attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from deqcert.attacks import Classifier, WarmStarted, frozen
from deqcert.attacks.networks import Cell
from deqcert.implicit import BackwardMonitor, FixedPoint, GradientEstimator
from deqcert.models import DEQ
from deqcert.solvers import Solver


@dataclass
class TrainingStep:
    """A step, in epoch 0, 1, ..., of a network that is not a DEQ; ``function`` is the network or its compiled form."""

    network: nn.Module
    sigma: float
    epoch: int
    function: Callable[[Tensor], Tensor]

    def logits(self, x: Tensor) -> Tensor:
        """Return logits in training mode with a graph to the parameters, shape (B, C, H, W) to (B, classes)."""
        return self.function(x)

    @contextmanager
    def attacked(self, gradient: GradientEstimator) -> Iterator[Classifier]:
        """Yield the network in evaluation mode with frozen parameters, differentiable in its images.

        On exit, also by an error, the network is again as it was. ``gradient`` is for the fixed point of a DEQ.
        """
        with frozen(self.network):
            yield self.network


@dataclass
class ImplicitStep(TrainingStep):
    """A step of a DEQ, whose ``function`` is its cell or the compiled form of that.

    Attributes:
        gradient: Gradient estimator of the current phase.
        solver: Forward solver of the training pass.
        attack_gradient: Overrides the gradient of attacks (pre-training: the network has no fixed point yet).
        monitor: Receives the solutions of the backward solves of training, not of attacks.
        fixed_points: What :meth:`logits` solved, in order.
    """

    network: DEQ
    function: Cell  # type: ignore[assignment]
    gradient: GradientEstimator
    solver: Solver
    attack_gradient: GradientEstimator | None = None
    monitor: BackwardMonitor | None = None
    fixed_points: list[FixedPoint] = field(default_factory=list)

    def logits(self, x: Tensor) -> Tensor:
        """Solve, classify, and remember the fixed point."""
        injection = self.network.inject(x)
        start = self.network.initial_state(injection)
        fixed_point = self.gradient.fixed_point(lambda z: self.function(z, injection), start, self.solver, self.monitor)
        self.fixed_points.append(fixed_point)
        return self.network.head(fixed_point.value)

    @contextmanager
    def attacked(self, gradient: GradientEstimator) -> Iterator[Classifier]:
        """See :meth:`TrainingStep.attacked`; each solve starts from the fixed points of the one before it."""
        with frozen(self.network):
            yield WarmStarted(self.network, self.function, self.network.solver, self.attack_gradient or gradient)
