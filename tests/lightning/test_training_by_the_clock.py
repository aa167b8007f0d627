"""Training that ends in time, and what is kept of one without an end."""

from __future__ import annotations

import csv
import functools
from types import SimpleNamespace

import pytest
import torch
from digits_runs import fit, model
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from deqcert.errors import SettingError
from deqcert.implicit import OneStep
from deqcert.lightning import StandingRecord, TimeBudget, time_budget


class Rates(Callback):
    def __init__(self):
        self.rates = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_the_schedule_is_at_its_end_when_the_time_is_up(monkeypatch):
    """By a clock on which a step takes a tenth of a second, and twice that from step 20 on; the first compiles."""
    now = [0.0]
    monkeypatch.setattr(time_budget, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Tick(Rates):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            now[0] += 2.0 if trainer.global_step == 0 else 0.1 if trainer.global_step < 20 else 0.2

    tick = Tick()
    budget = TimeBudget(10.0, every=0.5)
    trainer, _ = fit(model(gradient=OneStep()), -1, batch_size=32, max_epochs=-1, callbacks=[tick, budget])
    assert now[0] == pytest.approx(10.0, abs=0.2)
    assert trainer.global_step == pytest.approx(50, abs=1)
    assert tick.rates[-1] < 1e-5
    assert tick.rates[10] > 0.9 * tick.rates[0]


@pytest.mark.parametrize("field", ["seconds", "every"])
def test_a_budget_of_nothing_is_refused(field):
    with pytest.raises(SettingError, match=rf"^{field} = 0: must be > 0"):
        TimeBudget(**{"seconds": 1.0, field: 0})


RADAM = functools.partial(torch.optim.RAdam, lr=1e-3, betas=(0.9, 0.99))


class KilledError(Exception):
    pass


class Kill(Callback):
    """Ends the run as a kill would, at the start of a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KilledError


def leg(folder, steps, *, ckpt_path=None, kill_at=None, record_in=None):
    """Two batches per epoch, validation after each, a checkpoint at every step."""
    module = model(gradient=OneStep(), schedule="constant", optimizer=RADAM)
    callbacks = [
        ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=1),
        EMAWeightAveraging(decay=0.5),
        StandingRecord(str(record_in or folder)),
        Kill(kill_at),
    ]
    settings = {"limit_train_batches": 2, "limit_val_batches": 1, "max_epochs": -1}
    try:
        fit(module, steps, callbacks=callbacks, ckpt_path=ckpt_path, **settings)
    except KilledError:
        assert kill_at is not None
    return module


def rows(folder):
    with (folder / "log.tsv").open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_standing_run_goes_on_after_a_kill_and_elsewhere(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    leg(here, 99, kill_at=5)
    first = rows(here)
    assert [(row["epochs"], row["step"]) for row in first] == [("1", "2"), ("2", "4")]
    assert all(0 < float(row["accuracy_under_noise"]) < 1 for row in first)

    state = torch.load(here / "state.ckpt", weights_only=True)
    assert state["global_step"] == 4
    assert state["optimizer_states"][0]["state"] == {}
    assert not any("ModelCheckpoint" in key for key in state["callbacks"])
    assert str(tmp_path) not in repr(state["callbacks"])
    weights = next(iter(state["state_dict"]))
    assert not torch.equal(state["state_dict"][weights], state["current_model_state"][weights])

    # Where it was killed: the last checkpoint is newer than the state.
    leg(here, 8, ckpt_path=here / "last.ckpt", kill_at=8)
    assert [row["step"] for row in rows(here)] == ["2", "4", "6", "8"]
    hours = [float(row["hours"]) for row in rows(here)]
    assert hours == sorted(hours)
    assert hours[0] > 0
    assert rows(here)[:2] == first

    # On another machine, from the state alone: it brings its log with it.
    leg(there, 10, ckpt_path=here / "state.ckpt")
    assert [row["step"] for row in rows(there)] == ["2", "4", "6", "8", "10"]
    assert rows(there)[:4] == rows(here)


def test_the_state_goes_on_from_the_current_weights_and_their_average(tmp_path):
    leg(tmp_path, 4)
    state = torch.load(tmp_path / "state.ckpt", weights_only=True)

    averaging = EMAWeightAveraging(decay=0.5)
    found = {}

    class First(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if not found:
                averaged = averaging._average_model.module
                for name, source in (("current_model_state", module), ("state_dict", averaged)):
                    found[name] = {key: tensor.clone() for key, tensor in source.state_dict().items()}

    module = model(seed=7, gradient=OneStep(), schedule="constant", optimizer=RADAM)
    callbacks = [averaging, First(), StandingRecord(str(tmp_path / "other"))]
    fit(module, 5, callbacks=callbacks, ckpt_path=tmp_path / "state.ckpt", limit_train_batches=2, max_epochs=-1)
    for part, weights in found.items():
        assert all(torch.equal(tensor, weights[name]) for name, tensor in state[part].items())
