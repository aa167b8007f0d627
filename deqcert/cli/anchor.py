"""``deqcert anchor``: the start from which few solver steps are a classifier of their own."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from deqcert.checkpoints import read_checkpoint
from deqcert.checkpoints.architecture import architecture_of, demand_same_architecture
from deqcert.checkpoints.files import demand_usable_weights
from deqcert.cli.arguments import demand_free, parse_with_settings
from deqcert.cli.instantiation import instantiate
from deqcert.data import ImageDataModule
from deqcert.data.images import to_unit_interval
from deqcert.errors import SettingError
from deqcert.interchange import write_checkpoint
from deqcert.models import MDEQ
from deqcert.names import checkpoint_path
from deqcert.seeding import Purpose, purpose_seed
from deqcert.solvers import Anderson
from deqcert.training.starts import compute_start

_START = "network.start."
_DEFAULT_STEPS = {"mean": 50, "learned": 1000}


def run_anchor(args: Sequence[str]) -> int:
    """Compute a start, write the checkpoint that has it, and return 0.

    ``args`` are the arguments after the verb; those that it does not know go to the configuration of model and data.
    """
    parsed, config_args = parse_with_settings(_parser(), args)
    target = Path(parsed.to)
    demand_free(target, Path(checkpoint_path(parsed.source, "source")), parsed.overwrite)
    checkpoint = read_checkpoint(parsed.source, "source")
    setting = f"--model.network.init_args.start={parsed.start}"
    built = instantiate(["certify", *config_args, setting])
    module, network, sigma = built.model, built.model.network, built.model.sigma
    if not isinstance(network, MDEQ):
        raise SettingError("model.network", type(network).__name__, "must be an MDEQ")
    module.demand_fitting(built.datamodule)
    demand_same_architecture(network, checkpoint, "source", ignoring=("start",))
    own, given = (
        {name: tensor for name, tensor in weights.items() if not name.startswith(_START)}
        for weights in (module.state_dict(), checkpoint["state_dict"])
    )
    demand_usable_weights(own, given, "source")
    module.load_state_dict(given, strict=False)
    torch.manual_seed(purpose_seed(Purpose.ANCHOR, parsed.seed))
    device = built.trainer.strategy.root_device
    solver = Anderson(max_steps=parsed.max_steps, tolerance=parsed.tolerance)
    steps = _DEFAULT_STEPS[parsed.start] if parsed.steps is None else parsed.steps
    start = compute_start(network.to(device), _Images(built.datamodule, device), sigma, solver, steps)
    found = f"from {start.images} noisy images, relative distance to the fixed points {start.error:.3f}"
    print(f"{parsed.start} start at sigma = {sigma}: {found}")
    write_checkpoint(target, network.cpu().state_dict(), sigma, architecture_of(network))
    print(f"written to {target}; use it with {setting} --smoothing.start=anchor")
    return 0


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
        description="Compute the start from which few solver steps are certified without an audit: the mean fixed "
        "point of noisy training images, or that and a small network that corrects it. Weights stay as they are. "
        "Model and data are those of --config, the noise is model.sigma.",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option("source", metavar="CHECKPOINT", help="checkpoint of a trained MDEQ")
    option("--to", metavar="TARGET", required=True, help="checkpoint to write")
    option("--start", choices=[*_DEFAULT_STEPS], required=True, help="what to compute")
    option("--steps", type=int, help=f"batches that it takes ({_DEFAULT_STEPS})")
    option("--max_steps", type=int, default=30, help="Anderson steps of the fixed points (%(default)s)")
    option("--tolerance", type=float, default=1e-3, help="their relative residual (%(default)s)")
    option("--seed", type=int, default=0, help="seed of the noise (%(default)s)")
    option("--overwrite", action="store_true", help="replace TARGET if it exists")
    return parser
