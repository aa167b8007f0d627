"""A finished run follows from its ledger; whoever changes anything in it is found out."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import pytest
from certification_runs import ShippedModule, certify
from sampling_runs import CHECKPOINT

from deqcert.lightning import CertifiedRadius
from deqcert.cli import main
from deqcert.errors import DataError, LedgerError
from deqcert.runs import read_ledger, verify_run, votes_digest
from deqcert.runs.lines import START, seal, unseal
from deqcert.runs.results import sealed
from deqcert.runs.verify import _unknown_classes
from deqcert.smoothing import Serialized, Smoothing, Standard
from deqcert.smoothing.identity import describe
from deqcert.solvers import Picard
from deqcert.statistics import AdaptiveAudit, CertificationRule, FixedAudit, InputSpecific, TargetRadius

SERIALIZED = Serialized(
    n0=10, n=60, batch_size=20, proposal=Picard(max_steps=1), audit=AdaptiveAudit(radius_loss=0.3, alpha=0.05)
)
SMOOTHING = Smoothing(solver=Picard(max_steps=6))
THREE_STEPS = Smoothing(solver=Picard(max_steps=3))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished")
    certify(ShippedModule(), directory, SMOOTHING, SERIALIZED, images=4, callbacks=[CertifiedRadius(alpha=0.05)])
    return directory


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def found(run):
    """What verification finds, or the error it ends with."""
    try:
        return verify_run(run).findings
    except (LedgerError, DataError) as error:
        return [str(error)]


def reseal_report(run, change):
    """Change the report as somebody would who knows how it is sealed."""
    path = run / "certificates.json"
    report = json.loads(path.read_bytes())
    del report["sha256"]
    change(report)
    body = json.dumps(report).encode()[:-1]
    path.write_bytes(sealed(body))


def reseal_ledger(run, change):
    path = run / "votes.rank0.jsonl"
    content, digest, sealed = b"", START, START
    for line in path.read_bytes().splitlines():
        record, digest = unseal(line, digest)
        change(record)
        new, sealed = seal(record, sealed)
        content += new
    path.write_bytes(content)


def test_an_untouched_run_follows_from_its_votes(finished):
    verification = verify_run(finished)
    assert verification.findings == []
    assert verification.images == 4
    votes = list(read_ledger(finished).votes.values())
    assert verification.votes_sha256 == votes_digest(votes)
    report = json.loads((finished / "certificates.json").read_text())
    assert report["settings"]["classes"] == list("0123456789")
    certificates = report["examples"]
    assert any(example["radius"] > 0 for example in certificates)
    assert any(example["mismatches"] > 0 for example in certificates)


@pytest.mark.parametrize("name", ["certificates.json", "certificates.tsv", "votes.rank0.jsonl"])
def test_every_changed_number_is_found(run, name):
    path = run / name
    content = path.read_bytes()
    numbers = list(re.finditer(rb"\d+", content))
    assert len(numbers) > 20
    for number in numbers:
        place = number.end() - 1
        changed = bytearray(content)
        changed[place] = ord("7") if content[place] != ord("7") else ord("2")
        path.write_bytes(changed)
        assert found(run), content[place - 30 : place + 10]


@pytest.mark.parametrize("name", ["certificates.tsv", "curve.png"])
def test_a_missing_file_is_found(run, name):
    (run / name).unlink()
    assert any(name in finding for finding in found(run))


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda r: r["examples"][1].update(radius=0.9), "image .*: radius = 0.9, but it is"),
        (lambda r: r["examples"][1].update(radius=r["examples"][1]["radius"] + 1e-15), "image .*: radius"),
        (lambda r: r["examples"][1].update(sound=1), "sound"),
        (lambda r: r["examples"][1].update(extra=1), "extra"),
        (lambda r: r["examples"][1].update(index="a"), "not an integer"),
        (lambda r: r["examples"].append(r["examples"][0]), "comes twice"),
        (lambda r: r["examples"].pop(), "has votes but no certificate"),
        (lambda r: r["examples"].append({**r["examples"][0], "index": 9999}), "image 9999: has a certificate but no"),
        (lambda r: r["summary"].update(average_certified_radius=0.7), "summary: average_certified_radius"),
        (lambda r: r["summary"].update(radii=[]), "cannot be used"),
        (lambda r: r["summary"].pop("radii"), "cannot be used"),
        (lambda r: r["settings"]["certificate"].update(alpha=0.01), "radius"),
        (lambda r: r["settings"]["certificate"].update(alpha=7), "cannot be used"),
        (lambda r: r["settings"]["certificate"].update(nonsense=7), "cannot be used"),
        (lambda r: r["settings"].update(certificate=None), "cannot be used"),
        (lambda r: r["settings"]["smoothing"].update(sigma=1.0), "smoothing.sigma = 1.0 there, 0.5 here"),
        (lambda r: r["settings"]["classifier"].update(digest="0"), "classifier.digest"),
        (lambda r: r["settings"].update(votes_sha256="0"), "votes_sha256"),
        (lambda r: r["settings"].update(files={"../secret": "0"}), "is not the file that the run has written"),
        (lambda r: r["settings"].update(files={"/etc/passwd": "0"}), "is not the file that the run has written"),
        (lambda r: r["settings"].update(files=3), "files must give"),
    ],
)
def test_a_resealed_report_does_not_follow(run, change, finding):
    reseal_report(run, change)
    assert re.search(finding, "\n".join(found(run)))


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda r: r.update(mismatches=0) if r.get("mismatches") else None, "votes_sha256"),
        (lambda r: r.update(audited=r["audited"] - 1) if r.get("audited") else None, "its votes ask for"),
        (lambda r: r.update(sigma=1.0) if "sigma" in r else None, "image .*: sigma = 1.0, but the run has 0.5"),
        (lambda r: r.update(noise_error=0.1) if "noise_error" in r else None, "noise_error = 0.1, but the run has 0.0"),
        (lambda r: r.update(n=61) if r.get("n") == 60 else None, "n = 61, but the run has 60"),
        (lambda r: r.update(audited=None, mismatches=0, nfe_audit=0) if "index" in r else None, "audited = None"),
        (lambda r: r["identity"]["smoothing"].update(sigma=1.0) if "identity" in r else None, "smoothing.sigma"),
        (lambda r: r["identity"].pop("sampling") if "identity" in r else None, "cannot be used"),
        (lambda r: r.update(identity=3) if "identity" in r else None, "identity must be an object"),
    ],
)
def test_a_resealed_ledger_does_not_fit_the_report(run, change, finding):
    reseal_ledger(run, change)
    assert re.search(finding, "\n".join(found(run)))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000, b'{"a": NaN}'])
def test_a_report_that_is_none_is_refused(run, content):
    (run / "certificates.json").write_bytes(content)
    with pytest.raises(DataError, match=r"certificates\.json"):
        verify_run(run)


def test_another_version_of_scipy_may_round_otherwise_but_not_more(run):
    def older(report, change):
        report["settings"]["scipy"] = "0.1"
        report["examples"][1]["radius"] *= 1 + change

    reseal_report(run, lambda report: older(report, 1e-12))
    assert found(run) == []
    reseal_report(run, lambda report: older(report, 1e-6))
    assert found(run)


def test_quantised_noise_costs_its_bound(tmp_path):
    smoothing = dataclasses.replace(SMOOTHING, noise="quantised")
    votes = certify(ShippedModule(), tmp_path, smoothing, SERIALIZED, images=3, callbacks=[CertifiedRadius(alpha=0.05)])
    assert verify_run(tmp_path).findings == []
    examples = json.loads((tmp_path / "certificates.json").read_text())["examples"]
    bounds = [CertificationRule(alpha=0.05).p_a_lower(vote._replace(noise_error=0.0)) for vote in votes]
    assert {(vote.sigma, vote.noise_error) for vote in votes} == {(0.5, 64 * 2.0**-48)}
    assert [example["p_a_lower"] for example in examples] == [max(0.0, bound - 64 * 2.0**-48) for bound in bounds]
    assert max(bounds) > 0.5


@pytest.fixture(scope="module")
def finished_by_stopping(tmp_path_factory):
    """Looks at its votes every 20 noisy samples, up to 190."""
    directory = tmp_path_factory.mktemp("stopped")
    rule = TargetRadius(0.5, alpha=0.05)
    sampling = Standard(n0=10, n=190, batch_size=20, stopping=rule)
    certify(ShippedModule(), directory, THREE_STEPS, sampling, images=6, callbacks=[CertifiedRadius(alpha=0.05)])
    return directory


def test_a_run_that_stops_by_its_votes_follows_from_them(finished_by_stopping):
    assert verify_run(finished_by_stopping).findings == []
    votes = list(read_ledger(finished_by_stopping).votes.values())
    assert len({vote.n for vote in votes}) >= 2
    assert all(vote.anytime for vote in votes)
    examples = json.loads((finished_by_stopping / "certificates.json").read_text())["examples"]
    assert any(example["radius"] > 0 for example in examples)


def with_votes(record, n, n_a):
    estimation = [0] * len(record["estimation"])
    estimation[record["selection"].index(max(record["selection"]))] = n_a
    record.update(n=n, estimation=estimation)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda r: r.update(anytime=False), "anytime = False, but the run has stopping = {"),
        (lambda r: with_votes(r, 70, 50), "n = 70, but the run looks at its votes every 20 noisy samples, up to 190"),
        (lambda r: with_votes(r, 200, 150), "n = 200, but the run looks at its votes every 20 noisy samples, up to 190"),
        (lambda r: with_votes(r, 20, 15), "n = 20, but its votes ask for more"),
        (lambda r: with_votes(r, 190, 0), "n = 190, but whatever its first 180 votes were, they were enough"),
        (lambda r: with_votes(r, 60, 3), "n = 60, but whatever its first 40 votes were, they were enough"),
    ],
)
def test_votes_that_were_not_stopped_by_the_rule_are_found(finished_by_stopping, tmp_path, change, finding):
    run = shutil.copytree(finished_by_stopping, tmp_path / "run")
    reseal_ledger(run, lambda record: change(record) if "index" in record else None)
    assert re.search(finding, "\n".join(found(run)))


def test_votes_of_a_run_without_a_rule_are_not_stopped(finished_by_stopping, tmp_path):
    run = shutil.copytree(finished_by_stopping, tmp_path / "run")
    reseal_ledger(run, lambda r: r["identity"]["sampling"].update(stopping=None) if "identity" in r else None)
    assert "anytime = True, but the run has stopping = None" in "\n".join(found(run))


def test_sizes_that_the_selection_did_not_ask_for_are_found(tmp_path):
    rule = InputSpecific(0.1, alpha=0.05)
    sampling = Standard(n0=40, n=190, batch_size=20, stopping=rule)
    certify(ShippedModule(), tmp_path, dataclasses.replace(THREE_STEPS, sigma=0.8), sampling, images=6, callbacks=[CertifiedRadius(alpha=0.05)])
    votes = list(read_ledger(tmp_path).votes.values())
    assert found(tmp_path) == []
    assert len({vote.n for vote in votes}) >= 2
    assert not any(vote.anytime for vote in votes)
    reseal_ledger(tmp_path, lambda r: with_votes(r, 180 if r["n"] < 180 else 20, 20) if "index" in r else None)
    assert re.search("n = (20|180), but its selection asks for", "\n".join(found(tmp_path)))
    reseal_ledger(tmp_path, lambda r: r.update(anytime=True) if "index" in r else None)
    assert "anytime = True, but the run has stopping = {" in "\n".join(found(tmp_path))


def test_votes_of_a_fixed_audit_are_not_stopped(run):
    reseal_ledger(run, lambda r: r.update(anytime=True) if r.get("audited") else None)
    assert "anytime = True, but the run has stopping = None" in "\n".join(found(run))


@pytest.mark.parametrize(("field", "name"), [("audit", "Serialized"), ("stopping", "Standard"), ("audit", "Own")])
def test_a_name_in_the_wrong_place_is_unknown(field, name):
    sampling = {"class": "Standard", "audit": None, "stopping": None} | {field: {"class": name}}
    assert _unknown_classes(sampling) == [f"{name} (sampling.{field})"]


class OwnStopping(TargetRadius):
    """A user's stopping rule: what it looks at is known to nobody else."""


