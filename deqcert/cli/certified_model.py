"""Building again what a run has certified, and refusing anything else."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from deqcert.certification.identity import run_identity
from deqcert.cli.trainer_verbs import instantiate
from deqcert.data import CertificationSet
from deqcert.errors import DataError, LedgerError, require
from deqcert.runs import certify_votes, identity_differences, read_run
from deqcert.smoothing import Smoothing
from deqcert.statistics import Certificate, CertificationRule
from deqcert.training.checkpoints import read_checkpoint

_ACCELERATORS = {"cpu": "cpu", "cuda": "gpu"}


class CertifiedModel(NamedTuple):
    """A run's model, data and certificates.

    Attributes:
        classifier: Base classifier with the certified weights, in evaluation mode on ``device``.
        smoothing: Strategy of the run.
        rule: How its votes become certificates.
        radii: Where its report gives certified accuracy; None leaves the choice to the report.
        examples: Its images.
        certificates: Derived from the votes in its ledger, sorted by index.
        votes_sha256: Digest of these votes.
        identity: What its ledger says of it.
        device: Where the classifier is.
        precision_context: Within it the classifier computes in the precision of the run.
    """

    classifier: nn.Module
    smoothing: Smoothing
    rule: CertificationRule
    radii: list[float] | None
    examples: CertificationSet
    certificates: tuple[Certificate, ...]
    votes_sha256: str
    identity: dict[str, Any]
    device: torch.device
    precision_context: AbstractContextManager[Any]


def certified_model(directory: str | Path, device: str | None = None, overrides: Sequence[str] = ()) -> CertifiedModel:
    """Build model, data and smoothing of a run from its ``certify.yaml`` and take its certificates from its ledger.

    Args:
        directory: Directory of the run. Its ``certify.yaml`` may name any class, as ``--config`` may: build runs of
            people whom you trust. Relative paths in it are relative to the working directory.
        device: "cpu" or "cuda"; None takes the one of the run.
        overrides: Further arguments of ``deqcert certify``, e.g. where checkpoint and data are on this machine.

    Raises:
        LedgerError: There is no ledger, or it is damaged, or what was built is not what was certified: other weights,
            data, smoothing or precision. Attacking that would say nothing about the certificates.
        DataError: There is no ``certify.yaml``, or an image has votes but is not in the data.
        CheckpointError: The checkpoint cannot be used.
        SettingError: There is no such device.
    """
    directory = Path(directory)
    run = read_run(directory)
    identity = dict(run.identity)
    kind = device or identity["device"]
    require(kind in _ACCELERATORS, "device", kind, f"must be one of {', '.join(_ACCELERATORS)}")
    require(kind == "cpu" or torch.cuda.is_available(), "device", kind, "is not here; --device cpu is")
    config = directory / "certify.yaml"
    if not config.is_file():
        raise DataError(f"{config}: must be a file; deqcert certify writes it beside the ledger")
    cli = instantiate(["certify", "--config", str(config), f"--trainer.accelerator={_ACCELERATORS[kind]}", *overrides])
    chosen = cli.config_init["certify"]
    if chosen["ckpt_path"] is not None:
        checkpoint = read_checkpoint(chosen["ckpt_path"])
        cli.model.demand_usable(checkpoint)
        cli.model.load_state_dict(checkpoint["state_dict"])
    root = cli.trainer.strategy.root_device
    module = cli.trainer.precision_plugin.convert_module(cli.model).to(root).eval()
    classifier = getattr(module, "network", module)
    cli.datamodule.prepare_data()
    cli.datamodule.setup("predict")
    examples = cli.datamodule.certification_set()
    smoothing = chosen["smoothing"]
    built = run_identity(
        smoothing, classifier, examples.identity(), examples[0][0].shape, root, str(cli.trainer.precision)
    )
    differences = identity_differences(_decisive(identity), _decisive(built))
    if differences:
        raise LedgerError(f"{directory}: was certified with another model, data or settings ({'; '.join(differences)})")
    rule = chosen["certificate"].rule
    missing = {vote.index for vote in run.votes} - set(examples.indices)
    if missing:
        raise DataError(f"{directory}: image {min(missing)} has votes but is not among the selected images")
    return CertifiedModel(
        classifier,
        smoothing,
        rule,
        chosen["certificate"].radii,
        examples,
        certify_votes(run.votes, rule),
        run.digest,
        identity,
        root,
        cli.trainer.precision_plugin.predict_step_context(),
    )


def _decisive(identity: dict[str, Any]) -> dict[str, Any]:
    """Leave out what changes the smoothed classifier by the rounding of kernels only: device, versions, batches."""
    decisive = {key: copy.copy(value) for key, value in identity.items() if key not in ("device", "tf32", "versions")}
    decisive["sampling"].pop("execution", None)
    return decisive
