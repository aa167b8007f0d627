"""Short certification runs on digits."""

from __future__ import annotations

import json

from lightning.pytorch import LightningModule
from sampling_runs import shipped_network

from deqcert.data import Digits
from deqcert.lightning import Trainer
from deqcert.runs import read_ledger


class ShippedModule(LightningModule):
    """The shipped digits MDEQ as a module."""

    def __init__(self):
        super().__init__()
        self.network = shipped_network()

    def predict_step(self, batch, batch_idx):
        return self.network(batch[0])


def trainer(devices=1, **settings):
    return Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def ledger_votes(directory):
    """The votes in a ledger by index, without what may differ between equal runs."""
    return {index: votes._replace(seconds=0.0) for index, votes in read_ledger(directory).votes.items()}


def certify(module, directory, smoothing, sampling, images=4, devices=1, callbacks=(), **settings):
    """Return the votes of the images that were certified, as the ledger holds them."""
    data = Digits(max_examples=images)
    run = trainer(devices, callbacks=list(callbacks))
    certificates = run.certify(module, data, smoothing, sampling, ledger_dir=str(directory), **settings)
    votes = ledger_votes(directory)
    return [votes[each.index] for each in certificates]


def records(directory):
    """The lines of each rank's file, without the identity."""
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()[1:]]
        for path in sorted(directory.glob("votes.rank*.jsonl"))
    }
