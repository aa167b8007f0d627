"""``certify`` without noise: ledger, resuming, verification and reports."""

from __future__ import annotations

import json
import re

import pytest
import torch
from certification_runs import ledger_votes, records, trainer
from lightning.pytorch import LightningModule

from deqcert.cli import main
from deqcert.data import Digits
from deqcert.deterministic import IntervalBounds, Lipschitz
from deqcert.errors import LedgerError, SettingError
from deqcert.lightning import CertifiedRadius
from deqcert.monotone import LBEN, MonDEQ
from deqcert.report import Report, read_runs
from deqcert.runs import read_run, verify_run
from deqcert.runs.lines import START, seal
from deqcert.runs.results import sealed
from deqcert.smoothing import Smoothing, Standard
from deqcert.solvers import Anderson

SOLVER = Anderson(max_steps=200, tolerance=1e-3, ridge=0.0)


class Module(LightningModule):
    def __init__(self, kind=LBEN, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.network = kind(units=10)

    def predict_step(self, batch, batch_idx):
        return self.network(batch[0])


def certify(directory, images=6, devices=1, certification=Lipschitz(), module=None, callbacks=None, **settings):  # noqa: B008
    data = Digits(max_examples=images)
    run = trainer(devices, callbacks=[CertifiedRadius()] if callbacks is None else callbacks)
    settings |= {"certification": certification, "ledger_dir": str(directory)}
    return run.certify(module or Module(), data, **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished")
    certify(directory)
    return directory


def test_certificates_are_those_of_the_margins(finished):
    data = Digits(max_examples=6)
    data.setup("predict")
    measure = Lipschitz().of(Module().network)
    by_hand = {index: measure(image[None])[0].radius for image, _, index in data.certification_set()}
    run = read_run(finished)
    assert {each.index: each.radius for each in run.certificates} == pytest.approx(by_hand, rel=1e-6)
    assert min(by_hand.values()) > 0
    assert run.deterministic
    assert all(each.sound for each in run.certificates)
    assert run.document["settings"]["certificate"] == {}
    assert not {"smoothing", "sampling", "seed"} & run.identity.keys()


def test_a_finished_run_follows_from_its_ledger(finished, capsys):
    found = verify_run(finished)
    assert (found.images, found.findings, found.unknown) == (6, [], [])
    assert main(["verify", str(finished)]) == 0
    assert "6 images follow" in capsys.readouterr().out


def test_processes_share_the_images(tmp_path, finished):
    certify(tmp_path, devices=2, certification=Lipschitz(batch_size=100))
    assert sorted(map(len, records(tmp_path).values())) == [3, 3]
    theirs, ours = ledger_votes(finished), ledger_votes(tmp_path)
    assert theirs.keys() == ours.keys()
    for index, margins in ours.items():
        assert margins.radius == pytest.approx(theirs[index].radius, rel=1e-6)


def test_a_run_resumes_and_another_one_is_refused(tmp_path):
    certify(tmp_path, images=2)
    before = ledger_votes(tmp_path)
    certify(tmp_path, images=6)
    after = ledger_votes(tmp_path)
    assert len(after) == 6
    assert before.items() <= after.items()
    for other in ({"module": Module(seed=1)}, {"certification": Lipschitz(batch_size=3)}, {"module": Module(MonDEQ)}):
        with pytest.raises(LedgerError, match="another run"):
            certify(tmp_path, **other)
    with pytest.raises(LedgerError, match="another run"):
        certify(tmp_path, certification=None, smoothing=Smoothing(), sampling=Standard(n0=10, n=50))


@pytest.mark.parametrize(
    "settings",
    [
        {"smoothing": Smoothing(sigma=0.25)},
        {"sampling": Standard()},
        {"callbacks": [CertifiedRadius(alpha=0.01)]},
        {"callbacks": [CertifiedRadius(sides="two")]},
        {"certification": IntervalBounds()},
    ],
)
def test_what_has_no_effect_or_no_proof_is_refused_before_any_work(tmp_path, settings):
    with pytest.raises(SettingError):
        certify(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def rewrite(directory, target, change):
    """Copy a run with changed margins as somebody would who knows how ledgers are sealed, and certify them anew."""
    target.mkdir()
    digest = START
    with open(target / "votes.rank0.jsonl", "wb") as ledger:
        for number, line in enumerate((directory / "votes.rank0.jsonl").read_bytes().splitlines()):
            record = json.loads(line)
            del record["sha256"]
            if number > 0:
                change(record)
            sealed_line, digest = seal(record, digest)
            ledger.write(sealed_line)
    for path in directory.iterdir():
        if path.suffix != ".jsonl":
            (target / path.name).write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: record.update(gaps=[2 * gap for gap in record["gaps"]]), "radius ="),
        (lambda record: record.update(errors=[0.0] * 10), "radius =|errors ="),
        (lambda record: record.update(constants=[each / 3 for each in record["constants"]]), "radius ="),
        (lambda record: record.update(label=(record["label"] + 1) % 10), "label ="),
        (lambda record: record.update(constants=[], epsilon=0.5), "epsilon = 0.5, but the run has at most None"),
    ],
)
def test_changed_margins_are_found(finished, tmp_path, change, said):
    rewrite(finished, tmp_path / "run", change)
    findings = verify_run(tmp_path / "run").findings
    assert any(re.search(said, finding) for finding in findings)