class OwnAudit(FixedAudit):
    """A user's audit."""


class OwnStrategy(Standard):
    """A user's strategy."""


SHORT = {"n0": 10, "n": 60, "batch_size": 20}


@pytest.mark.parametrize(
    ("sampling", "name", "setting"),
    [
        (Standard(**SHORT, stopping=OwnStopping(0.5, alpha=0.05)), "OwnStopping", "sampling.stopping"),
        (Serialized(**SHORT, audit=OwnAudit(samples=20)), "OwnAudit", "sampling.audit"),
        (OwnStrategy(**SHORT), "OwnStrategy", "sampling"),
    ],
)
def test_a_rule_of_the_user_is_not_verified(tmp_path, capsys, sampling, name, setting):
    certify(ShippedModule(), tmp_path, THREE_STEPS, sampling, images=1, callbacks=[CertifiedRadius(alpha=0.05)])
    # The votes might have been stopped by their outcome and say that they were not.
    reseal_ledger(tmp_path, lambda record: record.update(anytime=False) if "index" in record else None)
    certify(ShippedModule(), tmp_path, THREE_STEPS, sampling, images=1, callbacks=[CertifiedRadius(alpha=0.05)])
    verification = verify_run(tmp_path)
    assert verification.findings == []
    assert verification.unknown == [f"{__name__}.{name} ({setting})"]
    capsys.readouterr()
    assert main(["verify", str(tmp_path)]) == 3
    out = capsys.readouterr().out
    assert f"not verified: unknown rule {__name__}.{name} ({setting})" in out
    assert "follow from their votes" not in out
    (tmp_path / "certificates.tsv").unlink()
    assert main(["verify", str(tmp_path)]) == 1


@pytest.mark.parametrize("sampling", [Serialized(**SHORT), Standard(**SHORT)])
def test_the_strategies_of_deqcert_are_known(sampling):
    assert _unknown_classes(describe(sampling)) == []


def test_the_command_line(run, tmp_path, capsys):
    assert main(["verify", str(run)]) == 0
    assert "4 images follow from their votes; votes sha256" in capsys.readouterr().out
    assert main(["verify", str(run), "--ckpt_path", str(CHECKPOINT)]) == 1  # the run had no checkpoint
    assert "does NOT follow" in capsys.readouterr().out
    assert main(["verify", str(run), str(tmp_path / "nothing")]) == 2
    assert "holds no ledger" in capsys.readouterr().err
    assert main(["verify", str(run), "--ckpt_path", str(tmp_path / "none")]) == 1
    with pytest.raises(SystemExit):
        main(["verify"])


def test_a_run_that_is_not_finished_says_so(run, capsys):
    (run / "certificates.json").unlink()
    assert main(["verify", str(run)]) == 2
    error = capsys.readouterr().err
    assert f"{run}: is not finished (4 images have votes); the command that began it resumes it" in error
    assert "Errno" not in error
