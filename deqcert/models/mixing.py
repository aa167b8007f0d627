"""The part of a network that predicts how its solver mixes: weights for :class:`deqcert.solvers.LearnedMixing`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deqcert.errors import require_count

_HIDDEN = 32

# Bound of the logarithms among the features: those of a gap far below the others say no more than that.
_LONGEST = 10.0


class LearnedMixer(nn.Module):
    """Predicts α and β of each Anderson step from what Anderson acceleration itself looks at.

    After Bai, Koltun and Kolter, "Neural deep equilibrium solvers" (ICLR 2022): one small perceptron per step. It sees
    the history of the row alone, without scale: the cosines between its gaps, their norms relative to the newest, and
    its relative residual. It begins as the plain step, α all on the newest pair and β = 1.

    Args:
        steps: Steps that it is for, >= 1.

    Raises:
        SettingError: If ``steps`` is out of range.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        require_count("mixing_steps", steps, minimum=1)
        self.steps = steps
        self.predictors = nn.ModuleList(_predictor(pairs) for pairs in range(1, steps + 1))

    def forward(self, gram: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the weights of the step that has seen m pairs.

        Rows whose inner products are not finite, or that have a gap of zero, take the plain step.

        Args:
            gram: ⟨G_i, G_j⟩ of the gaps, newest last, shape (B, m, m), 1 <= m <= steps.
            size: ‖F(X_j)‖² of the newest pair, shape (B,).

        Returns:
            α, which sums to 1, shape (B, m); β, shape (B,).
        """
        pairs = gram.shape[1]
        size = size.to(gram.dtype)
        squares = gram.diagonal(dim1=1, dim2=2)
        usable = gram.isfinite().flatten(1).all(dim=1) & (squares > 0).all(dim=1) & size.isfinite() & (size > 0)
        # Before any logarithm, so that gradients of the other rows stay finite.
        gram = torch.where(usable[:, None, None], gram, torch.eye(pairs, dtype=gram.dtype, device=gram.device))
        features = _features(gram, torch.where(usable, size, torch.ones_like(size)))
        predictor = self.predictors[pairs - 1]
        # Autocast is for the cell: it would round the weights.
        with torch.autocast(gram.device.type, enabled=False):
            predicted: Tensor = predictor(features.to(next(predictor.parameters()).dtype))
        predicted = torch.where(usable[:, None], predicted, torch.zeros_like(predicted))
        older, change = predicted[:, :-1], predicted[:, -1]
        return torch.cat([older, 1 - older.sum(dim=1, keepdim=True)], dim=1), 1 + change


def _features(gram: Tensor, size: Tensor) -> Tensor:
    """Return log relative residual, log norms relative to the newest, and cosines, shape (B, m(m + 1)/2)."""
    pairs = gram.shape[1]
    squares = gram.diagonal(dim1=1, dim2=2)
    newest = squares[:, -1:]
    residual = (newest / size[:, None]).log() / 2
    norms = (squares[:, :-1] / newest).log() / 2
    older, newer = torch.triu_indices(pairs, pairs, offset=1, device=gram.device)
    cosines = gram[:, older, newer] / (squares[:, older] * squares[:, newer]).sqrt()
    return torch.cat([residual, norms, cosines], dim=1).clamp(-_LONGEST, _LONGEST)


def _predictor(pairs: int) -> nn.Sequential:
    """Build the perceptron of the step with so many pairs: the α of the older ones, and the change of β from 1."""
    last = nn.Linear(_HIDDEN, pairs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(pairs * (pairs + 1) // 2, _HIDDEN), nn.Tanh(), last)
