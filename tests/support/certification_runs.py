"""Short certification runs on digits."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch import LightningModule

from deqcert.certification import Trainer
from deqcert.checkpoints import network_weights, read_checkpoint
from deqcert.data import Digits
from deqcert.models import MDEQ

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "digits_mdeq_tiny" / "model.ckpt"


def shipped_network(start="zero"):
    """The shipped digits MDEQ: near its decision boundaries a label says something."""
    settings = {"channels": (8, 16), "head_channels": (4, 8), "final_channels": 64, "expansion": 3}
    network = MDEQ(**settings, image_channels=1, image_size=8, mean=(0.305,), std=(0.376,), start=start)
    network.load_state_dict(network_weights(read_checkpoint(CHECKPOINT)["state_dict"]), strict=start == "zero")
    return network.eval()


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


def certify(module, directory, smoothing, images=4, devices=1, callbacks=(), **settings):
    """Return the votes without what may differ between equal runs."""
    data = Digits(max_examples=images)
    run = trainer(devices, callbacks=list(callbacks))
    votes = run.certify(module, data, smoothing, ledger_dir=str(directory), **settings)
    return [each._replace(seconds=0.0) for each in votes]


def records(directory):
    """The lines of each rank's file, without the identity."""
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()[1:]]
        for path in sorted(directory.glob("votes.rank*.jsonl"))
    }
