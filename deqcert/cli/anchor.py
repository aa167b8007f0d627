"""``deqcert anchor``: what makes few solver steps a classifier of their own: where they start, and how they mix."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from deqcert.checkpoints import network_weights, read_checkpoint
from deqcert.checkpoints.architecture import architecture_of, demand_same_architecture
from deqcert.checkpoints.files import demand_usable_weights
from deqcert.cli.targets import demand_free
from deqcert.cli.trainer_verbs import instantiate
from deqcert.data import ImageDataModule
from deqcert.data.images import to_unit_interval
from deqcert.errors import CheckpointError, SettingError, require_count
from deqcert.interchange import write_checkpoint
from deqcert.models import MDEQ
from deqcert.seeding import Purpose, purpose_seed
from deqcert.solvers import Anderson
from deqcert.training.mixing import train_mixing
from deqcert.training.starts import compute_start

_START, _MIXING = "start.", "mixing."
_DEFAULT_STEPS = {"mean": 50, "learned": 1000}


def run_anchor(args: Sequence[str]) -> int:
    """Compute a start, train learned mixing if asked for, and write the checkpoint that has them.

    Args:
        args: Arguments after the verb; those that it does not know go to the configuration of model and data.

    Returns:
        0.
    """
    parsed, config_args = _parser().parse_known_args(list(args))
    target = Path(parsed.to)
    demand_free(target, Path(parsed.source), parsed.overwrite)
    computes_start = not (parsed.keep_start or parsed.start == "zero")
    if not computes_start:
        require_count("mixing_steps", parsed.mixing_steps, minimum=1)
    checkpoint = read_checkpoint(parsed.source, "source")
    settings = [f"--model.network.init_args.{name}={getattr(parsed, name)}" for name in ("start", "mixing_steps")]
    built = instantiate(["certify", *config_args, *settings])
    network, sigma = built.model.network, built.model.sigma
    if not isinstance(network, MDEQ):
        raise SettingError("model.network", type(network).__name__, "must be an MDEQ")
    built.model.demand_fitting(built.datamodule)
    computed = ("mixing_steps",) if parsed.keep_start else ("start", "mixing_steps")
    demand_same_architecture(network, checkpoint, "source", computed)
    _load(network, checkpoint["state_dict"], (_MIXING,) if parsed.keep_start else (_START, _MIXING))
    if parsed.keep_start and network.start_sigma not in (None, sigma):
        raise CheckpointError(f"source: its start is for sigma = {network.start_sigma}, not for {sigma}")
    torch.manual_seed(purpose_seed(Purpose.ANCHOR, parsed.seed))
    device = built.trainer.strategy.root_device
    network.to(device)
    images = _Images(built.datamodule, device)
    solver = Anderson(max_steps=parsed.max_steps, tolerance=parsed.tolerance)
    if computes_start:
        steps = _DEFAULT_STEPS[parsed.start] if parsed.steps is None else parsed.steps
        start = compute_start(network, images, sigma, solver, steps)
        print(
            f"{parsed.start} start at sigma = {sigma}: from {start.images} noisy images, relative distance to the "
            f"fixed points {start.error:.3f}"
        )
    if parsed.mixing_steps:
        mixing = train_mixing(network, images, sigma, solver, parsed.mixing_batches)
        print(
            f"learned mixing: from {mixing.images} noisy images, relative distance to the fixed points after each step"
        )
        for name in ("plain", "anderson", "learned"):
            print(f"  {name:8}", *(f"{error:.4f}" for error in getattr(mixing, name)))
    write_checkpoint(target, network.cpu().state_dict(), sigma, architecture_of(network))
    print(f"written to {target}; use it with {' '.join(settings)} --smoothing.start={parsed.start}")
    return 0


def _load(network: MDEQ, given: Mapping[str, Tensor], left_out: tuple[str, ...]) -> None:
    """Load the weights ``given`` but for the parts that are to be computed."""
    weights = network_weights(given, "source")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(left_out)}
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(left_out)}
    demand_usable_weights(own, kept, "source")
    network.load_state_dict(kept, strict=False)


class _Images:
    """The training images of a data module, batch by batch, in [0, 1] on a device."""

    def __init__(self, data: ImageDataModule, device: torch.device) -> None:
        self._device = device
        data.prepare_data()
        data.setup("fit")
        self._loader = data.train_dataloader()

    def __iter__(self) -> Iterator[Tensor]:
        for images, _, _ in self._loader:
            there = images.to(self._device)
            yield to_unit_interval(there) if there.dtype == torch.uint8 else there


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deqcert anchor",
        description="Compute the start from which few solver steps are certified without an audit (Anchored "
        "smoothing): the mean fixed point of noisy training images, or that and a small network that corrects it. "
        "With --mixing_steps also how those steps mix (solver LearnedMixing). Weights stay as they are. Model and data "
        "are those of --config, the noise is model.sigma.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="CHECKPOINT", help="checkpoint of a trained MDEQ")
    parser.add_argument("--to", metavar="TARGET", required=True, help="checkpoint to write")
    parser.add_argument("--start", choices=["zero", *_DEFAULT_STEPS], required=True, help="what to compute")
    parser.add_argument("--keep_start", action="store_true", help="keep the start that CHECKPOINT has")
    parser.add_argument("--steps", type=int, help=f"batches that the start takes ({_DEFAULT_STEPS})")
    parser.add_argument("--mixing_steps", type=int, default=0, help="steps to train learned mixing for (%(default)s)")
    parser.add_argument("--mixing_batches", type=int, default=300, help="batches that it takes (%(default)s)")
    parser.add_argument("--max_steps", type=int, default=30, help="Anderson steps of the fixed points (%(default)s)")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="their relative residual (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace TARGET if it exists")
    return parser
