"""Losses that are not finite, weights to start from, averaged weights, a longer schedule."""

from __future__ import annotations

import math
import threading
from functools import partial
from itertools import pairwise

import pytest
import torch
from digits_runs import fit, model
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from deqcert.errors import CheckpointError, TrainingError
from deqcert.implicit import OneStep
from deqcert.training import Gaussian
from deqcert.training.nonfinite import poisoned
from deqcert.training.objectives import Loss


class Faulty(Gaussian):
    """Spoils the loss at some calls, after a forward pass that also spoils the batch-norm statistics."""

    def loss(self, context, images, labels):
        calls.append(len(calls))
        spoil = spoiled(calls[-1])
        value, metrics = super().loss(context, images * (math.nan if spoil == "images" else 1), labels)
        if spoil == "infinite":  # a constant: its gradient is finite
            value = value + math.inf
        return Loss(value, metrics)


calls: list[int] = []
schedule: dict[int, str] = {}


def spoiled(call):
    return schedule.get(call)


@pytest.fixture(autouse=True)
def fresh():
    calls.clear()
    schedule.clear()


class Snapshots(Callback):
    """The state after every step, optimiser included."""

    def __init__(self):
        self.states = []
        self.moments = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.states.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
        state = trainer.optimizers[0].state
        self.moments.append([entry["exp_avg"].clone() for entry in state.values()])


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["images", "infinite"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(kind):
    schedule.update({2: kind, 3: kind})
    snapshots = Snapshots()
    _, record = fit(model(objective=Faulty(), gradient=OneStep()), 6, callbacks=[snapshots])
    states, moments = snapshots.states, snapshots.moments
    assert [same(one, other) for one, other in pairwise(states)] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert all(torch.equal(a, b) for a, b in zip(moments[1], moments[3], strict=True))
    assert [float(record.metrics[step]["train/skipped_steps"]) for step in range(1, 7)] == [0, 0, 1, 2, 2, 2]
    assert all(tensor.isfinite().all() for tensor in states[-1].values())


def test_too_many_in_a_row_stop_training_and_the_last_good_checkpoint_stays(tmp_path):
    schedule.update(dict.fromkeys(range(4, 100), "images"))
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    message = r"not finite in 3 steps in a row.*step=6.ckpt holds weights of before.*max_skipped_steps = 3"
    with pytest.raises(TrainingError, match=message):
        fit(model(objective=Faulty(), gradient=OneStep(), max_skipped_steps=3), 20, callbacks=[saver])
    assert len(calls) == 7
    for path in tmp_path.glob("*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(tensor.isfinite().all() for tensor in weights.values())
    assert (tmp_path / "step=4.ckpt").exists()


def test_a_run_that_stops_before_its_first_checkpoint_promises_none():
    schedule.update(dict.fromkeys(range(100), "images"))
    with pytest.raises(TrainingError, match="; no checkpoint has been saved yet"):
        fit(model(objective=Faulty(), gradient=OneStep(), max_skipped_steps=3), 20)


def test_only_steps_in_a_row_stop_training():
    schedule.update(dict.fromkeys([1, 2, 4, 5, 7, 8], "images"))
    module = model(objective=Faulty(), gradient=OneStep(), max_skipped_steps=3)
    fit(module, 10)
    assert (module.guard.skipped, module.guard.in_a_row) == (6, 0)


def test_accumulated_batches_are_skipped_together():
    schedule.update({3: "images"})  # the second batch of the second step
    snapshots = Snapshots()
    settings = {"accumulate_grad_batches": 2, "limit_train_batches": 4}  # two steps per epoch
    fit(model(objective=Faulty(), gradient=OneStep()), 3, callbacks=[snapshots], **settings)
    assert len(calls) == 6
    assert same(snapshots.states[1], snapshots.states[3])
    assert not same(snapshots.states[3], snapshots.states[5])


class Diary(Callback):
    """Writes each rank's skipped steps and weights to a file of its own."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        total = sum(parameter.double().sum().item() for parameter in module.parameters())
        with (self.folder / f"{trainer.global_rank}.txt").open("a") as file:
            file.write(f"{module.guard.skipped} {total!r}\n")


class FaultyOnRankOne(Gaussian):
    """Its loss is infinite on the second process at the second step; the gradient of that alone is finite."""

    def loss(self, context, images, labels):
        calls.append(len(calls))
        value, metrics = super().loss(context, images, labels)
        spoil = torch.distributed.get_rank() == 1 and len(calls) == 2
        return Loss(value + math.inf if spoil else value, metrics)


def test_all_processes_skip_the_same_steps(tmp_path):
    module = model(objective=FaultyOnRankOne(), gradient=OneStep())
    fit(module, 3, batch_size=64, callbacks=[Diary(tmp_path)], devices=2, strategy="ddp_fork")
    first, second = ((tmp_path / f"{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert first == second
    assert [line.split()[0] for line in first] == ["0", "1", "1"]
    weights = [line.split()[1] for line in first]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(("value", "expected"), [(2.0, 3.0), (math.inf, math.nan), (math.nan, math.nan)])
def test_poison_spares_finite_losses(value, expected):
    parameter = torch.tensor(1.0, requires_grad=True)
    poisoned(3 * parameter + (value - 3)).backward()
    assert parameter.grad is not None
    assert parameter.grad.item() == pytest.approx(expected, nan_ok=True)


# Weights to start from.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    fit(model(gradient=OneStep()), 3, callbacks=[ModelCheckpoint(folder, filename="three", every_n_train_steps=3)])
    return folder / "three.ckpt"


def test_training_starts_from_the_weights_of_another_run(checkpoint):
    given = torch.load(checkpoint, weights_only=True)["state_dict"]
    module = model(seed=5, weights=str(checkpoint))
    trainer, _ = fit(module, 1, limit_train_batches=0)
    assert same(given, module.state_dict())
    assert trainer.global_step == 0


def test_weights_that_do_not_fit_are_refused(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"^model\.weights: .*another architecture"):
        fit(model(expansion=2, weights=str(checkpoint)), 1)
    with pytest.raises(CheckpointError, match=r"^model\.weights = .*existing"):
        fit(model(weights=str(tmp_path / "none.ckpt")), 1)


# Averaged weights.


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_checkpoints_hold_the_averaged_weights_and_resume_exactly(tmp_path):
    def callbacks(folder):
        return [
            EMAWeightAveraging(decay=0.5),
            ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1),
            snapshots,
        ]

    snapshots = Snapshots()
    fit(model(gradient=OneStep()), 7, callbacks=callbacks("whole"))
    weights = [state["network.mdeq_head.classifier.weight"] for state in snapshots.states]
    average = weights[0]
    for step, weight in enumerate(weights[1:], start=2):
        average = 0.5 * average + 0.5 * weight
        saved = torch.load(tmp_path / "whole" / f"step={step}.ckpt", weights_only=True)
        torch.testing.assert_close(saved["state_dict"]["network.mdeq_head.classifier.weight"], average)

    whole = snapshots.states
    snapshots = Snapshots()
    fit(model(seed=9, gradient=OneStep()), 7, ckpt_path=tmp_path / "whole" / "step=4.ckpt", callbacks=callbacks("rest"))
    for resumed, uninterrupted in zip(snapshots.states[:-1], whole[4:-1], strict=True):
        assert same(resumed, uninterrupted)
    first, second = (
        torch.load(tmp_path / folder / "step=7.ckpt", weights_only=True)["state_dict"] for folder in ("whole", "rest")
    )
    assert same(first, second)


def test_weights_are_averaged_whatever_the_optimizer_is_bound_to():
    # As the command line does it: what it binds leads to the processes of DDP.
    def adam(lock, parameters):
        return torch.optim.Adam(parameters)

    module = model(gradient=OneStep(), optimizer=partial(adam, threading.Lock()))
    fit(module, 2, callbacks=[EMAWeightAveraging(decay=0.5)])
    assert module.optimizer_callable(module.parameters()).defaults["lr"] == 1e-3


# Schedule.


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_run_resumed_with_more_steps_follows_the_longer_cosine(checkpoint):
    class Rates(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates: list[float] = []
    fit(model(gradient=OneStep()), 12, ckpt_path=checkpoint, callbacks=[Rates()])
    expected = [0.005 * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(4, 12)]
    assert rates[1:] == pytest.approx(expected)
