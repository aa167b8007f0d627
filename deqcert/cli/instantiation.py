"""For verbs of ours that need a model and data, but no run of the trainer."""

from __future__ import annotations

from collections.abc import Sequence

from deqcert.cli.arguments import in_order_of_precedence
from deqcert.cli.parsing import settings_as_written
from deqcert.cli.trainer_verbs import DeqCertCLI, build

ANYWHERE = "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.plugins=null"
"""Settings with which a configuration for other machines names a model all the same."""

# Model and data do not depend on these.
_ALONE = "devices=1", "num_nodes=1", "strategy=auto", "logger=false", "callbacks=null"
_QUIET = "enable_checkpointing=false", "enable_progress_bar=false", "enable_model_summary=false"


@settings_as_written()
def instantiate(args: Sequence[str]) -> DeqCertCLI:
    """Build what a command line of a verb of the trainer describes; its devices, loggers and callbacks are ignored.

    What is returned has ``model``, ``datamodule`` and ``trainer``, and other arguments of the verb in
    ``config_init[verb]``.
    """
    return build([*in_order_of_precedence(args), *(f"--trainer.{each}" for each in (*_ALONE, *_QUIET))])
