"""What makes a run that SIGTERM has stopped resume exactly, however often."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from deqcert.errors import TERMINATED


def stop_if_terminated(trainer: Trainer) -> None:
    """Save ``last.ckpt`` and stop if SIGTERM has come to any rank; ``ckpt_path: last`` continues there.

    The module calls it once all callbacks are done with a step. All ranks stop at the same step, by a SIGTERMException
    with code 143, whichever of them was told.
    """
    # Our trainer hides SIGTERM from Lightning's training loop, which would stop each rank where it is, without saving.
    requested = bool(getattr(trainer, "terminated", trainer.received_sigterm))
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


def repair_progress(trainer: Trainer) -> None:
    """Bring the counters of epochs and batches into line, once a batch has begun.

    Lightning 2.6 tells from them where a checkpoint was saved. Resumed from one of the last batch of an epoch, it does
    not count the next epoch as begun, nor that batch as completed; the checkpoints of such a run then resume in the
    wrong place: in an epoch that is done, or in the middle of the next one.
    """
    loop = trainer.fit_loop
    epochs, batches = loop.epoch_progress, loop.epoch_loop.batch_progress
    if epochs.current.ready == trainer.current_epoch:  # how many are done
        epochs.increment_ready()
        epochs.increment_started()
    batches.total.completed = batches.total.ready - 1
