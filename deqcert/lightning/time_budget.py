"""Training that ends, its learning rate with it, within a given time."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from deqcert.errors import require


class TimeBudget(Callback):
    """Sets the number of steps by the measured pace, so that a schedule is at its end when the time is up.

    ``trainer.max_time`` stops a run wherever its learning rate then is; this callback chooses ``max_steps`` instead,
    again and again. The first step, which may compile, does not count for the pace. All processes follow the clock of
    the first. Set ``trainer.max_epochs`` to -1, or to a limit that counts as well.

    Args:
        seconds: Time from the first step to the end of the last one, with the validations in between, > 0.
        every: Seconds between two choices, > 0.

    Raises:
        SettingError: If a setting is out of range.
    """

    def __init__(self, seconds: float, every: float = 20.0) -> None:
        require(seconds > 0, "seconds", seconds, "must be > 0")
        require(every > 0, "every", every, "must be > 0")
        self.seconds, self.every = seconds, every

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self._pace_from: tuple[int, float] | None = None
        self._next = trainer.global_step + 2

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Choose ``max_steps`` anew where it is time to."""
        step, now = trainer.global_step, time.monotonic()
        if self._pace_from is None:
            self._pace_from = step, now
        elif step >= self._next:
            first, since = self._pace_from
            pace = (step - first) / max(now - since, 1e-9)
            left = max(self._started + self.seconds - now, 0.0)
            choice = step + int(pace * left), step + max(int(pace * self.every), 1)
            trainer.fit_loop.epoch_loop.max_steps, self._next = trainer.strategy.broadcast(choice)
