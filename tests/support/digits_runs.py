"""A tiny DEQ on digits, and short runs of it."""

from __future__ import annotations

import functools

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from deqcert.data import Digits
from deqcert.implicit import ImplicitAdjoint
from deqcert.lightning import Trainer
from deqcert.models import MDEQ
from deqcert.solvers import Broyden
from deqcert.training import DEQClassifier, JacobianRegularization

SOLVER = Broyden(max_steps=4, tolerance=1e-3)
ADAM = functools.partial(torch.optim.Adam, lr=0.005)
FIVE_PER_EPOCH = 256  # batch size: 1297 images make five whole batches


def model(seed=0, expansion=1, **settings):
    torch.manual_seed(seed)
    network = MDEQ(
        channels=(8, 16),
        head_channels=(2, 4),
        final_channels=16,
        image_channels=1,
        image_size=8,
        mean=(0.3,),
        std=(0.37,),
        expansion=expansion,
        num_groups=8,
        solver=SOLVER,
    )
    defaults = {
        "sigma": 0.25,
        "gradient": ImplicitAdjoint(Broyden(max_steps=3)),
        "jacobian": JacobianRegularization(frequency=0.5),
        "optimizer": ADAM,
    }
    return DEQClassifier(network, **(defaults | settings))


class Record(Callback):
    def __init__(self):
        self.losses = {}
        self.metrics = {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses[trainer.global_step] = outputs["loss"].item()
        self.metrics[trainer.global_step] = dict(trainer.logged_metrics)


def fit(module, steps, batch_size=FIVE_PER_EPOCH, ckpt_path=None, callbacks=(), **settings):
    record = Record()
    settings = {"limit_val_batches": 0, "max_steps": steps} | settings
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        callbacks=[record, *callbacks],
        **settings,
    )
    trainer.fit(module, Digits(batch_size=batch_size, eval_batch_size=250), ckpt_path=ckpt_path)
    return trainer, record
