"""What is measured of each image for a certificate without noise.

Such a certificate is about the network at its exact fixed points. Everything is computed in float64; what solver and
rounding leave over is part of the measurement and is subtracted.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from deqcert.errors import is_real, require, require_count
from deqcert.models import DEQ, BoundedLogits, IntervalClassifier, LipschitzClassifier
from deqcert.solvers import Anderson, Solver
from deqcert.statistics import Margins

Norm = Literal["l2", "linf"]

Measure = Callable[[Tensor], list[Margins]]
"""Maps images in [0, 1], shape (B, C, H, W), to their margins, without index and label."""

_LARGEST = torch.finfo(torch.float64).max


@dataclass(frozen=True)
class Deterministic(ABC):
    """A certificate without noise: class and radius are certain.

    Args:
        solver: Solver of the fixed points. What it leaves over is subtracted, so a coarse one costs radius, and where
            the rest is not known to be small the image is abstained from.
        batch_size: Images that are solved side by side, >= 1; no certificate depends on it but for rounding.

    Attributes:
        norm: Norm of the ball that is certified. A ball of radius R in the maximum norm holds that in l2.
        contract: What a network must be.
    """

    solver: Solver = Anderson(max_steps=1000, tolerance=1e-10, ridge=0.0)
    batch_size: int = 100

    norm: ClassVar[Norm]
    contract: ClassVar[type]

    def __post_init__(self) -> None:
        require_count("certification.batch_size", self.batch_size, minimum=1)

    def prepared(self, network: nn.Module) -> nn.Module:
        """Return a copy of the network in float64 and evaluation mode, whose operators are computed once.

        Raises:
            SettingError: The network cannot be certified so, or its splitting cannot converge.
        """
        name = type(self).__name__
        have = ", ".join(sorted(_names_of(self.contract)))
        allowed = f"has no certificate by {name}; of deqcert's networks these have: {have}"
        require(isinstance(network, self.contract), "model.network", type(network).__name__, allowed)
        twin: Any = copy.deepcopy(network).double().eval().requires_grad_(False)
        if isinstance(twin, DEQ):
            twin.solver = self.solver
            twin = twin.for_inference()
        prepared: nn.Module = twin
        return prepared

    @abstractmethod
    def of(self, network: nn.Module) -> Measure:
        """Return what measures images; see :meth:`prepared`."""


@dataclass(frozen=True)
class Lipschitz(Deterministic):
    """The class A holds within min_j (y_A − y_j) / L_Aj in l2, with L_Aj the Lipschitz constant of that difference.

    The constants are computed once, by :meth:`~deqcert.models.LipschitzClassifier.lipschitz_constants`. One constant L
    for all logits would give (y_A − y_j) / (√2 L) (Tsuzuku, Sato, Sugiyama, NeurIPS 2018), which is never more.
    """

    norm: ClassVar[Norm] = "l2"
    contract: ClassVar[type] = LipschitzClassifier

    def of(self, network: nn.Module) -> Measure:
        """Compute the constants, and return what solves images and gives their gaps.

        Raises:
            SettingError: The network has no such certificate, or its constants cannot be proved to be finite.
        """
        twin: Any = self.prepared(network)
        constants = twin.lipschitz_constants().cpu()
        allowed = "must have finite Lipschitz constants; rounding leaves no proof of them"
        require(bool(constants.isfinite().all()), "model.network", type(network).__name__, allowed)

        def measure(images: Tensor) -> list[Margins]:
            began = time.perf_counter()
            bounded: BoundedLogits = twin.bounded_logits(images.double(), self.solver)
            selected = bounded.logits.argmax(dim=1)
            gaps = bounded.logits.gather(1, selected[:, None]) - bounded.logits
            seconds = (time.perf_counter() - began) / len(images)
            rows = constants[selected.cpu()].tolist()
            return _margins(bounded._replace(logits=gaps), selected, rows, [None] * len(images), seconds)

        return measure


@dataclass(frozen=True)
class IntervalBounds(Deterministic):
    """The class A holds in the largest box whose interval bounds prove it: |x' − x| <= epsilon in every pixel.

    The box is found by bisection. It holds the l2 ball of radius epsilon, and no larger one.

    Args:
        solver: Solver of the joint fixed point of both bounds.
        batch_size: Images that are solved side by side, >= 1.
        epsilon: Half the side of the largest box that is tried, in pixels of [0, 1], > 0.
        bisections: Halvings of the interval in which the largest box is searched, >= 0; 0 tries ``epsilon`` only.
    """

    epsilon: float = 0.5
    bisections: int = 15

    norm: ClassVar[Norm] = "linf"
    contract: ClassVar[type] = IntervalClassifier

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = is_real(self.epsilon) and 0 < self.epsilon <= 1
        require(fits, "certification.epsilon", self.epsilon, "must be in (0, 1], in pixels of [0, 1]")
        require_count("certification.bisections", self.bisections, minimum=0)

    def of(self, network: nn.Module) -> Measure:
        """Return what finds the largest box of each image."""
        twin: Any = self.prepared(network)

        def measure(images: Tensor) -> list[Margins]:
            began = time.perf_counter()
            images = images.double()
            selected = twin(images).argmax(dim=1)
            low, step = images.new_zeros(len(images)), self.epsilon
            proven = twin.interval_margins(images, selected, low, self.solver)
            steps = proven.steps
            for _ in range(self.bisections + 1):
                tried = (low + step).clamp_max(self.epsilon)
                found = twin.interval_margins(images, selected, tried, self.solver)
                steps = steps + found.steps
                holds = _holds(found, selected)
                low = torch.where(holds, tried, low)
                proven = BoundedLogits(*(_where(holds, new, old) for new, old in zip(found, proven, strict=True)))
                step /= 2
                if bool((low == self.epsilon).all()):
                    break
            seconds = (time.perf_counter() - began) / len(images)
            return _margins(proven._replace(steps=steps), selected, [()] * len(images), low.tolist(), seconds)

        return measure


def _names_of(contract: type) -> set[str]:
    kinds: list[type] = contract.__subclasses__()
    ours = (kind for kind in kinds if kind.__module__.startswith("deqcert."))
    names = {kind.__name__ for kind in ours if not getattr(kind, "__abstractmethods__", None)}
    return names.union(*(_names_of(kind) for kind in kinds))


def _holds(found: BoundedLogits, selected: Tensor) -> Tensor:
    """Whether every other class is proved to be behind, shape (B,)."""
    behind = found.logits - found.errors > 0
    return behind.scatter(1, selected[:, None], True).all(dim=1)


def _where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (new.dim() - 1)), new, old)


def _margins(
    bounded: BoundedLogits,
    selected: Tensor,
    constants: list[Any],
    epsilons: list[Any],
    seconds: float,
) -> list[Margins]:
    """Write rows as records. What is not finite becomes no gap with the largest error, which certifies nothing."""
    known = bounded.logits.isfinite() & bounded.errors.isfinite()
    gaps = torch.where(known, bounded.logits, 0.0).tolist()
    errors = torch.where(known, bounded.errors, _LARGEST).tolist()
    return [
        Margins(
            selected=chosen,
            gaps=tuple(gap),
            errors=tuple(error),
            constants=tuple(constant),
            epsilon=epsilon,
            nfe_fast=nfe,
            residual=residual,
            seconds=seconds,
        )
        for chosen, gap, error, constant, epsilon, nfe, residual in zip(
            selected.tolist(),
            gaps,
            errors,
            constants,
            epsilons,
            bounded.steps.tolist(),
            bounded.residual.tolist(),
            strict=True,
        )
    ]
