import pytest
import torch
from command_lines import CHECKPOINT, DIGITS, QUIET, ROOT

from deqcert.cli import main
from deqcert.runs import read_tsv

# Whole runs pass through much code that is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def anchor(*arguments, start="mean", target="anchored.ckpt"):
    command = ["anchor", str(CHECKPOINT), "--to", target, "--start", start, "--config", str(DIGITS)]
    return main([*command, "--trainer.accelerator=cpu", *arguments])


@pytest.mark.parametrize("start", ["mean", "learned"])
def test_a_start_is_computed_and_certified_from(start, capsys):
    assert anchor("--steps", "3", start=start) == 0
    out = capsys.readouterr().out
    assert f"{start} start at sigma = 0.5: from 192 noisy images" in out
    advised = [word for word in out.split() if word.startswith("--")]
    weights = torch.load("anchored.ckpt", weights_only=True)
    shipped = torch.load(CHECKPOINT, weights_only=True)
    assert weights["hyper_parameters"]["sigma"] == 0.5
    assert weights["architecture"]["settings"]["start"] == start
    assert all(torch.equal(weights["state_dict"][name], tensor) for name, tensor in shipped["state_dict"].items())
    config = ["--config", str(DIGITS), "--config", str(ROOT / "configs" / "certify" / "anchored_3a.yaml")]
    advised.append("--sampling.n=60")
    run = ["--ckpt_path=anchored.ckpt", "--data.max_examples=2", "--ledger_dir=run", *QUIET]
    assert main(["certify", *config, *advised, *run]) == 0
    assert len(read_tsv("run/certificates.tsv")) == 2
    assert f"anchored-3A-{start}" in capsys.readouterr().out
    assert main(["verify", "run"]) == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--steps", "0"], "steps = 0"),
        (["--max_steps", "0"], "max_steps"),
        (["--model.sigma=0"], "sigma = 0"),
        (["--model.network.init_args.final_channels=32"], "is of another architecture"),
    ],
)
def test_bad_commands_are_refused(capsys, tmp_path, arguments, complaint):
    assert anchor(*arguments) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "anchored.ckpt").exists()


def test_an_existing_target_is_kept(tmp_path, capsys):
    (tmp_path / "old.ckpt").write_text("precious")
    assert anchor(target="old.ckpt") == 2
    assert (tmp_path / "old.ckpt").read_text() == "precious"


def test_a_directory_and_the_source_itself_are_no_targets(tmp_path, capsys):
    assert anchor(target=str(tmp_path)) == 2
    assert "is a directory" in capsys.readouterr().err
    assert anchor("--overwrite", target=str(CHECKPOINT)) == 2
    assert "is SOURCE itself" in capsys.readouterr().err