def test_constants_of_one_image_cannot_be_its_own(tmp_path, finished):
    certify(tmp_path / "many", images=30)

    def change(record):
        if record["index"] == min(ledger_votes(tmp_path / "many")):
            record["constants"] = [each / 3 for each in record["constants"]]

    rewrite(tmp_path / "many", tmp_path / "run", change)
    path = tmp_path / "run" / "certificates.json"
    assert any("constants are not those of other images" in each for each in verify_run(path.parent).findings)


def test_changed_radii_are_found(finished, tmp_path):
    rewrite(finished, tmp_path / "run", lambda record: None)
    path = tmp_path / "run" / "certificates.json"
    document = json.loads(path.read_bytes())
    del document["sha256"]
    document["examples"][0]["radius"] *= 2
    path.write_bytes(sealed(json.dumps(document).encode()[:-1]))
    assert any("radius" in each for each in verify_run(tmp_path / "run").findings)


def test_reports_say_deterministic_and_lose_nothing_in_their_lower_bounds(finished, tmp_path, capsys):
    (run,) = read_runs(finished, "lben", alpha=0.1, audits=["exact"], sides="two")
    assert (run.name, run.alpha, run.sigma) == ("lben deterministic", 0.0, None)
    report = Report([run], [0.0, 0.01])
    assert "deterministic" in report.text()
    accuracy, lower = (section.table.rows[0].cells[:2] for section in report.sections[:2])
    assert accuracy == lower
    written = {path.name for path in report.write(tmp_path)}
    assert "curves.png" in written
    assert not {"tradeoff.png", "probabilities.png"} & written


def test_reports_put_smoothed_and_deterministic_runs_side_by_side(finished, tmp_path):
    smoothed = tmp_path / "smoothed"
    trainer(callbacks=[CertifiedRadius()]).certify(
        Module(), Digits(max_examples=6), Smoothing(0.1, solver=SOLVER), Standard(n0=10, n=50), ledger_dir=str(smoothed)
    )
    runs = [*read_runs(finished, "without"), *read_runs(smoothed, "with")]
    report = Report(runs, [0.0, 0.1])
    assert {path.name for path in report.write(tmp_path / "report")} >= {
        "curves.png",
        "tradeoff.png",
        "probabilities.png",
    }


def test_an_unfinished_run_can_be_reported_on(finished, tmp_path):
    (tmp_path / "votes.rank0.jsonl").write_bytes((finished / "votes.rank0.jsonl").read_bytes())
    with pytest.warns(UserWarning, match="not finished"):
        (run,) = read_runs(tmp_path, "run")
    assert len(run.examples) == 6
