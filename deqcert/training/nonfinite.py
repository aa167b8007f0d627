"""Protection of a run against losses and gradients that are not finite."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from deqcert.errors import TrainingError, require_count


def poisoned(loss: Tensor) -> Tensor:
    """Return ``loss`` with a gradient of NaN where it is not finite.

    An infinite loss may have a finite gradient; poisoned, the all-reduce of gradients makes all processes skip it.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


class NonFiniteGuard(Callback):
    """Skips the optimizer steps whose gradient is not finite; stops training after too many in a row.

    A skipped step leaves weights, optimizer state and buffers (batch-norm statistics) as they were before it; the
    step counter and the learning-rate schedule go on. ``train/skipped_steps`` logs how many there were.

    Raises:
        SettingError: If ``limit``, the skipped steps in a row that stop training, is < 1.
        TrainingError: In training, once it is reached.
    """

    def __init__(self, limit: int = 20) -> None:
        require_count("max_skipped_steps", limit, minimum=1)
        self.limit = limit
        self.skipped = 0
        self.in_a_row = 0
        self._buffers: list[Tensor] | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the buffers as they were before the first batch of an optimizer step."""
        if self._buffers is None:
            self._buffers = [buffer.clone() for buffer in pl_module.buffers()]

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradient; without one, an optimizer leaves a parameter and its state alone."""
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if get_total_norm(gradients).isfinite():
            self.in_a_row = 0
        else:
            optimizer.zero_grad(set_to_none=True)
            for buffer, kept in zip(pl_module.buffers(), self._buffers or [], strict=True):
                buffer.copy_(kept)
            self.skipped += 1
            self.in_a_row += 1
        self._buffers = None
        pl_module.log("train/skipped_steps", float(self.skipped))
        if self.in_a_row >= self.limit:
            raise TrainingError(
                f"loss or gradient not finite in {self.in_a_row} steps in a row, the last of them step "
                f"{trainer.global_step} (epoch {trainer.current_epoch}); {_saved(trainer)}. Try a smaller learning "
                f"rate, trainer.gradient_clip_val or more Jacobian regularization; max_skipped_steps = {self.limit} "
                "sets how many are allowed"
            )

    def state_dict(self) -> dict[str, int]:
        """Return the counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]


def _saved(trainer: Trainer) -> str:
    """Say what is left of a run that stops here; weights that are not finite are never saved."""
    saver = trainer.checkpoint_callback
    path = (saver.last_model_path or saver.best_model_path) if isinstance(saver, ModelCheckpoint) else ""
    return f"{path} holds weights of before" if path else "no checkpoint has been saved yet"
