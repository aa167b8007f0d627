"""The verbs that need a trainer, by LightningCLI: ``fit``, ``validate``, ``test``, ``certify``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from deqcert.callbacks import CertificationProgress, CertifiedRadius, FitSummary, log_hyperparameters
from deqcert.certification import CertificationCallback, CertificationRun
from deqcert.certification import Trainer as CertifyingTrainer
from deqcert.checkpoints import read_checkpoint
from deqcert.cli.arguments import in_order_of_precedence
from deqcert.cli.checkpoint_network import with_checkpoint_network
from deqcert.cli.configs import demand_sound_configs
from deqcert.cli.parsing import settings_as_written
from deqcert.cli.resume import LAST, LAST_OR_NEW, beginning
from deqcert.data import ImageDataModule
from deqcert.errors import require
from deqcert.training import DEQClassifier, SafeCheckpointIO

_DATA = {"model", "dataloaders", "datamodule"}

_ONLY = "weights_only"
"""Not a choice here, and certify does not know it: it could not read fit.yaml."""

_NO_CHECKPOINT = "none"

_ALONE = (
    "--trainer.devices=1",
    "--trainer.num_nodes=1",
    "--trainer.strategy=auto",
    "--trainer.logger=false",
    "--trainer.callbacks=null",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)
"""A configuration made for other machines names model and data all the same."""


class SaveVerbConfig(SaveConfigCallback, CertificationCallback):
    """Saves the configuration as ``fit.yaml``, … in the log directory, ``certify.yaml`` beside the ledger.

    After fit the settings of model and data go to TensorBoard, with the last metrics.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save before work begins; certify only after its ledger has accepted the run."""
        if stage != "predict":
            self.config_filename = f"{TrainerFn(stage).value}.yaml"
            super().setup(trainer, pl_module, stage)

    def on_certify_start(self, trainer: Trainer, module: LightningModule, run: CertificationRun) -> None:
        """Save beside the ledger."""
        if trainer.is_global_zero:
            self.parser.save(self.config, run.directory / "certify.yaml", skip_none=False, overwrite=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the settings beside what came of them."""
        settings = self.config.as_dict()
        chosen = {"model": settings["model"], "data": settings["data"]}
        chosen["trainer"] = {name: settings["trainer"][name] for name in ("max_epochs", "max_steps", "precision")}
        results = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if trainer.is_global_zero:
            log_hyperparameters(trainer.loggers, chosen, results, trainer.global_step)


class DeqCertCLI(LightningCLI):
    """LightningCLI with the verb ``certify`` and checkpoints that never overrule the command line."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the verbs and the arguments that the command line fills in itself."""
        return {
            "fit": _DATA | {_ONLY, "train_dataloaders", "val_dataloaders"},
            "validate": _DATA | {_ONLY},
            "test": _DATA | {_ONLY},
            "certify": _DATA,
        }

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "certify":
            parser.add_lightning_class_args(CertifiedRadius, "certificate")
        return parser

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; checkpoints are replaced in one step unless a plugin of the user's writes them."""
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = SafeCheckpointIO()
        return trainer

    def before_instantiate_classes(self) -> None:
        """Refuse to evaluate a model whose weights nobody has named.

        Raises:
            SettingError: There is no checkpoint, and ``none`` does not ask for that.
        """
        settings = self.config[self.subcommand]
        if self.subcommand == "fit":
            return
        allowed = "must be a checkpoint; none takes the weights that the model is built with, random ones for most"
        require(bool(settings.ckpt_path), "ckpt_path", settings.ckpt_path, allowed)
        if settings.ckpt_path == _NO_CHECKPOINT:
            settings.ckpt_path = None

    def _parse_ckpt_path(self) -> None:
        """Check the checkpoint before any work.

        Lightning's own version lays the checkpoint's hyperparameters over the command line without a word.
        """
        verb = self.config.get("subcommand")
        path = self.config[verb].get("ckpt_path") if verb else None
        names = (LAST, LAST_OR_NEW) if verb == "fit" else (_NO_CHECKPOINT,)
        if path and path not in names:
            read_checkpoint(path)

    def before_fit(self) -> None:
        """Find what to resume."""
        settings = self.config_init["fit"]
        settings.ckpt_path = beginning(self.trainer, settings.ckpt_path)


class _Instantiation(DeqCertCLI):
    """Builds model, data and trainer of a verb and leaves it at that."""

    def before_instantiate_classes(self) -> None:
        """Weights do not matter yet."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def run_trainer_verb(args: Sequence[str]) -> DeqCertCLI:
    """Parse the command line and do what it says.

    Args:
        args: Arguments, the verb first.

    Returns:
        The command line with its ``model``, ``datamodule`` and ``trainer``, as the verb has left them.
    """
    return _command_line(DeqCertCLI, _ordered(args))


def instantiate(args: Sequence[str]) -> DeqCertCLI:
    """Build what a command line describes, for verbs of ours that need a model but no run of the trainer.

    Args:
        args: Arguments of a verb of the trainer, the verb first. That they ask for many devices, loggers or callbacks
            does not matter.

    Returns:
        The command line with its ``model``, ``datamodule`` and ``trainer``, and the other arguments of the verb as
        objects in ``config_init[verb]``.

    Raises:
        SettingError: A configuration file cannot be trusted, see :func:`demand_sound_configs`.
        CheckpointError: The checkpoint of the command line cannot be used.
    """
    demand_sound_configs(args)
    return _command_line(_Instantiation, [*_ordered(args), *_ALONE])


def _ordered(args: Sequence[str]) -> list[str]:
    return in_order_of_precedence(args, DeqCertCLI.subcommands())


def _command_line(kind: type[DeqCertCLI], args: list[str]) -> DeqCertCLI:
    # None of these is the user's to mend: lightning 2.6 uses old names of torch and jsonargparse.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # The averaged weights are a checkpoint's state_dict: loading that is what certify is to do.
    warnings.filterwarnings("ignore", message=".*WeightAveraging callback, but loading.*")
    warnings.filterwarnings("ignore", message=".*args parameter is intended.*")
    with settings_as_written():  # also where they are saved
        return kind(
            DEQClassifier,
            ImageDataModule,
            subclass_mode_data=True,
            trainer_class=CertifyingTrainer,
            trainer_defaults={"callbacks": [CertificationProgress(), FitSummary()], "default_root_dir": "runs"},
            seed_everything_default=0,
            save_config_callback=SaveVerbConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "prog": "deqcert",
                "epilog": "Further verbs, each with its own --help: deqcert report, verify, attack, convert, anchor.",
            },
            args=with_checkpoint_network(args),
        )
