"""What a network must offer beside its logits so that it can be certified without noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from deqcert.models.base import DEQ
from deqcert.solvers import Solver


class BoundedLogits(NamedTuple):
    """Logits, and how far they may be from those of the exact fixed point, in float64.

    Attributes:
        logits: Shape (B, classes).
        errors: Bound on how far the gap logits[A] - logits[j] is from the exact one, A being the class with the largest
            logit: solver and rounding, shape (B, classes). Infinite or NaN where nothing is known.
        steps: Evaluations of the cell per image, shape (B,), int64.
        residual: Relative residual of each solve, shape (B,).
    """

    logits: Tensor
    errors: Tensor
    steps: Tensor
    residual: Tensor


class LipschitzClassifier(ABC):
    """A network that knows how fast the difference of any two of its logits can change.

    Both methods are called on a copy in float64, in evaluation mode, without a graph.
    """

    @abstractmethod
    def lipschitz_constants(self) -> Tensor:
        """Return L with |(y_i - y_j)(x) - (y_i - y_j)(x')| <= L[i, j] ‖x - x'‖₂, shape (classes, classes), float64.

        Images are in [0, 1]; rounding of the computation is included; the diagonal is zero.
        """

    @abstractmethod
    def bounded_logits(self, x: Tensor, solver: Solver) -> BoundedLogits:
        """Return the logits of images in [0, 1], shape (B, C, H, W), with bounds on the error of their gaps."""


class TrainableLipschitz(LipschitzClassifier):
    """A Lipschitz classifier whose constants can be trained together with its logits."""

    @abstractmethod
    def training_constants(self) -> Tensor:
        """Return constants L[i, j] with a graph to the parameters, without allowance for rounding: of no certificate.

        Shape (classes, classes), float64; the diagonal is zero, and everything else positive.
        """


class IntervalClassifier(ABC):
    """A network that can bound its logits over a box of images.

    The method is called on a copy in float64, in evaluation mode, without a graph.
    """

    @abstractmethod
    def interval_margins(self, x: Tensor, predicted: Tensor, epsilon: Tensor, solver: Solver) -> BoundedLogits:
        """Bound the gaps y_A - y_j from below over all images within ``epsilon`` of ``x`` in the maximum norm.

        Args:
            x: Images in [0, 1], shape (B, C, H, W); their neighbors may leave [0, 1].
            predicted: The class A of each image, shape (B,), int64.
            epsilon: Half the side of each box, in pixels of [0, 1], shape (B,).
            solver: Solver of the joint fixed point of both bounds.

        Returns:
            The lower bounds in place of logits, shape (B, classes), those of A itself being 0; ``errors`` are still
            to be subtracted.
        """


class TrainableInterval(IntervalClassifier):
    """A DEQ that can be trained on bounds over boxes of images."""

    @abstractmethod
    def worst_case(self, predicted: Tensor, epsilon: Tensor) -> DEQ:
        """Return the DEQ of both bounds of one batch, with a graph; the arguments are those of interval_margins.

        Of the images of that batch, its logits are the worst over each box for the class A: 0 for A itself, and for
        each j an upper bound on y_j - y_A, shape (B, classes).
        """
