"""The published ImageNet recipe over two processes and at full size: minutes, so slow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_lines import QUIET, ROOT, processes
from image_folders import write_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deqcert.runs import read_tsv

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RECIPE = ROOT / "configs" / "imagenet" / "mdeq_small.yaml"
CALLBACKS = """
trainer:
  callbacks+:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {filename: '{step}', every_n_train_steps: 1, save_top_k: -1}
"""
# Two optimizer steps unrolled and six implicit ones; the Jacobian weight grows with each, and each takes two batches.
SMALL = [
    "--data.image_size=32",
    "--data.resize=36",
    "--data.num_classes=2",
    "--data.batch_size=2",
    "--data.num_workers=1",
    "--model.network.image_size=32",
    "--model.network.num_classes=2",
    "--model.network.channels=[8,16,32,64]",
    "--model.network.head_channels=[7,14,28,56]",
    "--model.pretraining_steps=2",
    "--model.pretraining_gradient.steps=2",
    "--model.jacobian.frequency=1.0",
    "--model.jacobian.increment_every=1",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.precision=bf16-mixed",
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
]


def run(verb: str, *arguments: str) -> None:
    quiet = [argument for argument in QUIET if "logger" not in argument]
    command = [sys.executable, "-m", "deqcert", verb, f"--config={RECIPE}", *arguments, *quiet]
    subprocess.run(command, check=True, timeout=900)


def final_state(folder: Path) -> dict[str, object]:
    (path,) = folder.rglob("last.ckpt")
    return torch.load(path, weights_only=True)


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    (log,) = folder.rglob("events.out*")
    events = EventAccumulator(str(log)).Reload()
    return {name: {point.step: point.value for point in events.Scalars(name)} for name in events.Tags()["scalars"]}


def test_two_processes_train_log_save_and_resume(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ["n0", "n1"], 48, ("train", "val"), count=16)
    (tmp_path / "callbacks.yaml").write_text(CALLBACKS)
    settings = [f"--config={tmp_path / 'callbacks.yaml'}", f"--data.root={tmp_path / 'images'}", *SMALL, *processes(2)]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run("fit", *settings, f"--trainer.logger.save_dir={whole}")
    (third,) = whole.rglob("step=3.ckpt")
    run("fit", *settings, f"--trainer.logger.save_dir={resumed}", f"--ckpt_path={third}")

    one, other = final_state(whole), final_state(resumed)
    assert one["global_step"] == other["global_step"] == 8
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(tensor, other["state_dict"][name]) for name, tensor in one["state_dict"].items())
    logged = scalars(whole)
    again = scalars(resumed)
    for name in ("train/loss", "train/forward_residual", "train/backward_residual"):
        assert again[name] == {step: value for step, value in logged[name].items() if step >= 3}, name
    assert min(logged["train/backward_steps"]) == 2  # the third step is the first implicit one
    assert {"train/jacobian_penalty", "lr-SGD", "val/accuracy_under_noise"} <= logged.keys()


def test_one_step_and_one_certificate_at_full_size(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [f"n{index:04}" for index in range(1000)], 240, ("train", "val"), count=1)
    data = [f"--data.root={tmp_path / 'images'}", "--data.batch_size=2", "--data.num_workers=0"]
    limits = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    run("fit", *data, *limits, "--trainer.logger.save_dir", str(tmp_path / "run"))
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    sampling = [f"--config={ROOT / 'configs' / 'certify' / 'standard.yaml'}", "--sampling.n=10", "--sampling.n0=2"]
    solver = ["--smoothing.solver=Broyden", "--smoothing.solver.max_steps=14", "--smoothing.solver.stop=absolute"]
    where = [f"--ckpt_path={checkpoint}", f"--ledger_dir={tmp_path / 'ledger'}", "--data.skip=1000"]
    run("certify", *data, *sampling, *solver, *where, "--trainer.logger=false")
    assert len(read_tsv(tmp_path / "ledger" / "certificates.tsv")) == 1
