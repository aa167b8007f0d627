"""The verbs that need a trainer, by LightningCLI: ``fit``, ``validate``, ``test``, ``certify``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from deqcert.checkpoints import read_checkpoint
from deqcert.cli.arguments import demand_sound_configs, in_order_of_precedence
from deqcert.cli.checkpoint_network import with_checkpoint_network
from deqcert.cli.entry import raising_module
from deqcert.cli.parsing import SettingsParser, settings_as_written
from deqcert.data import ImageDataModule
from deqcert.errors import TERMINATED, DeqcertError, require
from deqcert.lightning import (
    CertificationCallback,
    CertificationProgress,
    CertificationRun,
    CertifiedRadius,
    FitSummary,
    log_hyperparameters,
)
from deqcert.lightning import Trainer as CertifyingTrainer
from deqcert.training import DEQClassifier, SafeCheckpointIO

_DATA = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}

_ONLY = "weights_only"
"""Not a choice here, and certify does not know it: it could not read fit.yaml."""

_NO_CHECKPOINT = "none"
_LAST, _LAST_OR_NEW = "last", "last_or_new"
_OTHER_RUN = "another trainer.logger.version or trainer.default_root_dir is another run"

_REFUSALS = (MisconfigurationException, ValueError, RuntimeError, ImportError)
"""What Lightning raises for settings that do not work, while it builds a trainer."""

_REFUSING_LATE = {"lightning.pytorch.loops.fit_loop", "lightning.pytorch.callbacks.early_stopping"}
"""Modules that check settings only while they train, and raise errors of no type of their own."""

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
    """LightningCLI with the verb ``certify`` and checkpoints that never overrule the command line.

    It builds model, data and trainer; :meth:`run` does what the verb says.
    """

    demand_weights = True

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the verbs and the arguments that the command line fills in itself."""
        return dict.fromkeys(("fit", "validate", "test"), _DATA | {_ONLY}) | {"certify": _DATA}

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

    def _parse_ckpt_path(self) -> None:
        """Check the checkpoint before any work.

        Lightning's own version lays the checkpoint's hyperparameters over the command line without a word.
        """
        verb = self.config.get("subcommand")
        path = self.config[verb].get("ckpt_path") if verb else None
        names = (_LAST, _LAST_OR_NEW) if verb == "fit" else (_NO_CHECKPOINT,)
        if path and path not in names:
            read_checkpoint(path)

    def before_instantiate_classes(self) -> None:
        """Refuse to evaluate a model whose weights nobody has named.

        Raises:
            SettingError: There is no checkpoint, and ``none`` does not ask for that.
        """
        settings = self.config[self.subcommand]
        if self.demand_weights and self.subcommand != "fit":
            allowed = "must be a checkpoint; none takes the weights that the model is built with, random ones for most"
            require(bool(settings.ckpt_path), "ckpt_path", settings.ckpt_path, allowed)
        if settings.ckpt_path == _NO_CHECKPOINT:
            settings.ckpt_path = None

    def before_fit(self) -> None:
        """Find what to resume."""
        settings = self.config_init["fit"]
        settings.ckpt_path = _beginning(self.trainer, settings.ckpt_path)

    def _run_subcommand(self, subcommand: str) -> None:
        """Leave it at building."""

    def run(self) -> None:
        """Do what the verb says.

        Raises:
            SystemExit: With code 143 after SIGTERM. Lightning may raise it without a code, and a scheduler would take
                that run for a finished one.
        """
        try:
            super()._run_subcommand(str(self.subcommand))
        except SIGTERMException as ending:
            raise SystemExit(TERMINATED) from ending
        except (MisconfigurationException, ValueError, RuntimeError) as error:
            if isinstance(error, MisconfigurationException) or raising_module(error) in _REFUSING_LATE:
                raise _in_words(error) from error
            raise


class _Instantiation(DeqCertCLI):
    demand_weights = False


def run_trainer_verb(args: Sequence[str]) -> DeqCertCLI:
    """Do what a command line says, the verb first; return its model, data and trainer as the verb has left them."""
    with settings_as_written():  # also where they are saved
        built = _built(DeqCertCLI, args)
        built.run()
    return built


def instantiate(args: Sequence[str]) -> DeqCertCLI:
    """Build what a command line describes, for verbs of ours that need a model but no run of the trainer.

    Args:
        args: Arguments of a verb of the trainer, the verb first; devices, loggers and callbacks are ignored.

    Returns:
        Has ``model``, ``datamodule`` and ``trainer``, and the other arguments of the verb in ``config_init[verb]``.

    Raises:
        SettingError: A configuration file cannot be trusted, see :func:`demand_sound_configs`.
        CheckpointError: The checkpoint of the command line cannot be used.
    """
    with settings_as_written():
        return _built(_Instantiation, args, _ALONE)


def _built(kind: type[DeqCertCLI], args: Sequence[str], last: Sequence[str] = ()) -> DeqCertCLI:
    # None of these is the user's to fix: lightning 2.6 uses old names of torch and jsonargparse.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # The averaged weights are a checkpoint's state_dict: loading that is what certify is to do.
    warnings.filterwarnings("ignore", message=".*WeightAveraging callback, but loading.*")
    warnings.filterwarnings("ignore", message=".*args parameter is intended.*")
    demand_sound_configs(args)
    try:
        return kind(
            DEQClassifier,
            ImageDataModule,
            subclass_mode_data=True,
            trainer_class=CertifyingTrainer,
            trainer_defaults={"callbacks": [CertificationProgress(), FitSummary()], "default_root_dir": "runs"},
            seed_everything_default=0,
            save_config_callback=SaveVerbConfig,
            save_config_kwargs={"overwrite": True},
            parser_class=SettingsParser,
            parser_kwargs={"prog": "deqcert"},
            args=with_checkpoint_network([*in_order_of_precedence(args), *last]),
        )
    except Exception as error:
        found: BaseException = error
        while found.__cause__ is not None and raising_module(found).startswith("jsonargparse."):
            found = found.__cause__  # what a constructor has raised, in the parser's own error
        if isinstance(found, _REFUSALS) and raising_module(found).startswith("lightning."):
            raise _in_words(found) from error
        if found is not error:
            raise found from None
        raise


def _in_words(error: BaseException) -> DeqcertError:
    return DeqcertError(" ".join(str(error).split()))


def _beginning(trainer: Any, ckpt_path: str | None) -> str | None:
    """Return the ``ckpt_path`` for Lightning's ``fit``, given a file, "last", "last_or_new" or None for a new run.

    Lightning begins anew where ``last`` finds nothing, and writes a ``last-v1.ckpt`` beside the one it finds where
    nothing was to be resumed.

    Raises:
        SettingError: There is nothing to resume, or a new run would leave the checkpoint of another one beside its own.
    """
    if trainer.fast_dev_run or ckpt_path not in (None, _LAST, _LAST_OR_NEW):
        return ckpt_path
    savers = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    found = sorted(path for saver in savers for path in saver._find_last_checkpoints(trainer))
    if ckpt_path is None:
        existing = f"{', '.join(found)} exists; last resumes that run, {_OTHER_RUN}"
        require(not found, "ckpt_path", ckpt_path, existing)
    if ckpt_path == _LAST:
        nothing = f"there is no last.ckpt to resume; {_OTHER_RUN}, and {_LAST_OR_NEW} begins a new run"
        require(bool(found), "ckpt_path", ckpt_path, nothing)
    return _LAST if found else None
