"""``deqcert attack`` on short runs of the shipped digits checkpoint, in this process."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from command_lines import CHECKPOINT, QUIET, ROOT, certify_command

from deqcert.cli import main
from deqcert.data import Digits
from deqcert.monotone import LBEN
from deqcert.runs import Ledger, read_ledger

# Whole runs pass through much code that is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

LBEN_CONFIG = """
model:
  network:
    class_path: deqcert.monotone.LBEN
    init_args: {units: 12, alpha: 0.2}
data: deqcert.data.Digits
"""
QUICK = ["--steps=2", "--samples=4", "--n=200", "--factors", "0.9", "3", "--radii", "0", "0.25"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("attack") / "run"
    assert main(certify_command(directory, images=3)) == 0
    return directory


@pytest.fixture
def copied(run, tmp_path):
    """A run whose ledger may be replaced by votes of our own."""

    def copied(change=lambda votes: votes):
        original = read_ledger(run)
        directory = tmp_path / "forged"
        forged = Ledger(directory, original.identity)
        with forged.claim(), forged.open(0):
            for index, votes in sorted(original.votes.items()):
                forged.append(change(votes) if index == 1 else votes)
        shutil.copy(run / "certify.yaml", directory)
        return directory

    return copied


def another_class(votes):
    """Votes that are all for a class which the image is not of."""
    wrong = (votes.label + 1) % 10
    selection, estimation = ([0] * 10 for _ in range(2))
    selection[wrong], estimation[wrong] = votes.n0, votes.n
    return votes._replace(selection=tuple(selection), estimation=tuple(estimation), audited=votes.n, mismatches=0)


def test_a_run_is_attacked_end_to_end(run, capsys):
    before = {path.name for path in run.iterdir()}
    assert main(["attack", str(run), "--data.max_examples=2", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "certified% empirical%" in out
    assert "0.9 R" in out
    assert "no violation found in" in out
    digest = json.loads((run / "certificates.json").read_text())["settings"]["votes_sha256"]
    assert f"{run}: 3 images follow from their votes; votes sha256 {digest}" in out
    attacked = (
        f"attacked: the votes in the ledger (sha256 {digest}), certified again at alpha = 0.001, audit rule joint"
    )
    assert attacked in out
    assert {path.name for path in run.iterdir()} == before | {"attack.json"}
    document = json.loads((run / "attack.json").read_text(), parse_constant=pytest.fail)
    assert document["settings"]["samples"] == 4
    assert document["settings"]["votes_sha256"] == digest
    assert document["run"] == read_ledger(run).identity
    certificates = json.loads((run / "certificates.json").read_text())["examples"][:2]
    attacked = [each for each in certificates if each["prediction"] >= 0]
    assert attacked, "an image without a certificate would make this test empty"
    assert document["summary"]["images"] == 2
    assert document["summary"]["attacks"] == len(document["attacks"]) == 4 * len(attacked)
    for attack in document["attacks"]:
        assert 0 <= attack["norm"] <= attack["epsilon"]
        (certificate,) = [each for each in attacked if each["index"] == attack["index"]]
        assert attack["radius"] == certificate["radius"]
        assert attack["n"] == 200

    first = (run / "attack.json").read_bytes()
    assert main(["attack", str(run), "--data.max_examples=2", *QUICK]) == 0
    assert (run / "attack.json").read_bytes() == first
    assert main(["verify", str(run)]) == 0


@pytest.mark.parametrize(
    ("name", "old", "new", "code"),
    [
        ("certificates.tsv", "\n", "0\n", 1),
        ("certificates.json", '"alpha": 0.001', '"alpha": 0.002', 2),
        ("certify.yaml", "alpha: 0.001", "alpha: 0.01", 1),
    ],
)
def test_files_that_do_not_follow_from_the_votes_are_not_attacked(run, tmp_path, capsys, name, old, new, code):
    edited = shutil.copytree(run, tmp_path / "edited")
    (edited / "attack.json").unlink(missing_ok=True)
    content = (edited / name).read_text()
    assert old in content
    (edited / name).write_text(content.replace(old, new))
    assert main(["attack", str(edited), "--data.max_examples=1", *QUICK]) == code
    captured = capsys.readouterr()
    assert name in captured.out + captured.err
    assert "attacked: " not in captured.out
    assert not (edited / "attack.json").exists()


def test_another_alpha_than_that_of_the_run_is_stated(run, capsys):
    assert main(["attack", str(run), "--data.max_examples=1", *QUICK, "--certificate.alpha=0.05"]) == 0
    assert "certified again at alpha = 0.05, audit rule joint" in capsys.readouterr().out


def test_a_false_certificate_is_found_loudly(copied, capsys):
    directory = copied(another_class)
    assert main(["attack", str(directory), *QUICK]) == 1
    out = capsys.readouterr().out
    assert "has no certificates.json to verify; the votes that its ledger has so far are attacked" in out
    assert "VIOLATION OF A SOUND CERTIFICATE: IMAGE 1, CLASS" in out
    assert "FALSE ONES ARE TO BE EXPECTED" in out
    refuted = {
        each["index"] for each in json.loads((directory / "attack.json").read_text())["attacks"] if each["violation"]
    }
    assert refuted == {1}


def test_a_false_certificate_without_a_proof_is_marked_and_does_not_alarm(copied, capsys):
    assert main(["attack", str(copied(another_class)), *QUICK, "--certificate.audit=published"]) == 0
    out = capsys.readouterr().out
    assert "UNSOUND" in out
    assert "refutes an unsound certificate: image 1" in out


def test_other_weights_than_the_certified_ones_are_refused(run, tmp_path, capsys):
    checkpoint = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)
    name = next(iter(checkpoint["state_dict"]))
    checkpoint["state_dict"][name] = checkpoint["state_dict"][name] + 1e-6
    torch.save(checkpoint, tmp_path / "other.ckpt")
    assert main(["attack", str(run), *QUICK, f"--ckpt_path={tmp_path / 'other.ckpt'}"]) == 2
    error = capsys.readouterr().err
    assert "was certified with another model" in error
    assert "classifier.digest" in error


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("--data.split=train", "data."),
        ("--smoothing.sigma=0.25", "smoothing.sigma"),
        ("--trainer.precision=bf16-mixed", "precision"),
        ("--data.skip=2", "has votes but is not among"),
        ("--ckpt_path=missing.ckpt", "ckpt_path"),
        ("--data.max_examples=0", "data.max_examples = 0"),
        ("--images=2", "images = '2': is called --data.max_examples"),
        ("--alpha_attack=0", "alpha_attack = 0.0"),
        ("--steps=0", "steps = 0"),
    ],
)
def test_what_would_prove_nothing_is_refused(run, capsys, override, complaint):
    assert main(["attack", str(run), *QUICK, override]) == 2
    assert complaint in capsys.readouterr().err


def test_the_batches_may_be_others(run):
    assert main(["attack", str(run), "--data.max_examples=1", *QUICK, "--sampling.execution.rows=16"]) == 0


@pytest.mark.parametrize("missing", ["run", "certify.yaml"])
def test_what_is_missing_is_named(copied, tmp_path, capsys, missing):
    directory = copied()
    (directory / "certify.yaml").unlink()
    directory = directory if missing == "certify.yaml" else tmp_path / "nowhere"
    assert main(["attack", str(directory)]) == 2
    assert (
        "certify.yaml: must be a file" if missing == "certify.yaml" else "holds no ledger"
    ) in capsys.readouterr().err


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """A run without noise."""
    folder = tmp_path_factory.mktemp("exact")
    torch.manual_seed(0)
    network = LBEN(units=12, alpha=0.2)
    with torch.no_grad():  # so that no class has all images
        images = torch.stack([image for image, *_ in Digits().load_split("test")]) / 255
        network.decoder.bias -= network(images).mean(dim=0)
    torch.save(network.state_dict(), folder / "weights.pt")
    (folder / "lben.yaml").write_text(LBEN_CONFIG)
    settings = [f"--config={folder / 'lben.yaml'}", f"--config={ROOT / 'configs' / 'certify' / 'lipschitz.yaml'}"]
    more = [f"--ckpt_path={folder / 'weights.pt'}", "--data.max_examples=6", f"--ledger_dir={folder / 'run'}"]
    assert main(["certify", *settings, *more, *QUIET]) == 0
    return folder / "run"


def test_a_run_without_noise_is_attacked_exactly(exact, capsys):
    assert main(["attack", str(exact), "--steps=4", "--factors", "0.99", "8", "--radii", "0", "0.25"]) == 0
    out = capsys.readouterr().out
    assert "l2 radius" in out
    assert "attacked: the margins in the ledger" in out
    assert "(Lipschitz LBEN), 6 of them certified and attacked; PGD of 4 steps in l2, judged exactly" in out
    assert "no violation found in 24 attacks on sound certificates" in out
    document = json.loads((exact / "attack.json").read_text(), parse_constant=pytest.fail)
    assert document["summary"]["norm"] == "l2"
    assert document["summary"]["false_certificates_expected"] == 0
    assert document["settings"]["certificate"] == {}
    found = document["attacks"]
    assert all(each["n"] == 1 and each["p_a_upper"] in (0, 1) for each in found)
    assert not any(each["success"] for each in found if each["inside"])
    assert any(each["success"] for each in found if each["factor"] == 8)


def test_a_forged_certificate_without_noise_is_found_loudly(exact, tmp_path, capsys):
    original = read_ledger(exact)
    forged = Ledger(tmp_path / "forged", original.identity)
    with forged.claim(), forged.open(0):
        for _, margins in sorted(original.votes.items()):
            forged.append(margins._replace(constants=tuple(each / 9 for each in margins.constants)))
    shutil.copy(exact / "certify.yaml", tmp_path / "forged")
    assert main(["attack", str(tmp_path / "forged"), "--steps=4", "--factors", "0.9", "--radii", "0"]) == 1
    out = capsys.readouterr().out
    assert "VIOLATION OF A SOUND CERTIFICATE: IMAGE" in out
    assert "BEYOND SOLVER AND ROUNDING ERROR" in out
    assert "THEY HOLD WITH CERTAINTY" in out


@pytest.mark.parametrize("setting", ["--samples=4", "--n=5", "--alpha_attack=0.1"])
def test_settings_of_noise_are_refused_without_it(exact, capsys, setting):
    assert main(["attack", str(exact), setting]) == 2
    assert "must be left out: a certificate by Lipschitz is without noise" in capsys.readouterr().err


def test_another_certification_than_that_of_the_run_is_refused(exact, capsys):
    assert main(["attack", str(exact), "--certification.solver.tolerance=1e-3"]) == 2
    assert "certification" in capsys.readouterr().err
