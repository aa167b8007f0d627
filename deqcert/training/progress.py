"""Counters of a training run that is resumed more than once."""

from __future__ import annotations

from lightning.pytorch import Trainer


def repair_progress(trainer: Trainer) -> None:
    """Bring the counters of epochs and batches into line, once a batch has begun.

    Lightning 2.6 tells from them where a checkpoint was saved. Resumed from one of the last batch of an epoch, it does
    not count the next epoch as begun, nor that batch as completed; the checkpoints of such a run then resume in the
    wrong place: in an epoch that is done, or in the midst of the next one.
    """
    loop = trainer.fit_loop
    epochs, batches = loop.epoch_progress, loop.epoch_loop.batch_progress
    if epochs.current.ready == trainer.current_epoch:  # how many are done
        epochs.increment_ready()
        epochs.increment_started()
    batches.total.completed = batches.total.ready - 1
