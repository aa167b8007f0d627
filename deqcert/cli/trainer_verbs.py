"""The verbs that need a trainer, by LightningCLI: ``fit``, ``validate``, ``test``, ``certify``."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, cast

from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from deqcert.checkpoints import read_checkpoint
from deqcert.cli.arguments import demand_sound_configs, in_order_of_precedence, with_checkpoint_network
from deqcert.cli.failures import refused_by_lightning
from deqcert.cli.parsing import SettingsParser, settings_as_written
from deqcert.cli.saving import LAST, LAST_OR_NEW, SaveVerbConfig, where_to_begin
from deqcert.data import ImageDataModule
from deqcert.errors import TERMINATED, require
from deqcert.lightning import CertificationProgress, CertifiedRadius, Trainer
from deqcert.training import DEQClassifier

_DATA = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
_ONLY = "weights_only"  # not a choice here, and certify does not know it: it could not read fit.yaml
NO_CHECKPOINT = "none"

# They check settings only while they train, and raise errors of no type of their own.
_LATE = "lightning.pytorch.loops.fit_loop", "lightning.pytorch.callbacks.early_stopping"
# Not the user's to fix: lightning 2.6 uses old names of torch, and takes what we do on purpose for a slip.
_NOT_THE_USERS = "isinstance.treespec, LeafSpec|does not have many workers|args parameter is intended"
_AVERAGED = "WeightAveraging callback, but loading"  # which is to be certified


class DeqCertCLI(LightningCLI):
    """LightningCLI with the verb ``certify`` and checkpoints that never overrule the command line.

    It builds model, data and trainer; :meth:`run` does what the verb says.
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the verbs and the arguments that the command line fills in itself."""
        return dict.fromkeys(("fit", "validate", "test"), _DATA | {_ONLY}) | {"certify": _DATA}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "certify":
            parser.add_lightning_class_args(CertifiedRadius, "certificate")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Keep the arguments, see :meth:`stated`."""
        super().parse_arguments(parser, args)
        self._args = cast("Sequence[str]", args)  # of build

    def stated(self, name: str) -> Any:
        """Return a setting of the verb as the arguments state it; None where its value is the default."""
        return self.parser.parse_args(self._args, defaults=False)[self.config.subcommand].get(name)

    def _parse_ckpt_path(self) -> None:
        """Check the checkpoint before any work; Lightning lays its hyperparameters over the command line instead."""
        verb = self.config.get("subcommand")
        path = self.config[verb].get("ckpt_path") if verb else None
        if not path or path in ((LAST, LAST_OR_NEW) if verb == "fit" else (NO_CHECKPOINT,)):
            return
        trained = read_checkpoint(path).get("hyper_parameters", {})
        if verb == "certify" and self.config[verb].get("certification") is not None:
            return  # without noise
        sigma = "smoothing.sigma" if verb == "certify" else "model.sigma"
        missing = f"must be given: {path} does not state the noise that the network was trained with"
        require("sigma" in trained or verb == "fit" or self.stated(sigma) is not None, sigma, None, missing)

    def _run_subcommand(self, subcommand: str) -> None:
        """Leave it at building."""

    def run(self) -> None:
        """Do what the verb says.

        Raises:
            SettingError: There is no checkpoint, and ``none`` does not ask for that; or ``fit`` cannot begin there.
            SystemExit: With code 143 after SIGTERM. Lightning may raise it without a code, and a scheduler would take
                that run for a finished one.
        """
        verb = str(self.subcommand)
        settings = self.config_init[verb]
        if verb == "fit":
            settings.ckpt_path = where_to_begin(self.trainer, settings.ckpt_path)
        else:
            allowed = "must be a checkpoint; none takes the weights that the model is built with, random ones for most"
            require(bool(settings.ckpt_path), "ckpt_path", settings.ckpt_path, allowed)
            settings.ckpt_path = None if settings.ckpt_path == NO_CHECKPOINT else settings.ckpt_path
        try:
            with refused_by_lightning(*_LATE):
                super()._run_subcommand(verb)
        except SIGTERMException as ending:
            raise SystemExit(TERMINATED) from ending


@settings_as_written()  # also where they are saved
def run_trainer_verb(args: Sequence[str]) -> DeqCertCLI:
    """Do what a command line says, the verb first; return its model, data and trainer as the verb has left them."""
    built = build(in_order_of_precedence(args))
    built.run()
    return built


def build(args: Sequence[str]) -> DeqCertCLI:
    """Build model, data and trainer."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", message=f".*({_NOT_THE_USERS}|{_AVERAGED})")
    demand_sound_configs(args)
    # As `python -m deqcert` does, for classes of the user; not for verbs that load none, in a folder of others.
    if os.getcwd() not in sys.path and not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, os.getcwd())
    with refused_by_lightning("lightning."):
        return DeqCertCLI(
            DEQClassifier,
            ImageDataModule,
            subclass_mode_data=True,
            trainer_class=Trainer,
            trainer_defaults={"callbacks": [CertificationProgress()], "default_root_dir": "runs"},
            seed_everything_default=0,
            save_config_callback=SaveVerbConfig,
            save_config_kwargs={"overwrite": True, "config_filename": f"{args[0]}.yaml"},
            parser_class=SettingsParser,
            parser_kwargs={"prog": "deqcert"},
            args=with_checkpoint_network(args),
        )
