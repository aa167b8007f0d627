"""Checkpoints of the shipped configurations while they train, and what fit does where there are some or none."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from command_lines import ROOT, fit_command
from digits_runs import fit, model
from image_folders import write_images
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import Ranks

import deqcert.cli.trainer_verbs  # noqa: F401  # so that forks need not import it
from deqcert.cli import main
from deqcert.implicit import OneStep
from deqcert.training import JacobianRegularization

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIGS = ROOT / "configs"


def saver_of(path: Path) -> dict[str, object] | None:
    """The settings of the ModelCheckpoint in a configuration."""
    trainer = yaml.safe_load(path.read_text()).get("trainer") or {}
    for each in trainer.get("callbacks", []):
        if each["class_path"].endswith("ModelCheckpoint"):
            return dict(each["init_args"])
    return None


SAVERS = {str(path.relative_to(CONFIGS)): saver_of(path) for path in sorted(CONFIGS.rglob("*.yaml"))}


class Kill(Callback):
    """Ends a run in the midst of a step, as a fault would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KeyError("killed")


@pytest.mark.parametrize("name", [name for name, settings in SAVERS.items() if settings])
def test_a_shipped_configuration_saves_while_it_trains(name, tmp_path):
    settings = dict(SAVERS[name] or {})
    kept = 2  # steps of an epoch, below
    if "every_n_train_steps" in settings:
        settings["every_n_train_steps"] = kept = 3
    saver = ModelCheckpoint(**(settings | {"dirpath": tmp_path}))
    module = model(gradient=OneStep(), jacobian=JacobianRegularization(frequency=0.0))
    with pytest.raises(KeyError, match="killed"):
        fit(module, 1000, batch_size=2, limit_train_batches=2, callbacks=[saver, Kill(kept + 1)])
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == kept


def test_every_configuration_that_trains_saves():
    trained = {name for name in SAVERS if name.split("/")[1].startswith("mdeq")}
    assert trained <= {name for name, settings in SAVERS.items() if settings}


# The command line.


def in_a_fork(command: list[str], log: Path) -> Ranks:
    return Ranks(1, lambda: main(command), log)


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


CIFAR10 = ["airplane", "automobile", "bird"], ("train", "test")
IMAGENET = ["n0", "n1"], ("train", "val")
TINY_IMAGENET = (
    "--data.image_size=32",
    "--data.resize=36",
    "--data.num_classes=2",
    "--data.num_workers=0",
    "--model.network.image_size=32",
    "--model.network.num_classes=2",
)
RUNS = {
    "digits/mdeq_tiny": (["digits/mdeq_tiny"], None, ["--trainer.max_epochs=12"]),
    "cifar10/mdeq_small": (["cifar10/mdeq_small"], CIFAR10, ["--trainer.max_epochs=12"]),
    # It saves every 130 steps; bfloat16 is slow where a CPU lacks the instructions.
    "cifar10/mdeq_small_cpu": (
        ["cifar10/mdeq_small", "cifar10/mdeq_small_cpu"],
        CIFAR10,
        ["--trainer.max_epochs=280", "--trainer.precision=32-true"],
    ),
    "cifar10/mdeq_large": (["cifar10/mdeq_large"], CIFAR10, ["--trainer.max_epochs=6"]),
    "imagenet/mdeq_small": (["imagenet/mdeq_small"], IMAGENET, ["--trainer.max_epochs=6", *TINY_IMAGENET]),
}
"""Configurations, classes and splits of their images (None: its own), arguments."""


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_shipped_configuration_survives_sigkill(name, tmp_path, record_fault):
    """Killed after its first checkpoint, it resumes from its last one to the weights of an undisturbed run."""
    configs, images, arguments = RUNS[name]
    if images is not None:
        write_images(tmp_path / "data", images[0], 48 if images is IMAGENET else 32, images[1])
        arguments = [*arguments, f"--data.root={tmp_path / 'data'}"]
    command = [
        "fit",
        *(f"--config={CONFIGS / each}.yaml" for each in configs),
        "--data.batch_size=2",
        *arguments,
        "--trainer.limit_train_batches=4",
        "--trainer.limit_val_batches=0",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.logger.name=run",
        "--trainer.logger.version=0",
    ]
    log = tmp_path / "log"
    whole = [*command, f"--trainer.logger.save_dir={tmp_path / 'whole'}"]
    assert in_a_fork(whole, log).wait(600) == [0], log.read_text()
    killed = [*command, f"--trainer.logger.save_dir={tmp_path / 'killed'}"]
    last = tmp_path / "killed" / "run" / "version_0" / "checkpoints" / "last.ckpt"
    run = in_a_fork(killed, log)
    deadline = time.monotonic() + 300
    while not last.exists() and time.monotonic() < deadline:
        run.run_for(0.02)
    assert run.kill(signal.SIGKILL) == 1, log.read_text()
    run.wait()
    assert torch.load(last, weights_only=True)["global_step"] > 0
    assert in_a_fork([*killed, "--ckpt_path=last"], log).wait(600) == [0], log.read_text()
    expected, found = weights(tmp_path / "whole" / "run" / "version_0" / "checkpoints" / "last.ckpt"), weights(last)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    record_fault(f"SIGKILL of fit, as shipped: {name}", 1, "resumed to the weights of an undisturbed one, bit for bit")


def without_ckpt_path(folder: Path) -> list[str]:
    return [argument for argument in fit_command(folder) if not argument.startswith("--ckpt_path")]


def test_fit_resumes_what_there_is_and_says_so_where_there_is_nothing(tmp_path, capsys):
    command = [*without_ckpt_path(tmp_path), "--trainer.max_epochs=1", "--trainer.limit_train_batches=6"]
    last = tmp_path / "checkpoints" / "last.ckpt"
    for name, message in (
        ("last", "ckpt_path = 'last': there is no last.ckpt to resume"),
        ("best", "ckpt_path = 'best': must be an existing checkpoint file"),
        ("hpc", "ckpt_path = 'hpc': must be an existing checkpoint file"),
    ):
        assert main([*command, f"--ckpt_path={name}"]) == 2
        assert message in capsys.readouterr().err
    assert not last.exists()

    assert main([*command, "--ckpt_path=last_or_new"]) == 0
    written = last.read_bytes()
    assert main(command) == 2
    assert f"{last} exists; last resumes that run, another trainer.logger.version" in capsys.readouterr().err
    assert last.read_bytes() == written

    for name in ("last", "last_or_new"):
        assert main([*command, f"--ckpt_path={name}", "--trainer.max_epochs=2"]) == 0
    assert torch.load(last, weights_only=True)["global_step"] == 12
    assert [path.name for path in last.parent.glob("last*")] == ["last.ckpt"]
