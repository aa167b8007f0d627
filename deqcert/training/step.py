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
    """Implements :class:`deqcert.training.objectives.TrainingContext` for a DEQ.

    Attributes:
        network: The network.
        sigma: Standard deviation of the training noise.
        epoch: Current epoch, from 0.
        gradient: Gradient estimator of the current phase.
        solver: Forward solver of the training pass.
        cell: The cell; compiled where that is asked for.
        attack_gradient: Overrides the gradient of attacks; None leaves the choice to the attack.
        monitor: Receives the solutions of the backward solves of training, not of attacks.
        fixed_points: What :meth:`logits` solved, in order.
    """

    network: DEQ
    sigma: float
    epoch: int
    gradient: GradientEstimator
    solver: Solver
    cell: Cell
    attack_gradient: GradientEstimator | None = None
    monitor: BackwardMonitor | None = None
    fixed_points: list[FixedPoint] = field(default_factory=list)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of ``x``, shape (B, C, H, W) to (B, classes), with a graph to the parameters."""
        injection = self.network.inject(x)
        start = self.network.initial_state(injection)
        fixed_point = self.gradient.fixed_point(lambda z: self.cell(z, injection), start, self.solver, self.monitor)
        self.fixed_points.append(fixed_point)
        return self.network.head(fixed_point.value)

    @contextmanager
    def attacked(self, gradient: GradientEstimator) -> Iterator[Classifier]:
        """Yield the network in evaluation mode with frozen parameters, differentiable in its images.

        Args:
            gradient: Gradient estimator of the attack; pre-training uses its own, the network having no fixed
                point yet.
        """
        with frozen(self.network):
            yield WarmStarted(self.network, self.cell, self.network.solver, self.attack_gradient or gradient)


@dataclass(frozen=True)
class ExplicitStep:
    """Implements :class:`deqcert.training.objectives.TrainingContext` for a classifier that is not a DEQ.

    Attributes:
        network: The network.
        sigma: Standard deviation of the training noise.
        epoch: Current epoch.
        logits: Maps images, shape (B, C, H, W), to logits, shape (B, classes): the network, or its compiled form.
    """

    network: nn.Module
    sigma: float
    epoch: int
    logits: Callable[[Tensor], Tensor]

    @contextmanager
    def attacked(self, gradient: GradientEstimator) -> Iterator[Classifier]:
        """Yield the network in evaluation mode with frozen parameters; its gradient needs no estimator."""
        with frozen(self.network):
            yield self.network
