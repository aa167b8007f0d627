"""A posterior over the weights, collected while a network is trained."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from deqcert.errors import SettingError, require, require_count
from deqcert.uncertainty import WeightPosterior


class CollectWeights(Callback):
    """Takes a snapshot of the network after each epoch into a :class:`~deqcert.uncertainty.WeightPosterior`.

    For SWAG, train with SGD at a constant learning rate from trained weights, as ``configs/train/swag.yaml`` does. The
    posterior is part of checkpoints, so a resumed run goes on with it.

    Args:
        path: File of the posterior, written anew after each snapshot; its folder is created if missing.
        rank: Deviations to remember at most, >= 2.
        first_epoch: Epoch of the first snapshot, >= 0.

    Raises:
        SettingError: A setting is out of range; in ``setup``, if the module has no ``network``.
    """

    def __init__(self, path: str, rank: int = 20, first_epoch: int = 0) -> None:
        require_count("first_epoch", first_epoch, minimum=0)
        self.path, self.first_epoch = path, first_epoch
        self.posterior = WeightPosterior(rank)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module without a network."""
        if not isinstance(network := getattr(pl_module, "network", None), nn.Module):
            raise SettingError("model.network", type(network).__name__, "must be a module for CollectWeights")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take a snapshot."""
        if trainer.current_epoch >= self.first_epoch:
            self.posterior.collect(pl_module.network)  # type: ignore[arg-type]
            if trainer.is_global_zero:
                self.posterior.save(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Return the posterior."""
        return self.posterior.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a posterior.

        Raises:
            SettingError: It has another rank.
            CheckpointError: It is damaged.
        """
        rank = self.posterior.rank
        self.posterior.load_state_dict(state_dict)
        require(self.posterior.rank == rank, "rank", rank, f"must be {self.posterior.rank}, as before the run resumed")
