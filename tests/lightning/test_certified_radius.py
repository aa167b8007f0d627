from __future__ import annotations

import copy
import dataclasses
import json
import math
import re

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import nn

from deqcert.data import Digits
from deqcert.errors import SettingError
from deqcert.lightning import CertificationCallback, CertificationProgress, CertifiedRadius, Forecast, Trainer
from deqcert.runs import read_run, read_tsv
from deqcert.smoothing import Serialized, Smoothing, Standard
from deqcert.solvers import Picard
from deqcert.statistics import AdaptiveAudit, CertificationRule, FixedAudit

STANDARD = Standard(n0=20, n=200, batch_size=64)
SERIALIZED = Serialized(n0=20, n=200, batch_size=64, proposal=Picard(max_steps=1), start="clean", audit=FixedAudit(100))
FIFTEEN = Smoothing(solver=Picard(max_steps=15))


class Brightness(LightningModule):
    """Classes 4 and 0: is the image brighter than 0.2?"""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        with torch.no_grad():
            self.network[1].weight.zero_()
            self.network[1].bias.fill_(-100.0)
            self.network[1].weight[4] = 1 / 64
            self.network[1].bias[4] = 0.0
            self.network[1].bias[0] = 0.2

    def forward(self, x):
        return self.network(x)


class Threshold(LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


def certify(
    directory, callback, module=None, sampling=STANDARD, images=6, logger=False, progress=(), smoothing=Smoothing()
):
    """Return the trainer and the votes in the ledger, sorted by index."""
    trainer = Trainer(
        accelerator="cpu",
        logger=logger,
        callbacks=[callback, *progress],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = Digits(max_examples=images)
    trainer.certify(module or Brightness(), data, smoothing, sampling, ledger_dir=str(directory))
    return trainer, read_run(directory).votes


@pytest.fixture
def threshold_module(threshold_deq):
    class TenClasses(threshold_deq):
        def head(self, z):
            return torch.cat([super().head(z), z.new_full((len(z), 8), -100.0)], dim=1)

    return Threshold(TenClasses(threshold=0.55))


def test_files_hold_the_certificates_of_the_rule(tmp_path, capsys):
    callback = CertifiedRadius(alpha=0.01, radii=[0.0, 0.25, 0.5])
    trainer, votes = certify(tmp_path, callback)
    rule = CertificationRule(0.01)
    certificates = [rule.certify(each) for each in votes]
    assert any(each.radius > 0 for each in certificates)
    assert any(each.correct for each in certificates)

    rows = read_tsv(tmp_path / "certificates.tsv")
    assert [(row.index, row.label, row.prediction, row.correct) for row in rows] == [
        (each.index, each.label, each.prediction, each.correct) for each in certificates
    ]
    for row, certificate in zip(rows, certificates, strict=True):
        assert 0 <= certificate.radius - row.radius < 1e-6
        assert row.sound

    report = json.loads((tmp_path / "certificates.json").read_text())
    for example, certificate, vote in zip(report["examples"], certificates, votes, strict=True):
        assert certificate.p_b_upper is None
        claimed = {key: value for key, value in certificate._asdict().items() if key != "p_b_upper"}
        assert {key: example[key] for key in claimed} == claimed
        assert "p_b_upper" not in example
        assert example["estimation"] == list(vote.estimation)
        assert example["residual"] is None
    expected = {"alpha": 0.01, "alpha_audit": None, "audit": "joint", "sides": "one", "alpha_b": None}
    assert report["settings"]["certificate"] == expected
    assert report["settings"]["smoothing"]["sigma"] == 0.5
    assert report["settings"]["checkpoint"] is None
    acr = sum(each.radius for each in certificates if each.correct) / len(certificates)
    assert float(callback._metrics.compute()["acr"]) == pytest.approx(acr)
    assert trainer.progress_bar_metrics["certify/acr"] == pytest.approx(acr)
    for radius in (0.0, 0.25, 0.5):
        share = sum(each.correct and each.radius >= radius for each in certificates) / len(certificates)
        assert trainer.progress_bar_metrics[f"certify_accuracy/at_{radius:g}"] == pytest.approx(share)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "\nstandard " in printed  # the classifier has no solver
    assert "30A" not in printed
    said = "6 images, sigma = 0.5, alpha = 0.01, n0 = 20, n = 200, one-sided, Standard"
    assert f"{said}; results in {tmp_path}" in printed
    assert "UNSOUND" not in printed


def test_the_published_rule_is_marked_unsound(tmp_path, capsys, threshold_module):
    _, votes = certify(tmp_path, CertifiedRadius(audit="published"), threshold_module, SERIALIZED, smoothing=FIFTEEN)
    assert any(each.audited for each in votes)
    report = json.loads((tmp_path / "certificates.json").read_text())
    assert [example["sound"] for example in report["examples"]] == [False] * 6
    assert report["settings"]["certificate"]["audit"] == "published"
    assert not any(row.sound for row in read_tsv(tmp_path / "certificates.tsv"))
    printed = capsys.readouterr().out
    assert "UNSOUND" in printed
    assert "SRS-1N-clean published" in printed


def test_the_exact_rule_counts_mismatches(tmp_path, threshold_module):
    callback = CertifiedRadius(alpha=0.01, alpha_audit=0.001, audit="exact", radii=[0.0])
    trainer, votes = certify(tmp_path, callback, threshold_module, SERIALIZED, smoothing=FIFTEEN)
    assert any(each.mismatches for each in votes)
    rule = CertificationRule(0.01, 0.001, "exact")
    report = json.loads((tmp_path / "certificates.json").read_text())
    for example, each in zip(report["examples"], votes, strict=True):
        assert (example["p_a_lower"], None) == rule.bounds(each)
        assert example["sound"] is True
    metrics, summary = trainer.progress_bar_metrics, report["summary"]
    assert metrics["certify_cost/mismatch_rate"] == pytest.approx(summary["mismatch_rate"])
    assert metrics["certify_cost/nfe_per_sample_fast"] == pytest.approx(summary["nfe_fast"]) == (220 + 15) / 220
    audited = sum(each.audited for each in votes)
    assert metrics["certify_cost/nfe_per_sample_audit"] == pytest.approx(summary["nfe_audit"])
    assert summary["nfe_audit"] == audited * 15 / (220 * len(votes))
    assert metrics["certify_cost/residual"] == pytest.approx(summary["mean_residual"])
    assert metrics["certify_cost/seconds_per_image"] == pytest.approx(summary["seconds_per_image"])


@pytest.mark.parametrize("audit", ["joint", "exact"])
def test_audited_runs_are_named_by_their_rule_and_their_sides(tmp_path, capsys, threshold_module, audit):
    sampling = dataclasses.replace(SERIALIZED, escalation=0.1)
    named = {"one": f"SRS-1N-clean {audit} ", "two": f"SRS-1N-clean {audit} two-sided "}
    for sides, name in named.items() if audit == "joint" else [("one", named["one"])]:
        callback = CertifiedRadius(audit=audit, sides=sides)
        module = copy.deepcopy(threshold_module)
        _, votes = certify(tmp_path / sides, callback, module, sampling, images=2, smoothing=FIFTEEN)
        assert f"\n{name}" in capsys.readouterr().out
        assert [each.escalations for each in votes] == [20, 20]


def test_two_sides_certify_the_runner_up_as_well(tmp_path, capsys):
    callback = CertifiedRadius(alpha=0.01, sides="two", alpha_b=0.002, radii=[0.0, 0.25])
    trainer, votes = certify(tmp_path / "two", callback)
    assert "\nstandard two-sided " in capsys.readouterr().out
    rule = CertificationRule(0.01, sides="two", alpha_b=0.002)
    certificates = [rule.certify(each) for each in votes]
    report = json.loads((tmp_path / "two" / "certificates.json").read_text())
    assert report["settings"]["certificate"] == dataclasses.asdict(rule)
    for example, certificate in zip(report["examples"], certificates, strict=True):
        assert {key: example[key] for key in certificate._asdict()} == certificate._asdict()
        assert 0 < certificate.p_b_upper <= 1 - certificate.p_a_lower
    assert read_run(tmp_path / "two").rule == rule
    assert read_run(tmp_path / "two").certificates == tuple(certificates)
    acr = sum(each.radius for each in certificates if each.correct) / len(certificates)
    assert trainer.progress_bar_metrics["certify/acr"] == pytest.approx(acr)


def test_a_single_radius(tmp_path):
    trainer, _ = certify(tmp_path, CertifiedRadius(radii=[0.5]))
    accuracies = {key for key in trainer.progress_bar_metrics if "accuracy" in key}
    assert accuracies == {"certify_accuracy/at_0.5"}


def test_other_certificates_come_from_the_same_ledger_without_new_votes(tmp_path, monkeypatch):
    certify(tmp_path, CertifiedRadius(alpha=0.001))
    strict = json.loads((tmp_path / "certificates.json").read_text())["examples"]
    monkeypatch.setattr(Standard, "group_votes", None)  # calling it would fail
    certify(tmp_path, CertifiedRadius(alpha=0.1))
    loose = json.loads((tmp_path / "certificates.json").read_text())["examples"]
    assert all(a["p_a_lower"] < b["p_a_lower"] for a, b in zip(strict, loose, strict=True))


def test_a_resumed_run_reports_all_images(tmp_path):
    certify(tmp_path, CertifiedRadius(radii=[0.0]), images=3)
    resumed, _ = certify(tmp_path, CertifiedRadius(radii=[0.0]), images=6)
    whole, _ = certify(tmp_path / "whole", CertifiedRadius(radii=[0.0]), images=6)
    for key in ("certify/acr", "certify/abstention", "certify_accuracy/at_0"):
        assert resumed.progress_bar_metrics[key] == whole.progress_bar_metrics[key]
    assert len(read_tsv(tmp_path / "certificates.tsv")) == 6


def board(tmp_path, images, callback=None, **settings):
    """The events of a run and its trainer."""
    logger = TensorBoardLogger(tmp_path, name="", version="", default_hp_metric=False)
    callback = callback or CertifiedRadius(radii=[0.0, 0.5])
    trainer, _ = certify(tmp_path / "run", callback, images=images, logger=logger, **settings)
    logger.experiment.close()
    files = sorted(tmp_path.glob("events.out.tfevents.*"))
    return EventAccumulator(str(files[-1]), size_guidance={"histograms": 0}).Reload(), trainer


def test_tensorboard_holds_curves_in_groups(tmp_path):
    events, trainer = board(tmp_path, images=6)
    results, accuracies, costs = {"acr", "abstention"}, {"at_0", "at_0.5"}, {"fast", "audit"}
    assert set(events.Tags()["scalars"]) == {
        *(f"certify/{name}" for name in results),
        *(f"certify_accuracy/{name}" for name in accuracies),
        *(f"certify_cost/nfe_per_sample_{name}" for name in costs),
        "certify_cost/seconds_per_image",
    }
    scalars = events.Scalars("certify/acr")
    assert [each.step for each in scalars] == [1, 2, 3, 4, 5, 6, 6]  # the last again, beside the settings
    assert scalars[-1].value == pytest.approx(trainer.progress_bar_metrics["certify/acr"], rel=1e-6)


def test_a_run_is_named_by_the_solver_of_its_classifier(tmp_path, capsys, threshold_module):
    certify(tmp_path, CertifiedRadius(alpha=0.01), threshold_module, images=2)
    assert "\nstandard-30A " in capsys.readouterr().out


@pytest.mark.parametrize("kind", [Standard, Serialized])
def test_a_run_whose_solves_end_at_the_step_limit_says_so(tmp_path, threshold_module, kind):
    """Residuals from zero at rate 1/2 are 1 and 1/3 after one and two steps, then 1/7."""
    solver = Picard(max_steps=2, tolerance=0.2)
    sampling = kind(n0=10, n=30, batch_size=20, **({} if kind is Standard else {"audit": FixedAudit(30)}))
    said = r"100% of the solves .* ended after 2 steps above their tolerance of 0\.2\."
    with pytest.warns(UserWarning, match=said):
        certify_by(tmp_path / "some", threshold_module, solver, sampling)
    enough = dataclasses.replace(solver, max_steps=3)
    certify_by(tmp_path / "more", threshold_module, enough, sampling)  # a warning would be an error


def certify_by(directory, module, solver, sampling):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.certify(module, Digits(max_examples=2), Smoothing(solver=solver), sampling, ledger_dir=str(directory))


def test_tensorboard_shows_radii_and_curve_while_the_run_goes_on(tmp_path):
    events, _ = board(tmp_path, images=32)
    tags = events.Tags()
    assert tags["histograms"] == ["certify/radius"]
    assert tags["images"] == ["certify/certified_accuracy"]
    assert [each.step for each in events.Images("certify/certified_accuracy")] == [16, 32]
    assert [each.step for each in events.Histograms("certify/radius")] == [16, 32]


def test_the_curve_needs_no_sixteen_images_and_knows_resumed_ones(tmp_path):
    board(tmp_path, images=3)
    events, _ = board(tmp_path, images=5)
    assert [each.step for each in events.Images("certify/certified_accuracy")] == [5]


def test_tensorboard_has_the_settings_beside_the_results(tmp_path):
    events, _ = board(tmp_path, images=3, callback=CertifiedRadius(alpha=0.01, radii=[0.25]))
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["strategy"].string_value == "standard"
    assert (settings["alpha"].number_value, settings["sampling/n"].number_value) == (0.01, 200)
    assert settings["smoothing/solver/class"].string_value == "Anderson"
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = {info.name.tag for info in HParamsPluginData.FromString(content).experiment.metric_infos}
    assert metrics >= {"certify/acr", "certify_accuracy/at_0.25", "certify_cost/nfe_per_sample_fast"}


def test_charts_of_several_curves_are_laid_out(tmp_path):
    events, _ = board(tmp_path, images=3)
    assert "custom_scalars__config__" in events.Tags()["tensors"]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha_audit": 0.5, "audit": "exact"}, "alpha_audit"),
        ({"alpha_audit": 0.0005}, "alpha_audit"),  # the joint rule shares no alpha
        ({"audit": "none"}, "audit"),
        ({"sides": "three"}, "sides"),
        ({"alpha_b": 0.0001}, "alpha_b"),
        ({"alpha_b": 0.001, "sides": "two"}, "alpha_b"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        CertifiedRadius(**settings)


@pytest.mark.parametrize("radii", [[], [-0.5], [math.nan]])
def test_bad_radii_are_refused_before_any_work(radii):
    with pytest.raises(SettingError, match="radii"):
        CertifiedRadius(radii=radii)


def test_the_progress_bar_starts_at_what_is_done_and_shows_acr_and_cost(tmp_path, capsys):
    certify(tmp_path, CertifiedRadius(radii=[0.0]), images=2)
    capsys.readouterr()
    certify(tmp_path, CertifiedRadius(radii=[0.0]), images=6, progress=[CertificationProgress()])
    shown = capsys.readouterr().err
    assert "2/6" in shown
    assert "6/6" in shown
    assert "ACR=" in shown
    assert "NFE/sample=1.0" in shown


def test_the_progress_bar_shows_the_mean_evaluations_of_the_table(tmp_path, threshold_module, capsys):
    sampling = dataclasses.replace(SERIALIZED, audit=AdaptiveAudit(radius_loss=0.3))
    # Its attributes count as its settings, and it records what it is given.
    begun = copy.deepcopy(threshold_module)
    certify(tmp_path, CertifiedRadius(radii=[0.0]), begun, sampling, images=3, smoothing=FIFTEEN)
    capsys.readouterr()
    progress = [CertificationProgress()]
    both = {"progress": progress, "smoothing": FIFTEEN}
    _, votes = certify(tmp_path, CertifiedRadius(radii=[0.0]), threshold_module, sampling, images=6, **both)
    summary = json.loads((tmp_path / "certificates.json").read_text())["summary"]
    shown = re.findall(r"NFE/sample=([0-9.]+)", capsys.readouterr().err)
    assert shown[-1] == f"{summary['nfe_total']:.1f}"
    costs = [(each.nfe_fast + each.nfe_audit) / (each.n0 + each.n) for each in votes]
    assert abs(costs[-1] - summary["nfe_total"]) > 0.1


class BarAtTheEnd(CertificationCallback):
    """Whether the progress bar has ended its line when the first callback hears of the end."""

    def __init__(self, progress):
        self.progress = progress
        self.ended = []

    def on_certify_end(self, trainer, module, votes):
        self.ended.append(self.progress._bar.disable)


def test_the_progress_bar_needs_no_other_callback_before_it(tmp_path, threshold_module, capsys):
    _, votes = certify(
        tmp_path, CertificationProgress(), threshold_module, SERIALIZED, progress=[CertifiedRadius()], smoothing=FIFTEEN
    )
    shown = re.findall(r"NFE/sample=([0-9.]+)", capsys.readouterr().err)
    evaluations = sum(each.nfe_fast + each.nfe_audit for each in votes)
    assert shown[-1] == f"{evaluations / sum(each.n0 + each.n for each in votes):.1f}"


class Order(CertificationCallback):
    """What was told, in order."""

    def __init__(self):
        self.told = []

    def on_certify_forecast(self, trainer, module, forecast):
        self.told.append(forecast)

    def on_certify_example_end(self, trainer, module, votes):
        self.told.append(votes)


@pytest.mark.parametrize("kind", [Standard, Serialized])
def test_the_cost_is_told_before_the_first_image_is_done(tmp_path, capsys, threshold_module, kind):
    order = Order()
    again = copy.deepcopy(threshold_module)  # its attributes count as its settings, and it records what it is given
    sampling = kind(n0=20, n=400, batch_size=64)
    _, votes = certify(
        tmp_path, CertifiedRadius(), threshold_module, sampling, images=5, progress=[order], smoothing=FIFTEEN
    )
    forecast, *others = order.told
    assert len(others) == len(votes) == 5
    assert (forecast.images, forecast.own, forecast.samples) == (5, 5, 420)
    first = others[0]
    fast, audit = (each / 420 for each in (first.nfe_fast, first.nfe_audit))
    assert forecast.nfe_fast == pytest.approx(fast, rel=0.2)
    assert forecast.nfe_audit == pytest.approx(audit, rel=0.5)
    assert (forecast.nfe_audit > 0) == (kind is Serialized)
    assert forecast.seconds > 0
    assert (forecast.rows, forecast.side_by_side) == (64, 1)
    assert 64 * 2 * 256 < forecast.memory < 2**20  # an image has 256 bytes, the state 4
    printed = capsys.readouterr().out
    largest = sampling.largest_radius(CertificationRule(), 0.5)
    assert f"n = 400 and alpha = 0.001 certify radii up to about {largest:.3g}" in printed
    assert str(forecast) in printed
    certify(tmp_path, CertifiedRadius(), again, sampling, images=5, progress=[order], smoothing=FIFTEEN)
    assert len(order.told) == 6  # nothing is left, so nothing is told


def test_a_forecast_reads_as_a_sentence():
    cost = {"images": 100, "own": 50, "samples": 1100, "nfe_fast": 3.1, "nfe_audit": 4.2, "seconds": 130.0}
    forecast = Forecast(**cost, rows=50, side_by_side=1, memory=300 * 2**20)
    assert str(forecast) == (
        "about 7.3 evaluations per noisy sample (3.1 + 4.2 for audit and escalation) and 2.2 min per image: "
        "8e+05 evaluations and 1.8 h for 100 images, 50 of them by this process; "
        "batches of 50 noisy samples, 300 MiB of memory besides the network"
    )
    assert "batches of 3200 noisy samples of 8 images side by side, " in str(
        forecast._replace(rows=3200, side_by_side=8)
    )


def test_a_run_at_its_step_limit_says_so_beside_its_table(tmp_path, capsys, threshold_module):
    solver = Picard(max_steps=2, tolerance=0.2)
    both = {"images": 2, "smoothing": Smoothing(solver=solver)}
    with pytest.warns(UserWarning, match=r"The mean relative residual is 0\.33\. .*convergence\.yaml"):
        certify(tmp_path / "short", CertifiedRadius(), threshold_module, STANDARD, **both)
    printed = capsys.readouterr().out
    assert "warning: Solves of the base classifier took 2.0 of at most 2 steps" in printed
    assert "configs/validate/convergence.yaml" in printed
    module = Threshold(type(threshold_module.network)(threshold=0.55))
    both["smoothing"] = Smoothing(solver=dataclasses.replace(solver, max_steps=3))  # ends at 1/7
    certify(tmp_path / "enough", CertifiedRadius(), module, STANDARD, **both)
    assert "warning" not in capsys.readouterr().out


def test_tensorboard_has_a_version_for_each_ledger(tmp_path):
    logger = TensorBoardLogger(tmp_path / "boards", name="model", default_hp_metric=False)
    certify(tmp_path / "srs", CertifiedRadius(), images=2, logger=logger)
    assert [path.name for path in (tmp_path / "boards" / "model").iterdir()] == ["certify-srs"]


def test_lightning_does_not_advertise(tmp_path, caplog):
    with caplog.at_level("INFO"):
        certify(tmp_path, CertifiedRadius(), images=1, logger=TensorBoardLogger(tmp_path))
    assert "GPU available" in caplog.text
    assert "Tip" not in caplog.text


def test_the_summary_stands_below_the_bar_and_can_be_pasted(tmp_path, capsys):
    directory = tmp_path / "my run"
    for _ in range(2):  # the second time, no image is left
        progress = CertificationProgress()
        first = BarAtTheEnd(progress)
        certify(directory, CertifiedRadius(), images=2, progress=[first, progress])
        assert first.ended == [True]
        assert f"; deqcert verify '{directory}' computes" in capsys.readouterr().out
