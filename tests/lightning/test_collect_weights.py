"""Snapshots of the weights, taken while a network is trained."""

from __future__ import annotations

import pytest
import torch
from digits_runs import fit, model
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from deqcert.errors import SettingError
from deqcert.implicit import OneStep
from deqcert.lightning import CollectWeights
from deqcert.uncertainty import WeightPosterior


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return all(torch.equal(each, other[name]) for name, each in one.items() if isinstance(each, torch.Tensor)) and (
        one["snapshots"] == other["snapshots"]
    )


def train(folder, epochs, ckpt_path=None, **settings):
    """Train two steps per epoch; return the callback and the module."""
    collect = CollectWeights(str(folder / "posterior.ckpt"), rank=3, **settings)
    saving = ModelCheckpoint(folder, save_last=True, save_top_k=1, enable_version_counter=False)
    module = model(gradient=OneStep(), schedule="constant")
    limits = {"max_epochs": epochs, "limit_train_batches": 2}
    fit(module, -1, callbacks=[collect, saving], ckpt_path=ckpt_path, **limits)
    return collect, module


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_run_has_the_posterior_of_one_without_interruption(tmp_path):
    whole, module = train(tmp_path / "whole", 4)
    assert whole.posterior.snapshots == 4
    last = torch.cat([weight.flatten() for weight in module.network.parameters()])
    state = whole.posterior.state_dict()
    torch.testing.assert_close(state["mean"] + state["deviations"][-1], last)
    assert same(WeightPosterior.load(tmp_path / "whole" / "posterior.ckpt"), whole.posterior)

    train(tmp_path / "parts", 2)
    resumed, _ = train(tmp_path / "parts", 4, ckpt_path=tmp_path / "parts" / "last.ckpt")
    assert same(resumed.posterior, whole.posterior)
    assert same(WeightPosterior.load(tmp_path / "parts" / "posterior.ckpt"), whole.posterior)


def test_snapshots_begin_at_the_first_epoch(tmp_path):
    collect, _ = train(tmp_path, 3, first_epoch=1)
    assert collect.posterior.snapshots == 2


def test_a_resumed_run_has_the_same_rank():
    before = CollectWeights("posterior.ckpt", rank=3).state_dict()
    with pytest.raises(SettingError, match=r"^rank = 4: must be 3, as before the run resumed"):
        CollectWeights("posterior.ckpt", rank=4).load_state_dict(before)


def test_bad_settings_are_refused():
    with pytest.raises(SettingError, match=r"^first_epoch = -1"):
        CollectWeights("posterior.ckpt", first_epoch=-1)
    with pytest.raises(SettingError, match=r"^rank = 1"):
        CollectWeights("posterior.ckpt", rank=1)
    with pytest.raises(SettingError, match=r"^model.network = 'NoneType': must be a module for CollectWeights"):
        CollectWeights("posterior.ckpt").setup(None, LightningModule(), "fit")
