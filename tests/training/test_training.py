from __future__ import annotations

import dataclasses
import os
import signal

import pytest
import torch
from certification_runs import shipped_network
from digits_runs import ADAM, SOLVER, fit, model
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from deqcert.data import CIFAR10, Digits
from deqcert.errors import CheckpointError, SettingError
from deqcert.implicit import ImplicitAdjoint, OneStep, Unrolled
from deqcert.models import MDEQ, CifarResNet, ResNet50
from deqcert.solvers import Broyden
from deqcert.training import (
    CATRS,
    PGD,
    Consistency,
    DEQClassifier,
    Gaussian,
    JacobianRegularization,
    SmoothAdv,
    classifier,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run of 12 steps with a checkpoint at each."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    module = model()
    _, record = fit(module, 12, callbacks=[saver])
    return folder, module, record


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the checkpoints' writer is left out
@pytest.mark.parametrize("stop", [3, 5, 8])
def test_a_resumed_run_repeats_the_uninterrupted_one(uninterrupted, stop):
    """After steps 3 and 8 in mid-epoch, after step 5 between epochs; started from another seed."""
    folder, module, record = uninterrupted
    resumed = model(seed=99)
    _, again = fit(resumed, 12, ckpt_path=folder / f"step={stop}.ckpt")
    assert again.losses == {step: loss for step, loss in record.losses.items() if step > stop}
    assert list(again.losses) == list(range(stop + 1, 13))
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("stop", [3, 4, 6, 8])
def test_a_run_of_epochs_resumes_exactly(tmp_path, stop):
    """In mid-epoch and after epochs of four of the five batches: the length of the run is asked for in time."""
    settings = {"max_epochs": 3, "limit_train_batches": 4}
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    _, record = fit(model(), -1, callbacks=[saver], **settings)
    _, again = fit(model(seed=99), -1, ckpt_path=tmp_path / f"step={stop}.ckpt", **settings)
    assert again.losses == {step: loss for step, loss in record.losses.items() if step > stop}
    assert len(again.losses) == 12 - stop


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("stops", [(4, 6), (4, 8), (3, 4, 5, 8, 9)])
def test_a_run_resumed_again_and_again_repeats_the_uninterrupted_one(tmp_path, stops):
    """Epochs of four batches, left at their ends and between."""
    settings = {"max_epochs": 3, "limit_train_batches": 4}

    def leg(folder, ckpt_path=None):
        saver = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        return fit(model(), -1, callbacks=[saver], ckpt_path=ckpt_path, **settings)[1].losses

    expected = leg("0")
    for number, stop in enumerate(stops):
        losses = leg(str(number + 1), tmp_path / str(number) / f"step={stop}.ckpt")
        assert losses == {step: loss for step, loss in expected.items() if step > stop}


@pytest.mark.parametrize("moment", ["on_train_batch_start", "on_train_batch_end", "on_validation_start"])
def test_sigterm_saves_after_a_step_and_the_resumed_run_overwrites(tmp_path, moment):
    """In a step and after its end, when the loop of Lightning looks next, and in validation."""
    told = []

    class Stop(Callback):
        pass

    def tell(self, trainer, *others):
        if trainer.global_step == 2 and not told:
            told.append(moment)
            os.kill(os.getpid(), signal.SIGTERM)

    setattr(Stop, moment, tell)
    settings = {"limit_val_batches": 1, "val_check_interval": 1}

    def saver():
        return ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, every_n_train_steps=5)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        fit(model(), 6, callbacks=[saver(), Stop()], **settings)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert saved == (2 if moment == "on_train_batch_end" else 3)
    resumed = model(seed=9)
    fit(resumed, 6, callbacks=[saver()], ckpt_path=tmp_path / "last.ckpt", **settings)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    whole = model()
    fit(whole, 6, **settings)
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_the_run_belongs_to_its_seed(uninterrupted):
    _, _, record = uninterrupted
    _, same = fit(model(), 2)
    _, other = fit(model(seed=1), 2)
    assert same.losses == {step: record.losses[step] for step in (1, 2)}
    assert other.losses != same.losses


