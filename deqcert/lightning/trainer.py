"""Lightning's trainer with one more verb."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from deqcert.deterministic import Deterministic
from deqcert.errors import require
from deqcert.lightning.hooks import CertificationCallback
from deqcert.lightning.loop import CertificationLoop
from deqcert.lightning.methods import choose_method
from deqcert.lightning.signals import Signals
from deqcert.runs import certify_all, read_ledger
from deqcert.seeding import require_seed
from deqcert.smoothing import Sampling, Serialized, Smoothing
from deqcert.statistics import Certificate, CertificationRule
from deqcert.training import SafeCheckpointIO


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("💡 Tip: For seamless cloud")


# Lightning advertises its services at every start, and has no setting for that.
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)

_PRECISIONS = ("32-true", "64-true", "16-mixed", "bf16-mixed")


class Trainer(lightning.pytorch.Trainer):
    """A Lightning trainer that also certifies, notes SIGTERM in its own way and replaces checkpoints in one step.

    Raises:
        SettingError: ``precision`` rounds images and noise, or ``overfit_batches`` replaces the sampler that resumes.
    """

    # Lightning sets these from outside of its class.
    fast_dev_run: int | bool
    overfit_batches: int | float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        allowed = f"must be one of {', '.join(_PRECISIONS)}"
        require(self.precision in _PRECISIONS, "trainer.precision", self.precision, allowed)
        fewer = "must be 0; limit_train_batches and limit_val_batches take fewer batches"
        require(self.overfit_batches == 0, "trainer.overfit_batches", self.overfit_batches, fewer)
        self._signal_connector = Signals(self)
        if type(self.strategy.checkpoint_io) is TorchCheckpointIO:  # no plugin of the user's
            self.strategy.checkpoint_io = SafeCheckpointIO()

    @property
    def terminated(self) -> bool:
        """Whether SIGTERM has come to this rank."""
        return self._signal_connector.received_sigterm

    @property
    def received_sigterm(self) -> bool:
        """Whether SIGTERM has come, for loops that may stop at once.

        Training may not: its ranks first agree on a step and save, see :mod:`deqcert.training.resuming`.
        """
        training = self.state.fn == TrainerFn.FITTING and not self.sanity_checking
        return self.terminated and not training

    def certify(
        self,
        model: LightningModule | None = None,
        datamodule: LightningDataModule | None = None,
        smoothing: Smoothing = Smoothing(),
        sampling: Sampling = Serialized(),
        certification: Deterministic | None = None,
        seed: int = 0,
        ledger_dir: str = "runs/certify",
        patience: float = 3600.0,
        ckpt_path: str | None = None,
    ) -> list[Certificate]:
        """Certify images by randomized smoothing, or without noise; resumes what its ledger holds.

        Args:
            model: Module whose ``network`` (or itself) is certified.
            datamodule: Data module with ``certification_set()``.
            smoothing: What is certified: the smoothed classifier g.
            sampling: Strategy that takes its votes.
            certification: Certificate without noise or failure probability, of the network itself, in place of
                smoothing, sampling and the rule: Lipschitz or IntervalBounds.
            seed: Seed of all random streams, in [0, 2^64).
            ledger_dir: Directory of ledger and results. The same run resumes in it, another run is refused.
            patience: Seconds without new votes after which a waiting rank gives up, > 0.
            ckpt_path: Checkpoint to certify; None certifies the weights that the model has (on the command line, where
                the configuration builds the model: none).

        Returns:
            The certificates of all images, sorted by index, of votes by the rule of the trainer's
            :class:`CertifiedRadius`.

        Raises:
            SettingError: If a setting is out of range, no votes of ``sampling`` could certify anything, the network
                has no such certificate, or settings of smoothing are given to a run without noise.
            LedgerError: If ``ledger_dir`` holds another run, is damaged or cannot be written.
        """
        require_seed(seed)
        require(patience > 0, "patience", patience, "must be > 0 seconds")
        everything = "does not apply to certify; data.max_examples takes fewer images"
        require(not self.fast_dev_run, "trainer.fast_dev_run", self.fast_dev_run, everything)
        limit = self.limit_predict_batches
        require(isinstance(limit, float) and limit == 1, "trainer.limit_predict_batches", limit, everything)
        rules = (each.rule for each in self.callbacks if isinstance(each, CertificationCallback) and each.rule)  # type: ignore[attr-defined]
        rule, directory = next(rules, CertificationRule()), Path(ledger_dir)
        method = choose_method(smoothing, sampling, certification, seed, rule)
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger) and logger._version is None:
                logger._version = f"certify-{directory.resolve().name}"  # not the next version of the training
        loop = CertificationLoop(self, method, directory, patience)
        prediction, self.predict_loop = self.predict_loop, loop  # type: ignore[assignment]
        try:
            with warnings.catch_warnings():
                # The callbacks of training are of no use here.
                warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")
                self.predict(model, datamodule=datamodule, return_predictions=False, ckpt_path=ckpt_path)
        finally:
            self.predict_loop = prediction
        examples = loop.examples
        if examples is None:  # it ran in other processes
            data: Any = datamodule
            data.setup("predict")
            examples = data.certification_set()
        votes = read_ledger(directory).votes
        return certify_all(method.rule, [votes[index] for index in sorted(examples.indices)])
