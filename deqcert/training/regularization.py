"""When and how strongly the Jacobian of the cell is regularized."""

from __future__ import annotations

from dataclasses import dataclass

from deqcert.errors import require


@dataclass(frozen=True)
class JacobianRegularization:
    """Schedule of the Hutchinson penalty (Bai, Koltun, Kolter, ICML 2021).

    Args:
        weight: Weight of the penalty in implicit training, >= 0.
        frequency: Fraction of the training steps that compute the penalty, in [0, 1].
        stop_epoch: First epoch without the penalty; null = never stop.
        pretraining_weight: Weight while pre-training, >= 0.
        increment: Added to the weight every increment_every steps of implicit training, >= 0.
        increment_every: Steps between increments, >= 1.
        jitter: On the steps with penalty, the forward solver takes up to this many steps more or fewer, >= 0.
        vectors: Gaussian vectors of the estimate, >= 1.

    Raises:
        SettingError: If a setting is out of range.
    """

    weight: float = 0.5
    frequency: float = 0.05
    stop_epoch: int | None = None
    pretraining_weight: float = 0.0
    increment: float = 0.0
    increment_every: int = 50_000
    jitter: int = 2
    vectors: int = 2

    def __post_init__(self) -> None:
        for field in ("weight", "pretraining_weight", "increment", "increment_every", "jitter", "vectors"):
            value, minimum = getattr(self, field), int(field in ("increment_every", "vectors"))
            require(value >= minimum, f"jacobian.{field}", value, f"must be >= {minimum}")
        require(0 <= self.frequency <= 1, "jacobian.frequency", self.frequency, "must be in [0, 1]")

    def weight_at(self, implicit_step: int, epoch: int) -> float:
        """Return the weight ``implicit_step`` optimizer steps after the end of pre-training (negative: before it)."""
        if self.stop_epoch is not None and epoch >= self.stop_epoch:
            return 0.0
        if implicit_step < 0:
            return self.pretraining_weight
        return self.weight + self.increment * (implicit_step // self.increment_every)
