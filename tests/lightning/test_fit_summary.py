"""How ``deqcert fit`` ends: with the checkpoint, its accuracy and a command that certifies it as printed."""

from __future__ import annotations

import shlex
from types import SimpleNamespace

import pytest
import torch
from command_lines import DIGITS, QUIET
from lightning.pytorch.callbacks import ModelCheckpoint

from deqcert.cli import main
from deqcert.lightning import FitSummary, time_budget
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
    trainer = SimpleNamespace(log_dir="runs", checkpoint_callback=saver, callback_metrics=metrics)
    lines: list[str] = []
    FitSummary().on_fit_end(trainer, SimpleNamespace(print=lines.append, sigma=0.25))
    if not path:
        assert lines == ["no checkpoint was saved"]
    else:
        known = "45.7 % in the last validation" if metrics else "not validated"
        assert lines[:2] == ["checkpoint: last.ckpt", f"accuracy under noise (sigma = 0.25): {known}"]


@pytest.mark.parametrize("sigma", [0.0, 0.25])
def test_a_sigma_that_cannot_be_certified_is_not_in_the_command(sigma):
    saver = ModelCheckpoint()
    saver.last_model_path = "last.ckpt"
    trainer = SimpleNamespace(log_dir="runs", checkpoint_callback=saver, callback_metrics={})
    lines: list[str] = []
    FitSummary().on_fit_end(trainer, SimpleNamespace(print=lines.append, sigma=sigma))
    assert ("--smoothing.sigma 0.25" in lines[2], "--smoothing.sigma" in lines[2]) == (sigma > 0, sigma > 0)
