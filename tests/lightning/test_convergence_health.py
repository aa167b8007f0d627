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
from deqcert.lightning.convergence_health import residual_curve
from deqcert.models import DEQ
from deqcert.seeding import Purpose, mixed_seed
from deqcert.smoothing import Serialized, SmoothedClassifier, SolvedClassifier, Stream, smoothed
from deqcert.solvers import Anderson, Picard
from deqcert.statistics import FixedAudit

SMALL = {"images": 3, "max_steps": 4, "mismatch_steps": (1, 2), "noisy_samples": 20}


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


def measurement_of(network, sigma=0.5, images=3, seed=0):
    """What the table must hold: geometric means of residuals, and audits of the first images."""
    data = Digits(eval_batch_size=images)
    data.setup("validate")
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    g = SmoothedClassifier(SolvedClassifier(network.eval(), Anderson(max_steps=4)), sigma)
    streams = [Stream(mixed_seed(1, seed), index) for index in batch[2].tolist()]
    curves = {"cold": [], "warm": []}
    for image, stream in zip(batch[0], streams, strict=True):
        previous, current = (
            next(g.noisy(image, stream, purpose, 16, 16)) for purpose in (Purpose.SELECTION, Purpose.ESTIMATION)
        )
        warm = network.solve(previous, Anderson(max_steps=4))[1].value
        for name, start in (("cold", None), ("warm", warm)):
            for steps in range(1, 5):
                solver = Anderson(max_steps=steps)
                z = network.solve(current, solver, "zero" if start is None else start)[1].value
                fz = network.cell(z, network.inject(current))
                curves[name].append((fz - z).norm(dim=1) / fz.norm(dim=1))
    means = {
        name: torch.stack(curve).view(3, 4, -1).log().mean(dim=(0, 2)).exp().tolist() for name, curve in curves.items()
    }
    counts = []
    for steps in (1, 2):
        audit, proposal = FixedAudit(20), Anderson(max_steps=steps)
        sampling = Serialized(n0=16, n=20, batch_size=16, proposal=proposal, audit=audit)
        votes = [sampling.votes(g, image, stream) for image, stream in zip(batch[0], streams, strict=True)]
        counts.append((sum(each.mismatches for each in votes), sum(each.audited for each in votes)))
    return means | {"counts": counts}


def columns(rows, name):
    return [float(row[name]) for row in rows]


@torch.no_grad()
def test_the_table_holds_residuals_and_mismatches_of_the_first_images(tmp_path, capsys):
    module = Module()
    trainer(tmp_path, ConvergenceHealth(**SMALL)).validate(module, Digits(), verbose=False)
    expected = measurement_of(module.network)
    rows = rows_of(tmp_path)
    assert list(rows[0]) == ["step", "cold", "warm", "mismatches", "audited"]
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert columns(rows, "cold") == pytest.approx(expected["cold"], rel=1e-3)
    assert columns(rows, "warm") == pytest.approx(expected["warm"], rel=1e-3)
    counts = [tuple(map(str, count)) for count in expected["counts"]]
    assert [(row["mismatches"], row["audited"]) for row in rows] == [*counts, ("", ""), ("", "")]
    assert expected["counts"][0][0] > 0
    printed = capsys.readouterr().out
    assert all(f"{step}".ljust(14) + rows[step - 1]["cold"] in printed for step in (1, 2, 3, 4))
    assert str(tmp_path / "convergence.tsv") in printed


def noisy(count=6):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("start", [None, torch.full((6, 64), 0.3)], ids=["cold", "warm"])
def test_the_curve_holds_the_residuals_of_what_k_steps_return(start):
    network, x = Contraction().eval(), noisy()
    curve = residual_curve(network, x, 5, start)
    assert curve.shape == (5, 6)
    for steps, residual in enumerate(curve, start=1):
        value = network.solve(x, Anderson(max_steps=steps), "zero" if start is None else start)[1].value
        fz = network.cell(value, network.inject(x))
        torch.testing.assert_close(residual, (fz - value).norm(dim=1) / fz.norm(dim=1), rtol=1e-2, atol=1e-6)


