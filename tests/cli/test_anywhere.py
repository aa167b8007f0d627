"""What works from any working directory: what deqcert names, plain weights, classes that lie there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import CHECKPOINT, QUIET, ROOT
from PIL import Image
from sklearn.datasets import load_digits

from deqcert.checkpoints import network_weights, read_checkpoint
from deqcert.cli import main
from deqcert.files import file_digest
from deqcert.runs import read_run, read_tsv

# Whole runs pass through much code that is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

NAMED = "deqcert:digits_mdeq_tiny"
DIGITS = ["--config", "deqcert:digits/mdeq_tiny"]
SHORT = ["--sampling.n=60", "--sampling.n0=10", "--data.max_examples=2", *QUIET]
FEW = ["--n=40", "--n0=10", "--max_steps=4", "--seed=5", "--certify", "--json"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())


def certify(checkpoint, ledger):
    command = ["certify", *SHORT, *DIGITS, "-cdeqcert:certify/standard", f"--ckpt_path={checkpoint}"]
    assert main([*command, f"--ledger_dir={ledger}"]) == 0


@pytest.fixture
def refused(capsys):
    """Runs a command line that must be refused; returns the error."""

    def refused(command):
        capsys.readouterr()
        assert main(command) == 2
        return capsys.readouterr().err

    return refused


def rows(directory):
    return [row._replace(seconds=None) for row in read_tsv(Path(directory, "certificates.tsv"))]


def test_a_run_is_the_same_however_its_checkpoint_is_named():
    certify(NAMED, "named")
    certify(CHECKPOINT, "path")
    torch.save(network_weights(read_checkpoint(CHECKPOINT)["state_dict"]), "plain.pt")
    certify("plain.pt", "plain")
    named, path, plain = (read_run(name) for name in ("named", "path", "plain"))
    assert rows("named") == rows("path") == rows("plain")
    assert named.identity == path.identity == plain.identity
    settings = json.loads(Path("named", "certificates.json").read_text())["settings"]
    assert settings["checkpoint"] == NAMED
    assert settings["checkpoint_sha256"] == file_digest(CHECKPOINT)
    before = rows("named")
    certify(CHECKPOINT, "named")  # resumes, with nothing left to do
    assert rows("named") == before
    assert main(["verify", "named", f"--ckpt_path={NAMED}"]) == 0
    assert main(["verify", "plain", "--ckpt_path=deqcert:cifar10_mdeq_small_cpu"]) == 1
    assert main(["attack", "named", "--data.max_examples=1", "--steps=1", "--samples=1", "--n=50"]) == 0


def test_the_shipped_run_is_independent_of_the_working_directory():
    assert main(["certify", *DIGITS, "--config", "deqcert:digits/certify", *SHORT]) == 0
    assert len(rows("runs/digits_srs_3a")) == 2


def test_plain_weights_need_a_sigma_that_is_stated(refused):
    torch.save(network_weights(read_checkpoint(NAMED)["state_dict"]), "plain.pt")
    command = ["certify", *SHORT, *DIGITS, "--ckpt_path=plain.pt", "--ledger_dir=run"]
    assert "smoothing.sigma = None: must be given: plain.pt" in refused(command)
    assert main([*command, "--smoothing.sigma=0.5"]) == 0
    Path("model.yaml").write_text((ROOT / "configs/digits/mdeq_tiny.yaml").read_text().replace("  sigma: 0.5\n", ""))
    command = ["validate", "--config=model.yaml", "--ckpt_path=plain.pt", "--trainer.limit_val_batches=1", *QUIET]
    assert "model.sigma = None: must be given: plain.pt" in refused(command)
    assert main([*command, "--model.sigma=0.5"]) == 0
    assert "holds weights only and cannot be resumed" in refused(["fit", *DIGITS, "--ckpt_path=plain.pt", *QUIET])


@pytest.fixture
def predict(capsys):
    """Classifies a zero; returns what was found."""
    Image.fromarray((load_digits().images[0] * 15.9375).round().astype(np.uint8)).save("zero.png")

    def predict(*arguments):
        capsys.readouterr()
        assert main(["predict", "zero.png", *FEW, *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return predict


def test_predict_takes_plain_weights_with_a_configuration(predict, refused):
    expected = predict(f"--ckpt_path={NAMED}")
    assert (expected["prediction"], expected["sigma"]) == (0, 0.5)
    weights = read_checkpoint(NAMED)["state_dict"]
    torch.save(weights, "with.pt")
    torch.save(network_weights(weights), "without.pt")
    assert main(["convert", NAMED, "--to", "w.safetensors"]) == 0
    assert predict("--ckpt_path=with.pt", *DIGITS) == expected
    assert predict("--ckpt_path=without.pt", *DIGITS) == expected
    assert predict("--ckpt_path=w.safetensors") == expected
    assert predict("--ckpt_path=with.pt", *DIGITS, "--sigma=0.25")["sigma"] == 0.25
    assert predict("--ckpt_path=with.pt", "--model.sigma=0.25", *DIGITS)["sigma"] == 0.25
    assert predict(f"--ckpt_path={NAMED}", "--model.sigma=0.25", *DIGITS) == expected  # what the checkpoint states
    assert "--config must name one" in refused(["predict", "zero.png", "--ckpt_path=with.pt"])


GLUE = """
from deqcert.models import MDEQ

class MyDEQ(MDEQ):
    pass
"""
COMMAND = "import sys; from deqcert.cli import main; sys.exit(main())"


@pytest.mark.parametrize("safe", [False, True])
def test_the_installed_command_finds_a_class_in_the_working_directory(tmp_path, safe):
    """The command is a script elsewhere, whose folder Python has on its path, not the working directory."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "deqcert").write_text(COMMAND)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "glue.py").write_text(GLUE)
    config = (ROOT / "configs/digits/mdeq_tiny.yaml").read_text().replace("deqcert.models.MDEQ", "glue.MyDEQ")
    (tmp_path / "here" / "mine.yaml").write_text(config)
    torch.save(read_checkpoint(NAMED)["state_dict"], tmp_path / "here" / "plain.pt")
    command = ["certify", "--config=mine.yaml", *SHORT, "--smoothing.sigma=0.5"]
    command += ["--ckpt_path=plain.pt", "--ledger_dir=run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"PYTHONSAFEPATH": "1"} if safe else {})
    script = [sys.executable, str(tmp_path / "bin" / "deqcert"), *command]
    result = subprocess.run(script, cwd=tmp_path / "here", env=environment, capture_output=True, text=True, check=False)
    if safe and sys.version_info >= (3, 11):
        assert result.returncode == 2
        assert "glue" in result.stderr
    else:
        assert result.returncode == 0, result.stderr
        assert len(rows(tmp_path / "here" / "run")) == 2


def test_a_verb_that_needs_no_class_of_the_user_does_not_look_in_the_working_directory(tmp_path):
    Path("tempfile.py").write_text("raise SystemExit('run')")
    code = f"import sys; sys.path.remove(''); sys.argv = ['deqcert', 'verify', '--help']; {COMMAND}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "usage: deqcert verify" in result.stdout