def test_checkpoints_hold_plain_data_and_sigma_only(uninterrupted):
    folder, module, _ = uninterrupted
    checkpoint = torch.load(folder / "step=3.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"] == {"sigma": 0.25}
    assert checkpoint["stream_seed"] == module.stream_seed
    fresh = model(sigma=0.75)
    fresh.on_load_checkpoint(checkpoint)
    assert (fresh.checkpoint_sigma, fresh.sigma) == (0.25, 0.75)


def test_another_architecture_is_refused_before_any_weight_is_copied(uninterrupted):
    folder, _, _ = uninterrupted
    other = model(expansion=2)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"another architecture.*expansion = 2, must be 1$"):
        fit(other, 12, ckpt_path=folder / "step=3.ckpt")
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_missing_and_unexpected_weights_are_named():
    module = model()
    state = module.state_dict()
    first = next(iter(state))
    with pytest.raises(CheckpointError, match=f"missing {first}"):
        module.on_load_checkpoint({"state_dict": {key: value for key, value in state.items() if key != first}})
    with pytest.raises(CheckpointError, match=r"unexpected network\.new"):
        module.on_load_checkpoint({"state_dict": {**state, "network.new": torch.zeros(1)}})


def test_pretraining_has_its_own_gradient():
    module = model(
        pretraining_steps=2,
        pretraining_gradient=Unrolled(steps=3),
        gradient=ImplicitAdjoint(Broyden(max_steps=3)),
        jacobian=JacobianRegularization(weight=0),
    )
    _, record = fit(module, 4)
    implicit = {"train/forward_steps", "train/backward_steps"}
    assert [implicit <= set(record.metrics[step]) for step in (1, 2, 3, 4)] == [False, False, True, True]


class Spy(OneStep):
    """Records the steps of the forward solver."""

    def fixed_point(self, function, start, solver, monitor=None):
        taken.append(solver)
        return super().fixed_point(function, start, solver, monitor)


taken: list = []


@pytest.mark.parametrize(("frequency", "jitter"), [(0.5, 2), (1.0, 0), (0.0, 2)])
def test_jitter_changes_the_steps_only_where_the_penalty_is_computed(monkeypatch, frequency, jitter):
    events = []
    real = classifier.hutchinson_penalty

    def penalty(*arguments):
        events.append(len(taken))
        return real(*arguments)

    monkeypatch.setattr(classifier, "hutchinson_penalty", penalty)
    taken.clear()
    regularization = JacobianRegularization(frequency=frequency, jitter=jitter)
    fit(model(gradient=Spy(), jacobian=regularization), 16, batch_size=32)
    assert len(taken) == 16
    with_penalty = [taken[event - 1].max_steps for event in events]
    without = [solver.max_steps for step, solver in enumerate(taken, 1) if step not in events]
    assert set(without) <= {4}
    assert all(dataclasses.replace(solver, max_steps=4) == SOLVER for solver in taken)
    if frequency == 0.5:
        assert with_penalty
        assert without
        assert set(with_penalty) <= {2, 3, 4, 5, 6}
        assert len(set(with_penalty)) > 1
    else:
        assert set(with_penalty) <= {4}
        assert len(with_penalty) == 16 * frequency


def test_weight_schedule():
    plain = JacobianRegularization(weight=0.5)
    assert [plain.weight_at(step, 0) for step in (0, 1, 10**6)] == [0.5] * 3
    growing = JacobianRegularization(weight=0.5, increment=0.25, increment_every=10, pretraining_weight=0.125)
    assert [growing.weight_at(step, 0) for step in (0, 9, 10, 19, 20)] == [0.5, 0.5, 0.75, 0.75, 1.0]
    assert [growing.weight_at(step, 0) for step in (-1, -100)] == [0.125] * 2
    stopping = dataclasses.replace(growing, stop_epoch=3)
    assert [stopping.weight_at(step, epoch) for step, epoch in ((0, 2), (0, 3), (99, 4), (-1, 3))] == [
        0.5,
        0,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weight", -1),
        ("frequency", 1.5),
        ("frequency", -0.1),
        ("pretraining_weight", -1),
        ("increment", -1),
        ("increment_every", 0),
        ("jitter", -1),
        ("vectors", 0),
    ],
)
def test_regularization_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(SettingError, match=rf"^jacobian\.{field} = "):
        JacobianRegularization(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("sigma", -1), ("pretraining_steps", -1), ("max_skipped_steps", 0), ("schedule", "linear")]
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(SettingError, match=f"^{field} = "):
        model(**{field: value})