@torch.no_grad()
def test_residuals_of_zero_and_of_rows_that_are_not_finite():
    network, x = Contraction().eval(), noisy(3)
    x[0], x[1] = 0, torch.nan
    curve = residual_curve(network, x, 3)
    assert curve[:, 0].tolist() == [0.0] * 3  # F(0) = 0 is a fixed point
    assert curve[:, 1].tolist() == [math.inf] * 3
    torch.testing.assert_close(curve[:, 2:], residual_curve(network, x[2:], 3), rtol=1e-3, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 7])
def test_the_noise_is_never_that_of_a_certification(seed):
    assert ConvergenceHealth(seed=seed).stream_seed > 2**32  # the seeds that people give are small


def test_no_more_images_than_the_first_batch_holds(tmp_path):
    callback = ConvergenceHealth(**SMALL | {"images": 100})
    trainer(tmp_path, callback).validate(Module(), Digits(eval_batch_size=2), verbose=False)
    assert 0 < max(int(row["audited"] or 0) for row in rows_of(tmp_path)) <= 2 * 20


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
    assert tables[1] != tables[0] != tables[2]


def test_networks_that_diverge_are_shown_as_infinite(tmp_path, capsys):
    module = Module()
    module.network.poisoned = True
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer(tmp_path, ConvergenceHealth(**SMALL), logger=logger).validate(module, Digits(), verbose=False)
    rows = rows_of(tmp_path)
    assert columns(rows, "cold") == columns(rows, "warm") == [math.inf] * 4
    assert [row["audited"] for row in rows] == ["0", "0", "", ""]
    assert "inf" in capsys.readouterr().out
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
    rows = rows_of(tmp_path / "tensorboard")  # beside the first logger's files
    for name, value in (
        ("convergence/cold/residual_at_3", float(rows[2]["cold"])),
        ("convergence/warm/residual_at_4", float(rows[3]["warm"])),
        ("convergence_mismatch/after_2", int(rows[1]["mismatches"]) / int(rows[1]["audited"])),
    ):
        scalars = events.Scalars(name)
        assert [each.step for each in scalars] == [3, 6]
        assert scalars[-1].value == pytest.approx(value, rel=1e-4)
    assert "convergence_mismatch/after_1" in (tmp_path / "csv" / "metrics.csv").read_text()


def test_training_prints_nothing_and_leaves_modes_and_weights_alone(tmp_path, capsys):
    with_health, without = Module(), Module()
    trainer(tmp_path, ConvergenceHealth(**SMALL), max_epochs=2, limit_train_batches=2).fit(with_health, Digits())
    assert "audited" not in capsys.readouterr().out
    assert (tmp_path / "convergence.tsv").exists()
    assert with_health.network.training
    trainer(tmp_path, max_epochs=2, limit_train_batches=2).fit(without, Digits())
    assert torch.equal(with_health.network.rate, without.network.rate)


def test_the_sanity_check_measures_nothing(tmp_path):
    callback = ConvergenceHealth(**SMALL)
    trainer(tmp_path, callback, max_epochs=1, limit_train_batches=0, num_sanity_val_steps=2).fit(Module(), Digits())
    assert not (tmp_path / "convergence.tsv").exists()


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
    with torch.no_grad():
        averaged = measurement_of(module.network)["cold"]
        assert columns(rows_of(tmp_path), "cold") == pytest.approx(averaged, rel=1e-3)
        module.network.rate.copy_(raw.rate)
        assert measurement_of(module.network)["cold"] != pytest.approx(averaged, rel=1e-2)


@pytest.mark.parametrize(("precision", "autocast"), [("32-true", {False}), ("bf16-mixed", {True})])
def test_the_measurement_has_the_precision_of_the_run(tmp_path, monkeypatch, precision, autocast):
    # Before it classifies anything, an engine compares logits, always without autocast.
    monkeypatch.setattr(smoothed, "checked", lambda base, samples, sigma: base)
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
        ("network", nn.Linear(1, 1), r"^model.network = 'Linear': must be a DEQ"),
        ("sigma", None, r"^sigma = None: must be a finite number"),
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
        ({"noisy_samples": 0}, "noisy_samples"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        ConvergenceHealth(**settings)
