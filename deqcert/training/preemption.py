"""Preemption of training: SIGTERM, a checkpoint, an exit code that asks for more."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from deqcert.termination import TERMINATED, Termination


class Preemption(Callback):
    """On SIGTERM, finishes the step, saves ``last.ckpt`` and ends the run with exit code 143.

    The ranks agree after every step, so all of them stop at the same one, whichever of them was told. ``ckpt_path:
    last`` continues there.
    """

    def __init__(self) -> None:
        self._termination: Termination | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from Lightning's handler."""
        launcher = trainer.strategy.launcher
        self._termination = Termination(None if launcher is None else launcher.kill)
        self._termination.__enter__()
        self._termination.requested = trainer.received_sigterm

    # Both come before Lightning gives its signals back; the hook teardown comes after.

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give SIGTERM back to Lightning, which gives it back to who had it before."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same where training ends otherwise."""
        self._release()

    def _release(self) -> None:
        if self._termination is not None:
            self._termination.__exit__(None, None, None)
            self._termination = None

    def stop_if_requested(self, trainer: Trainer) -> None:
        """Save and stop if any rank was told to. The module calls it once all callbacks have done with a step.

        Raises:
            SIGTERMException: With code 143, on every rank.
        """
        requested = self._termination is not None and self._termination.requested
        if trainer.world_size > 1:
            requested = trainer.strategy.reduce_boolean_decision(requested, all=False)
        if not requested:
            return
        saver = trainer.checkpoint_callback
        if isinstance(saver, ModelCheckpoint) and saver.dirpath is not None:
            name = f"{saver.CHECKPOINT_NAME_LAST}{saver.FILE_EXTENSION}"
            # Part of the state that is saved: the resumed run shall replace this file, not begin a last-v1.ckpt.
            saver.last_model_path = saver.last_model_path or str(Path(saver.dirpath) / name)
            trainer.save_checkpoint(saver.last_model_path)
        else:
            rank_zero_warn("SIGTERM: there is no ModelCheckpoint, so nothing is saved.")
        raise SIGTERMException(TERMINATED)