def test_the_weight_on_a_step_follows_the_schedule():
    regularization = JacobianRegularization(weight=0.5, frequency=1.0, pretraining_weight=0.25, stop_epoch=1)
    module = model(pretraining_steps=2, jacobian=regularization, gradient=OneStep())
    _, record = fit(module, 7)
    for step in range(1, 8):
        metrics = record.metrics[step]
        weight = 0.25 if step <= 2 else 0.5 if step <= 5 else 0.0
        penalty = metrics["train/jacobian_penalty"] if weight else 0.0
        total = metrics["train/cross_entropy"] + weight * penalty
        assert float(metrics["train/loss"]) == pytest.approx(float(total), rel=1e-5)


OBJECTIVES = [
    SmoothAdv(noisy_samples=2, attack=PGD(epsilon=0.25, steps=1)),
    SmoothAdv(noisy_samples=2, attack=PGD(epsilon=0.25, steps=1, gradient=ImplicitAdjoint()), warmup_epochs=0),
    CATRS(noisy_samples=2, epsilon=0.25, steps=1),
    Consistency(),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_every_objective_combines_with_the_jacobian_penalty(objective):
    """Before, at and after the end of pre-training."""
    regularization = JacobianRegularization(weight=0.5, frequency=1.0, pretraining_weight=0.5)
    settings = {"objective": objective, "gradient": OneStep(), "pretraining_gradient": Unrolled(2)}
    module = model(pretraining_steps=1, jacobian=regularization, **settings)
    before = {name: tensor.clone() for name, tensor in module.named_parameters()}
    _, record = fit(module, 3, batch_size=32)
    for metrics in record.metrics.values():
        rest = metrics["train/loss"] - 0.5 * metrics["train/jacobian_penalty"]
        assert metrics["train/jacobian_penalty"] > 0
        assert "train/backward_steps" not in metrics  # neither training nor, in its name, an attack
        if isinstance(objective, SmoothAdv):
            assert float(rest) == pytest.approx(float(metrics["train/cross_entropy"]), rel=1e-4)
    assert all(parameter.requires_grad for parameter in module.parameters())
    unchanged = [name for name, parameter in module.named_parameters() if torch.equal(parameter, before[name])]
    assert unchanged == []


def test_metrics_are_logged_by_name():
    trainer, record = fit(
        model(jacobian=JacobianRegularization(frequency=1.0)),
        2,
        limit_train_batches=2,
        max_epochs=1,
        limit_val_batches=2,
    )
    assert set(record.metrics[2]) == {
        f"train/{name}"
        for name in (
            "loss", "cross_entropy", "accuracy_under_noise", "jacobian_penalty", "forward_steps", "forward_residual",
            "backward_steps", "backward_residual", "skipped_steps",
        )
    }  # fmt: skip
    names = ("accuracy", "accuracy_under_noise", "loss_under_noise", "forward_steps", "forward_residual")
    validated = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
    assert set(validated) == {f"val/{name}" for name in (*names, "spectral_radius")}
    assert all(value.isfinite() for value in validated.values())
    assert validated["val/spectral_radius"] > 0
    data = Digits(eval_batch_size=250)
    first, second = (trainer.test(trainer.lightning_module, data, verbose=False) for _ in range(2))
    assert set(first[0]) == {f"test/{name}" for name in names}
    assert first == second  # the noise of the evaluation is always the same


def test_the_learning_rate_follows_a_cosine_to_zero():
    rates = []

    class Rates(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(model(gradient=OneStep()), 4, callbacks=[Rates()])
    expected = [0.005 * (1 + torch.cos(torch.tensor(torch.pi * step / 4)).item()) / 2 for step in range(1, 5)]
    assert rates == pytest.approx(expected, abs=1e-9)


def test_a_constant_learning_rate_needs_no_end():
    rates = []

    class Rates(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])
            trainer.should_stop = trainer.global_step == 4

    fit(model(gradient=OneStep(), schedule="constant"), -1, max_epochs=-1, callbacks=[Rates()])
    assert rates == [0.005] * 4
    rates.clear()
    fit(model(gradient=OneStep()), -1, max_epochs=-1, callbacks=[Rates()])  # a cosine without an end does not begin
    assert rates == [0.005] * 4


def explicit():
    return CifarResNet(depth=8, image_channels=1, image_size=8, mean=(0.3,), std=(0.37,))


@pytest.mark.parametrize("objective", [Gaussian(), *OBJECTIVES], ids=lambda objective: type(objective).__name__)
def test_an_explicit_network_is_trained_by_every_objective_on_logits(objective):
    network = explicit()
    before = {name: tensor.clone() for name, tensor in network.named_parameters()}
    _, record = fit(DEQClassifier(network, sigma=0.25, objective=objective, optimizer=ADAM), 3, batch_size=32)
    assert all(metrics["train/cross_entropy"] > 0 for metrics in record.metrics.values())
    assert "train/jacobian_penalty" not in record.metrics[3]
    assert not any(torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())


@pytest.mark.parametrize("implicit", [True, False])
def test_compilation_adds_nothing_to_checkpoints(monkeypatch, implicit):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda given: compiled.append(given) or given)
    settings = {"compile_cell": True, "jacobian": JacobianRegularization(frequency=0), "optimizer": ADAM}
    module = model(**settings) if implicit else DEQClassifier(explicit(), sigma=0.25, **settings)
    names = set(module.state_dict())
    fit(module, 1)
    assert len(compiled) == 1
    assert set(module.state_dict()) == names


