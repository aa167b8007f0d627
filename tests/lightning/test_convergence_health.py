from __future__ import annotations

import csv
import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from deqcert.data import Digits
from deqcert.errors import SettingError
from deqcert.lightning import ConvergenceHealth
from deqcert.models import DEQ
from deqcert.smoothing import ConvergenceSettings, convergence_report, smoothed
from deqcert.solvers import Anderson, Picard

SMALL = {"images": 3, "max_steps": 4, "mismatch_steps": (1, 2), "copies": 20}


class Contraction(DEQ):
    """z = tanh(rate · z + x) per pixel; the first ten pixels are the logits."""

    def __init__(self):
        super().__init__(Picard(max_steps=10))
        self.rate = nn.Parameter(torch.tensor(0.5))
        self.poisoned = False
        self.autocast = set()
        self.batches = []

    def inject(self, x):
        self.batches.append(x)
        return x.flatten(1)

    def initial_state(self, injection):
        return torch.zeros_like(injection)

    def cell(self, z, injection):
        self.autocast.add(torch.is_autocast_enabled("cpu"))
        fz = torch.tanh(self.rate * z + injection)
        return fz * torch.nan if self.poisoned else fz

    def head(self, z):
        return z[:, 20:30] * 5


class Module(LightningModule):
    """Unrolled training that moves the rate far at each step."""

    def __init__(self, sigma=0.5):
        super().__init__()
        self.network = Contraction()
        self.sigma = sigma

    def training_step(self, batch, batch_idx):
        x = batch[0].flatten(1)
        z = torch.zeros_like(x)
        for _ in range(5):
            z = self.network.cell(z, x)
        return F.cross_entropy(self.network.head(z), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def trainer(directory, *callbacks, logger=False, **settings):
    return Trainer(
        accelerator="cpu",
        default_root_dir=directory,
        logger=logger,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **settings,
    )


def rows_of(directory):
    with (directory / "convergence.tsv").open() as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def report_of(network, sigma=0.5, images=3):
    data = Digits(eval_batch_size=images)
    data.setup("validate")
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    settings = ConvergenceSettings(sigma, Anderson(max_steps=4), mismatch_steps=(1, 2), copies=20)
    return convergence_report(network.eval(), batch[0], batch[2], settings)


def columns(rows, name):
    return [float(row[name]) for row in rows]


class Epochs(Callback):
    """Records what the table said after each epoch, then removes it."""

    def __init__(self, path):
        self.path = path
        self.measured = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.measured.append(self.path.exists())
        self.path.unlink(missing_ok=True)


def test_the_table_holds_the_report_of_the_first_images(tmp_path, capsys):
    module = Module()
    trainer(tmp_path, ConvergenceHealth(**SMALL)).validate(module, Digits(), verbose=False)
    expected = report_of(module.network)
    rows = rows_of(tmp_path)
    assert list(rows[0]) == ["step", "cold", "warm", "mismatches", "audited"]
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert columns(rows, "cold") == pytest.approx(expected.cold, rel=1e-4)
    assert columns(rows, "warm") == pytest.approx(expected.warm, rel=1e-4)
    counts = [(str(count.mismatches), str(count.audited)) for count in expected.mismatches]
    assert [(row["mismatches"], row["audited"]) for row in rows] == [*counts, ("", ""), ("", "")]
    assert expected.mismatches[0].mismatches > 0

    printed = capsys.readouterr().out
    assert f"{expected.cold[3]:.2e} {expected.warm[3]:>9.2e}" in printed
    assert f"{100 * expected.mismatches[0].rate:.1f}%" in printed
    assert f"3 images, sigma = 0.5; all steps in {tmp_path / 'convergence.tsv'}" in printed


def test_no_more_images_than_the_first_batch_holds(tmp_path, capsys):
    callback = ConvergenceHealth(**SMALL | {"images": 100})
    trainer(tmp_path, callback).validate(Module(), Digits(eval_batch_size=2), verbose=False)
    assert "2 images, " in capsys.readouterr().out


def test_each_validation_overwrites_the_table(tmp_path):
    module = Module()
    trainer(tmp_path, ConvergenceHealth(**SMALL)).validate(module, Digits(), verbose=False)
    first = rows_of(tmp_path)
    trainer(tmp_path, ConvergenceHealth(**SMALL)).validate(module, Digits(), verbose=False)
    assert rows_of(tmp_path) == first
    with torch.no_grad():
        module.network.rate.fill_(0.9)
    trainer(tmp_path, ConvergenceHealth(**SMALL)).validate(module, Digits(), verbose=False)
    assert len(rows_of(tmp_path)) == 4
    assert columns(rows_of(tmp_path), "cold")[3] > columns(first, "cold")[3]


def test_sigma_is_the_module_s_and_the_seed_the_callback_s(tmp_path):
    tables = []
    for sigma, seed in ((0.5, 0), (0.25, 0), (0.5, 1)):
        callback = ConvergenceHealth(**SMALL, seed=seed)
        trainer(tmp_path, callback).validate(Module(sigma), Digits(), verbose=False)
        tables.append(columns(rows_of(tmp_path), "warm"))
    assert tables[0] == pytest.approx(report_of(Contraction(), 0.5).warm, rel=1e-4)
    assert tables[1] == pytest.approx(report_of(Contraction(), 0.25).warm, rel=1e-4)
    assert tables[2] != tables[0]


def test_networks_that_diverge_are_shown_as_infinite(tmp_path, capsys):
    module = Module()
    module.network.poisoned = True
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer(tmp_path, ConvergenceHealth(**SMALL), logger=logger).validate(module, Digits(), verbose=False)
    rows = rows_of(tmp_path)
    assert columns(rows, "cold") == columns(rows, "warm") == [math.inf] * 4
    assert [row["audited"] for row in rows] == ["0", "0", "", ""]
    printed = capsys.readouterr().out
    assert "inf" in printed
    assert "0/0  0.0% to 100.0%" in printed
    logger.finalize("success")
    scalars = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert "convergence/cold/residual_at_4" in scalars
    assert not any("mismatch" in name for name in scalars)


def test_loggers_hold_trends(tmp_path):
    tensorboard = TensorBoardLogger(tmp_path / "tensorboard", name="", version="", default_hp_metric=False)
    table = CSVLogger(tmp_path / "csv", name="", version="")
    module = Module()
    run = trainer(
        tmp_path, ConvergenceHealth(**SMALL), logger=[tensorboard, table], max_epochs=2, limit_train_batches=3
    )
    run.fit(module, Digits())
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    names = {f"convergence/{curve}/residual_at_{step}" for curve in ("cold", "warm") for step in (1, 3, 4)}
    names |= {"convergence_mismatch/after_1", "convergence_mismatch/after_2"}
    assert {name for name in events.Tags()["scalars"] if name.startswith("convergence")} == names
    expected = report_of(module.network)
    for name, value in (
        ("convergence/cold/residual_at_3", expected.cold[2]),
        ("convergence/warm/residual_at_4", expected.warm[3]),
        ("convergence_mismatch/after_2", expected.mismatches[1].rate),
    ):
        scalars = events.Scalars(name)
        assert [each.step for each in scalars] == [3, 6]
        assert scalars[-1].value == pytest.approx(value, rel=1e-4)
    assert rows_of(tmp_path / "tensorboard")  # beside the first logger's files
    assert "convergence_mismatch/after_1" in (tmp_path / "csv" / "metrics.csv").read_text()


def test_training_prints_nothing_and_leaves_modes_and_weights_alone(tmp_path, capsys):
    with_health, without = Module(), Module()
    trainer(tmp_path, ConvergenceHealth(**SMALL), max_epochs=2, limit_train_batches=2).fit(with_health, Digits())
    assert "audited" not in capsys.readouterr().out
    assert (tmp_path / "convergence.tsv").exists()
    assert with_health.network.training
    trainer(tmp_path, max_epochs=2, limit_train_batches=2).fit(without, Digits())
    assert torch.equal(with_health.network.rate, without.network.rate)


def test_epochs_between_are_left_out_and_so_is_the_sanity_check(tmp_path):
    epochs = Epochs(tmp_path / "convergence.tsv")
    callbacks = [ConvergenceHealth(**SMALL, every_n_epochs=2), epochs]
    run = trainer(tmp_path, *callbacks, max_epochs=5, limit_train_batches=1, num_sanity_val_steps=2)
    run.fit(Module(), Digits())
    assert epochs.measured == [False, True, False, True, False]


def test_validation_measures_whatever_the_epoch(tmp_path):
    trainer(tmp_path, ConvergenceHealth(**SMALL, every_n_epochs=7)).validate(Module(), Digits(), verbose=False)
    assert (tmp_path / "convergence.tsv").exists()


class Raw(Callback):
    """Remembers the weights that training left, before any average replaces them."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rate = pl_module.network.rate.detach().clone()


@pytest.mark.parametrize("first", ["health", "averaging"])
def test_averaged_weights_are_measured_whatever_the_order_of_callbacks(tmp_path, first):
    module, raw = Module(), Raw()
    callbacks = [ConvergenceHealth(**SMALL), EMAWeightAveraging(decay=0.5)]
    run = trainer(
        tmp_path, *(callbacks if first == "health" else callbacks[::-1]), raw, max_epochs=1, limit_train_batches=4
    )
    run.fit(module, Digits())  # leaves the averaged weights in the module
    averaged = report_of(module.network).cold
    assert columns(rows_of(tmp_path), "cold") == pytest.approx(averaged, rel=1e-4)
    with torch.no_grad():
        module.network.rate.copy_(raw.rate)
    assert report_of(module.network).cold != pytest.approx(averaged, rel=1e-2)


@pytest.mark.parametrize(("precision", "autocast"), [("32-true", {False}), ("bf16-mixed", {True})])
def test_the_measurement_has_the_precision_of_the_run(tmp_path, monkeypatch, precision, autocast):
    # Before it classifies anything, an engine compares logits, always without autocast.
    monkeypatch.setattr(smoothed, "checked", lambda base, samples: base)
    module = Module()
    trainer(tmp_path, ConvergenceHealth(**SMALL), precision=precision).validate(module, Digits(), verbose=False)
    assert module.network.autocast == autocast


def test_other_verbs_measure_nothing_and_need_no_deq(tmp_path):
    module = Module()
    module.network = nn.Linear(1, 1)
    trainer(tmp_path, ConvergenceHealth(**SMALL)).test(module, Digits(), verbose=False)
    assert not (tmp_path / "convergence.tsv").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("network", nn.Linear(1, 1), r"^Module.network = 'Linear': must be a DEQ"),
        ("sigma", None, r"^Module.sigma = None: must be a number"),
        ("sigma", 0.0, r"^sigma = 0.0: must be a finite number > 0"),
    ],
)
def test_modules_that_cannot_be_measured_are_refused_before_any_work(tmp_path, field, value, message):
    module = Module()
    setattr(module, field, value)
    with pytest.raises(SettingError, match=message):
        trainer(tmp_path, ConvergenceHealth(**SMALL)).validate(module, Digits(), verbose=False)
    assert module.network is value or not module.network.batches


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"images": 0}, "images"),
        ({"max_steps": 0}, "max_steps"),
        ({"max_steps": 4}, "mismatch_steps"),
        ({"copies": 0}, "copies"),
        ({"every_n_epochs": 0}, "every_n_epochs"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        ConvergenceHealth(**settings)
