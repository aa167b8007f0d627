"""A finished run follows from its ledger; whoever changes anything in it is found out."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from importlib.metadata import version

import pytest
from certification_runs import ShippedModule, certify
from sampling_runs import CHECKPOINT

from deqcert.cli import main
from deqcert.errors import DataError, LedgerError
from deqcert.lightning import CertifiedRadius
from deqcert.runs import read_ledger, read_run, verify, verify_run, votes_digest
from deqcert.runs.lines import START, seal, unseal
from deqcert.runs.results import sealed
from deqcert.runs.verify import _unknown_classes
from deqcert.smoothing import Serialized, Smoothing, Standard
from deqcert.smoothing.identity import describe
from deqcert.solvers import Picard
from deqcert.statistics import AdaptiveAudit, CertificationRule, FixedAudit, GroupSequential

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


def test_versions_are_not_read_again_for_each_image(run, monkeypatch):
    """Each time takes longer than to certify an image."""
    asked = []
    monkeypatch.setattr(verify, "version", lambda name: asked.append(name) or version(name))
    assert verify_run(run).findings == []
    assert len(asked) < len(read_run(run).votes)


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
    bounds = [CertificationRule(alpha=0.05).bounds(vote._replace(noise_error=0.0))[0] for vote in votes]
    assert {(vote.sigma, vote.noise_error) for vote in votes} == {(0.5, 64 * 2.0**-48)}
    assert [example["p_a_lower"] for example in examples] == [max(0.0, bound - 64 * 2.0**-48) for bound in bounds]
    assert max(bounds) > 0.5


@pytest.fixture(scope="module")
def finished_by_stopping(tmp_path_factory):
    """Looks at its votes at 40, 100 and 190 noisy samples."""
    directory = tmp_path_factory.mktemp("stopped")
    rule = GroupSequential(0.1, looks=(30, 100, 190), shares=(0.3, 0.3, 0.4), alpha=0.05)
    sampling = Standard(n0=10, n=190, batch_size=20, stopping=rule)
    certify(ShippedModule(), directory, THREE_STEPS, sampling, images=6, callbacks=[CertifiedRadius(alpha=0.05)])
    return directory


def test_a_run_that_stops_by_its_votes_follows_from_them(finished_by_stopping):
    assert verify_run(finished_by_stopping).findings == []
    votes = list(read_ledger(finished_by_stopping).votes.values())
    assert len({vote.n for vote in votes}) >= 2
    assert {(vote.n, vote.anytime, vote.alpha_share) for vote in votes} <= set(STOPS)
    examples = json.loads((finished_by_stopping / "certificates.json").read_text())["examples"]
    assert any(example["radius"] > 0 for example in examples)


STOPS = [(40, True, 0.3), (100, True, 0.3), (190, True, 0.4)]


def with_votes(record, n, n_a, **changes):
    estimation = [0] * len(record["estimation"])
    estimation[record["selection"].index(max(record["selection"]))] = n_a
    share = {stop: share for stop, _, share in STOPS}.get(n, 0.4)
    record.update({"n": n, "estimation": estimation, "alpha_share": share} | changes)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda r: r.update(anytime=False), "alpha_share = "),  # votes that could not stop have all of alpha
        (lambda r: r.update(anytime=False, alpha_share=1), "alpha_share = 1, but that of its look is 0.[34]"),
        (lambda r: r.update(alpha_share=1.0), "alpha_share = 1.0, but that of its look is 0.[34]"),
        (lambda r: r.update(alpha_share=0.35), "alpha_share = 0.35, but that of its look is 0.[34]"),
        (lambda r: with_votes(r, 70, 50), "n = 70, but the run looks at its votes at 40, 100, 190"),
        (lambda r: with_votes(r, 30, 30), "n = 30, but the run looks at its votes at 40, 100, 190"),
        (lambda r: with_votes(r, 200, 150), "n = 200, but the run looks at its votes at 40, 100, 190"),
        (lambda r: with_votes(r, 40, 30), "n = 40, but its votes ask for more"),
        (lambda r: with_votes(r, 190, 0), "n = 190, but whatever its first 40 votes were, they were enough"),
        (lambda r: with_votes(r, 190, 60), "n = 190, but whatever its first 100 votes were, they were enough"),
        (lambda r: with_votes(r, 100, 3), "n = 100, but whatever its first 40 votes were, they were enough"),
    ],
)
def test_votes_that_were_not_stopped_by_the_rule_are_found(finished_by_stopping, tmp_path, change, finding):
    run = shutil.copytree(finished_by_stopping, tmp_path / "run")
    reseal_ledger(run, lambda record: change(record) if "index" in record else None)
    assert re.search(finding, "\n".join(found(run)))


def test_votes_of_a_stopping_rule_that_is_gone_are_refused(finished_by_stopping, tmp_path):
    run = shutil.copytree(finished_by_stopping, tmp_path / "run")
    reseal_ledger(run, lambda record: record.pop("alpha_share", None))
    assert re.search("stopping rule that this version of deqcert does not know", "\n".join(found(run)))


@pytest.mark.parametrize(
    ("field", "value"), [("looks", [40, 100, 180]), ("shares", [0.3, 0.3, 0.3]), ("looks", [100, 40, 190])]
)
def test_looks_and_shares_that_nobody_can_have_had_are_found(finished_by_stopping, tmp_path, field, value):
    run = shutil.copytree(finished_by_stopping, tmp_path / "run")
    change = {field: value}
    reseal_ledger(run, lambda r: r["identity"]["sampling"]["stopping"].update(change) if "identity" in r else None)
    reseal_report(run, lambda r: r["settings"]["sampling"]["stopping"].update(change))
    assert re.search("settings: cannot be used", "\n".join(found(run)))


def test_votes_of_a_run_without_a_rule_are_not_stopped(finished_by_stopping, tmp_path):
    run = shutil.copytree(finished_by_stopping, tmp_path / "run")
    reseal_ledger(run, lambda r: r["identity"]["sampling"].update(stopping=None) if "identity" in r else None)
    assert "anytime = True, but the run has stopping = None" in "\n".join(found(run))


def test_audited_votes_are_not_stopped(run):
    reseal_ledger(run, lambda r: r.update(anytime=True, alpha_share=1.0) if r.get("audited") else None)
    assert "anytime = True, but the run has stopping = None" in "\n".join(found(run))


@pytest.fixture(scope="module")
def finished_with_escalation(tmp_path_factory):
    """Two sides: 12 of 60 samples escalated, the audit by the joint rule."""
    directory = tmp_path_factory.mktemp("escalated")
    sampling = dataclasses.replace(SERIALIZED, escalation=0.2, audit=AdaptiveAudit(radius_loss=0.3))
    callback = CertifiedRadius(alpha=0.05, sides="two", alpha_b=0.01)
    certify(ShippedModule(), directory, SMOOTHING, sampling, images=4, callbacks=[callback])
    return directory


def test_a_run_with_escalation_and_two_sides_follows_from_its_votes(finished_with_escalation):
    assert verify_run(finished_with_escalation).findings == []
    run = read_run(finished_with_escalation)
    assert [vote.escalations for vote in run.votes] == [12] * 4
    assert run.identity["sampling"]["escalation"] == 0.2
    own = {"alpha": 0.05, "alpha_audit": None, "audit": "joint", "sides": "two", "alpha_b": 0.01}
    assert run.settings["certificate"] == own
    for vote, certificate in zip(run.votes, run.certificates, strict=True):
        example = run.examples[vote.index]
        assert (example["p_a_lower"], example["p_b_upper"]) == CertificationRule(**own).bounds(vote)
        assert example["p_b_upper"] == certificate.p_b_upper is not None
        assert (example["escalations"], example["escalated"]) == (12, list(vote.escalated))
        aim = AdaptiveAudit(radius_loss=0.3, alpha=0.05, rule="joint")
        assert sum(vote.audited_as) == aim.size(vote, "two")
    assert any(certificate.radius > 0 for certificate in run.certificates)
    assert any(example["p_b_upper"] < 1 - example["p_a_lower"] for example in run.examples.values())


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda r: r.update(escalations=13), "escalated_from = .*: expected at least 13"),
        (lambda r: r.update(escalations=0, escalated=[], escalated_from=[]), "escalations = 0, but the run escalates 12"),
        (lambda r: r.update(escalated=[0] * 9 + [13]), "escalated = .*: expected at most 12"),
        (lambda r: r.update(escalated_from=[0] * 9 + [13]), "escalated_from = .*: expected at most"),
        (lambda r: r.update(audited_as=[], mistaken=[]), "audited_as = .*, but the run has sides = 'two'"),
        (lambda r: r.update(audited=r["audited"] - 1, mismatches=0), "audited = .*: expected those of class A"),
        (lambda r: r.update(audited=0, mismatches=0, audited_as=[0] * 10, mistaken=[0] * 10), "audited = 0, but its votes ask for"),
        (lambda r: r.update(mismatches=0, escalated=r["escalated"][::-1]), "image .*: p_a_lower = .*, but it is"),
    ],
)
def test_escalations_that_were_tampered_with_are_found(finished_with_escalation, tmp_path, change, finding):
    run = shutil.copytree(finished_with_escalation, tmp_path / "run")
    reseal_ledger(run, lambda record: change(record) if record.get("audited") else None)
    assert re.search(finding, "\n".join(found(run)))


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda r: r["examples"][0].update(p_b_upper=0.001), "p_b_upper = 0.001, but it is"),
        (lambda r: r["examples"][0].update(p_b_upper=None), "p_b_upper = None, but it is"),
        (lambda r: r["examples"][0].pop("p_b_upper"), "p_b_upper = None, but it is"),
        (lambda r: r["settings"]["certificate"].update(sides="one", alpha_b=None), "p_b_upper = .*, but it is None"),
        (lambda r: r["settings"]["certificate"].update(alpha_b=0.02), "p_a_lower = .*, but it is"),
        (lambda r: r["settings"]["certificate"].update(alpha_b=0.05), "cannot be used"),
        (lambda r: r["settings"]["certificate"].update(audit="exact"), "cannot be used"),
    ],
)
def test_a_resealed_report_of_two_sides_does_not_follow(finished_with_escalation, tmp_path, change, finding):
    run = shutil.copytree(finished_with_escalation, tmp_path / "run")
    reseal_report(run, change)
    assert re.search(finding, "\n".join(found(run)))


@pytest.mark.parametrize("rule", ["joint", "exact", "binomial"])
def test_audits_have_the_size_that_the_rule_of_the_certificates_asks_for(tmp_path, rule):
    sampling = dataclasses.replace(SERIALIZED, audit=AdaptiveAudit(radius_loss=0.3))
    certify(ShippedModule(), tmp_path, SMOOTHING, sampling, 4, callbacks=[CertifiedRadius(alpha=0.05, audit=rule)])
    assert verify_run(tmp_path).findings == []
    aim, votes = ("joint" if rule == "joint" else "exact"), read_run(tmp_path).votes
    assert read_run(tmp_path).identity["sampling"]["audit"]["rule"] == aim
    assert [vote.audited for vote in votes] == [AdaptiveAudit(0.3, alpha=0.05, rule=aim).size(vote) for vote in votes]
    other = {"joint": "exact", "exact": "joint"}[aim]
    assert [vote.audited for vote in votes] != [AdaptiveAudit(0.3, alpha=0.05, rule=other).size(vote) for vote in votes]


def as_before(record):
    """Turn an identity into that of a run from before there were escalation and another rule than the exact one."""
    sampling = record["identity"]["sampling"] if "identity" in record else record.get("sampling")
    if sampling is not None:
        del sampling["escalation"], sampling["audit"]["rule"]


def make_older(run):
    reseal_ledger(run, as_before)

    def change(report):
        as_before(report["settings"])
        del report["settings"]["certificate"]["sides"], report["settings"]["certificate"]["alpha_b"]

    reseal_report(run, change)


def test_a_run_from_before_there_was_another_rule_keeps_its_meaning(tmp_path):
    sampling = dataclasses.replace(SERIALIZED, audit=AdaptiveAudit(radius_loss=0.3))
    certify(ShippedModule(), tmp_path, SMOOTHING, sampling, 4, callbacks=[CertifiedRadius(alpha=0.05, audit="exact")])
    certificates = read_run(tmp_path).certificates
    assert not any("p_b_upper" in example for example in read_run(tmp_path).examples.values())
    make_older(tmp_path)
    assert verify_run(tmp_path) == verify_run(tmp_path)._replace(findings=[], unknown=[])
    assert read_run(tmp_path).certificates == certificates
    assert read_run(tmp_path).rule == CertificationRule(0.05, None, "exact")
    # Its audits were those of the exact rule, and no others pass for them.
    reseal_ledger(tmp_path, lambda r: r.update(audited=r["audited"] - 1, mismatches=0) if r.get("audited") else None)
    assert re.search("audited = .*, but its votes ask for", "\n".join(found(tmp_path)))


@pytest.mark.parametrize(("field", "name"), [("audit", "Serialized"), ("stopping", "Standard"), ("audit", "Own")])
def test_a_name_in_the_wrong_place_is_unknown(field, name):
    sampling = {"class": "Standard", "audit": None, "stopping": None} | {field: {"class": name}}
    assert _unknown_classes(sampling) == [f"{name} (sampling.{field})"]


class OwnStopping(GroupSequential):
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
    fixed = {"anytime": False, "alpha_share": 1.0}
    reseal_ledger(tmp_path, lambda record: record.update(fixed) if record.get("anytime") else None)
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
