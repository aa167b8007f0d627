"""How ``deqcert fit`` ends: with its settings in TensorBoard, and a command that certifies its checkpoint."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_lines import DIGITS, QUIET, fit_command
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from deqcert.cli import main
from deqcert.cli.saving import next_steps
from deqcert.lightning import time_budget
from deqcert.models import MDEQ
from deqcert.monotone import LBEN, IBPMonDEQ
from deqcert.runs import read_tsv

pytestmark = pytest.mark.filterwarnings("ignore")

OVERLAY = """
model: {pretraining_steps: 0, gradient: {class_path: deqcert.implicit.OneStep}, jacobian: {weight: 0}}
trainer:
  max_epochs: -1
  limit_val_batches: 1
  callbacks: [{class_path: deqcert.lightning.TimeBudget, init_args: {seconds: 100, every: 5}}]
"""


def test_the_printed_command_certifies_what_a_time_budget_has_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ticks = iter(range(0, 10_000, 10))  # by this clock a step takes some tens of seconds
    monkeypatch.setattr(time_budget, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    (tmp_path / "overlay.yaml").write_text(OVERLAY)
    quiet = [*QUIET, "--trainer.enable_progress_bar=false"]
    assert main(["fit", f"--config={DIGITS}", "--config=overlay.yaml", "--trainer.val_check_interval=1", *quiet]) == 0
    printed = capsys.readouterr().out.splitlines()
    said = {line.partition(":")[0]: line.partition(": ")[2] for line in printed[-3:]}
    assert (tmp_path / said["checkpoint"]).is_file()
    assert said["accuracy under noise (sigma = 0.5)"].endswith(" % in the last validation")
    command = shlex.split(said["certify it"])
    assert command[:2] == ["deqcert", "certify"]
    assert main([*command[1:], "--sampling.n=60", "--sampling.n0=10", "--data.max_examples=2"]) == 0
    assert len(read_tsv(command[-1] + "/certificates.tsv")) == 2


@pytest.mark.parametrize("path", ["", "last.ckpt"])
@pytest.mark.parametrize("metrics", [{}, {"val/accuracy_under_noise": torch.tensor(0.4567)}])
def test_what_is_not_known_is_not_said(path, metrics):
    saver = ModelCheckpoint()
    saver.last_model_path = path
    trainer = SimpleNamespace(checkpoint_callback=saver, callback_metrics=metrics)
    lines = list(next_steps(trainer, SimpleNamespace(sigma=0.25, network=None), Path("runs")))
    if not path:
        assert lines == ["no checkpoint was saved"]
    else:
        known = "45.7 % in the last validation" if metrics else "not validated"
        assert lines[:2] == ["checkpoint: last.ckpt", f"accuracy under noise (sigma = 0.25): {known}"]


@pytest.mark.parametrize("sigma", [0.0, 0.25])
def test_a_sigma_that_cannot_be_certified_is_not_in_the_command(sigma):
    saver = ModelCheckpoint()
    saver.last_model_path = "last.ckpt"
    trainer = SimpleNamespace(checkpoint_callback=saver, callback_metrics={})
    lines = list(next_steps(trainer, SimpleNamespace(sigma=sigma, network=None), Path("runs")))
    assert ("--smoothing.sigma 0.25" in lines[2], "--smoothing.sigma" in lines[2]) == (sigma > 0, sigma > 0)


@pytest.mark.parametrize(
    ("network", "name"), [(LBEN(units=4), "Lipschitz"), (IBPMonDEQ(units=4), "IntervalBounds"), (MDEQ(), None)]
)
def test_a_network_trained_without_noise_is_certified_without_it(network, name):
    saver = ModelCheckpoint()
    saver.last_model_path = "last.ckpt"
    trainer = SimpleNamespace(checkpoint_callback=saver, callback_metrics={})
    said = list(next_steps(trainer, SimpleNamespace(sigma=0.0, network=network), Path("runs")))[2]
    assert ("--certification" in said) == (name is not None)
    assert name is None or f"--certification {name}" in said


def test_fit_logs_its_settings_beside_its_last_metrics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    left_out = ("--trainer.logger=false", "--ckpt_path=last_or_new")
    command = [argument for argument in fit_command(tmp_path) if argument not in left_out]
    command += ["--trainer.logger.save_dir", str(tmp_path), "--trainer.logger.name", "board"]
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.log_every_n_steps=1"]
    assert main([*command, *short]) == 0
    (file,) = tmp_path.glob("board/version_0/events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["model/sigma"].number_value == 0.5
    assert settings["model/network/class_path"].string_value.endswith("MDEQ")
    assert settings["model/objective/class_path"].string_value.endswith("Gaussian")
    assert settings["trainer/max_epochs"].number_value == 1
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = {info.name.tag for info in HParamsPluginData.FromString(content).experiment.metric_infos}
    assert {"val/accuracy_under_noise", "train/loss"} <= metrics
