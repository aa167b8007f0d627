"""Building again what a run has certified, and refusing anything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deqcert.certification.identity import run_identity
from deqcert.checkpoints import load_network
from deqcert.cli.trainer_verbs import instantiate
from deqcert.data import CertificationSet
from deqcert.errors import DataError, LedgerError, require
from deqcert.runs import identity_differences, read_run
from deqcert.smoothing import Sampling, SmoothedClassifier
from deqcert.statistics import Certificate, CertificationRule

_ACCELERATORS = {"cpu": "cpu", "cuda": "gpu"}


class CertifiedModel(NamedTuple):
    """A run's model, data and certificates.

    Attributes:
        g: The smoothed classifier, in evaluation mode on ``device``.
        sampling: Strategy that took the votes.
        rule: How its votes become certificates.
        radii: Where its report gives certified accuracy; None leaves the choice to the report.
        examples: Its images.
        certificates: Derived from the votes in its ledger, sorted by index.
        votes_sha256: Digest of these votes.
        identity: What its ledger says of it.
        device: Where the classifier is.
        precision_context: Within it the classifier computes in the precision of the run.
    """

    g: SmoothedClassifier
    sampling: Sampling
    rule: CertificationRule
    radii: list[float] | None
    examples: CertificationSet
    certificates: tuple[Certificate, ...]
    votes_sha256: str
    identity: Mapping[str, Any]
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
    kind = device or run.identity["device"]
    require(kind in _ACCELERATORS, "device", kind, f"must be one of {', '.join(_ACCELERATORS)}")
    require(kind == "cpu" or torch.cuda.is_available(), "device", kind, "is not here; --device cpu is")
    config = directory / "certify.yaml"
    if not config.is_file():
        raise DataError(f"{config}: must be a file; deqcert certify writes it beside the ledger")
    cli = instantiate(["certify", "--config", str(config), f"--trainer.accelerator={_ACCELERATORS[kind]}", *overrides])
    chosen = cli.config_init["certify"]
    if chosen["ckpt_path"] is not None:
        load_network(chosen["ckpt_path"], cli.model.network)
    root = cli.trainer.strategy.root_device
    module = cli.trainer.precision_plugin.convert_module(cli.model).to(root).eval()
    network = getattr(module, "network", module)
    cli.datamodule.prepare_data()
    cli.datamodule.setup("predict")
    examples = cli.datamodule.certification_set()
    smoothing, sampling = chosen["smoothing"], chosen["sampling"]
    built = run_identity(
        smoothing,
        sampling,
        chosen["seed"],
        network,
        examples.identity(),
        examples[0][0].shape,
        root,
        str(cli.trainer.precision),
    )
    differences = identity_differences(_decisive(run.identity), _decisive(built))
    if differences:
        raise LedgerError(f"{directory}: was certified with another model, data or settings ({'; '.join(differences)})")
    rule = chosen["certificate"].rule
    missing = {vote.index for vote in run.votes} - set(examples.indices)
    if missing:
        raise DataError(f"{directory}: image {min(missing)} has votes but is not among the selected images")
    return CertifiedModel(
        smoothing.of(network),
        sampling,
        rule,
        chosen["certificate"].radii,
        examples,
        tuple(map(rule.certify, run.votes)),
        run.digest,
        run.identity,
        root,
        cli.trainer.precision_plugin.predict_step_context(),
    )


def _decisive(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what determines g, but for the rounding of kernels: votes of any sampling would have been votes of it."""
    return {key: identity[key] for key in ("smoothing", "classifier", "data", "image", "precision")}