def test_a_short_run_learns_the_digits():
    trainer, record = fit(
        model(sigma=0.1),
        60,
        batch_size=64,
        limit_val_batches=1.0,
        check_val_every_n_epoch=None,
        val_check_interval=60,
    )
    losses = list(record.losses.values())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert trainer.callback_metrics["val/accuracy"] > 0.3  # guessing: 0.1


class FewDigits(Digits):
    """The first ``count`` images of each split."""

    def __init__(self, count):
        super().__init__(batch_size=2, eval_batch_size=2)
        self.count = count

    def load_split(self, split):
        return super().load_split(split).subset(range(self.count))


@pytest.mark.parametrize("count", [3, 7])
def test_metrics_of_several_processes_are_those_of_one(count):
    """As many images as cannot be shared out evenly: each counts once."""
    network = shipped_network()
    settings = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}

    def metrics(devices):
        strategy = "ddp_fork" if devices > 1 else "auto"
        trainer = Trainer(devices=devices, strategy=strategy, enable_model_summary=False, **settings)
        module = DEQClassifier(network, sigma=0.0)
        (validated,) = trainer.validate(module, FewDigits(count), verbose=False)
        (tested,) = trainer.test(module, FewDigits(count), verbose=False)
        radius = validated.pop("val/spectral_radius")  # its power iteration starts at random
        return validated | tested, radius

    (alone, radius), (together, other_radius) = metrics(1), metrics(2)
    assert 0 < alone["val/loss_under_noise"] < 3
    assert alone["val/accuracy"] * count == pytest.approx(round(alone["val/accuracy"] * count))
    assert together == pytest.approx(alone, rel=1e-5)
    assert other_radius == pytest.approx(radius, rel=0.2)


@pytest.mark.parametrize(
    ("network", "field"),
    [
        (CifarResNet(depth=8, image_channels=1, mean=(0.3,), std=(0.4,)), "image_channels = 1: must be 3, as data.ch"),
        (CifarResNet(depth=8, num_classes=11), "num_classes = 11: must be 10, as data.num_classes"),
        (CifarResNet(depth=8, image_size=8), "image_size = 8: must be 32, as data.image_size"),
        (MDEQ(num_classes=10, image_channels=1, mean=(0.3,), std=(0.4,)), "image_channels = 1: must be 3"),
        (ResNet50(), "num_classes = 1000: must be 10"),
    ],
)
def test_data_that_do_not_fit_the_network_are_refused(network, field):
    with pytest.raises(SettingError, match=f"model.network.{field}"):
        DEQClassifier(network).demand_fitting(CIFAR10())
    DEQClassifier(CifarResNet(depth=8)).demand_fitting(CIFAR10())
