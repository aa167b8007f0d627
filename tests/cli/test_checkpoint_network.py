"""What a checkpoint states about its network needs no configuration, and is overruled by any."""

from __future__ import annotations

import pytest
import torch
import yaml
from command_lines import CHECKPOINT, DIGITS, QUIET, ROOT

from deqcert.checkpoints.architecture import architecture_of
from deqcert.cli import main
from deqcert.cli.arguments import with_checkpoint_network
from deqcert.models import MDEQ
from deqcert.monotone import LBEN
from deqcert.runs import read_tsv

# Whole runs pass through much code that is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

GREY = ["--model.network.init_args.mean=[0.25]", "--model.network.init_args.std=[0.5]"]
SHORT = ["--sampling.n=60", "--sampling.n0=10", "--data.max_examples=2", *QUIET]
STANDARD = ["--config", str(ROOT / "configs" / "certify" / "standard.yaml")]


@pytest.fixture
def grey(tmp_path, monkeypatch):
    """The shipped digits MDEQ with another normalisation, as convert writes it."""
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(CHECKPOINT), "--to", "grey.ckpt", "--config", str(DIGITS), *GREY]) == 0
    return tmp_path / "grey.ckpt"


def rows(directory):
    return [row._replace(seconds=None) for row in read_tsv(directory / "certificates.tsv")]


def test_a_checkpoint_is_certified_attacked_and_validated_without_a_configuration_of_the_model(grey, tmp_path, capsys):
    run = [*STANDARD, "--ckpt_path=grey.ckpt", *SHORT]
    data = "--data=deqcert.data.Digits"
    assert main(["certify", data, *run, "--ledger_dir=without"]) == 0
    assert main(["certify", "--config", str(DIGITS), *GREY, *run, "--ledger_dir=with"]) == 0
    assert rows(tmp_path / "without") == rows(tmp_path / "with")
    saved = yaml.safe_load((tmp_path / "without" / "certify.yaml").read_text())["model"]["network"]
    assert saved["class_path"] == "deqcert.models.mdeq.MDEQ"
    assert saved["init_args"]["mean"] == [0.25]
    assert main(["attack", "without", "--data.max_examples=1", "--steps=1", "--samples=1", "--n=50"]) == 0
    assert main(["validate", data, "--ckpt_path=grey.ckpt", "--trainer.limit_val_batches=1", *QUIET]) == 0
    capsys.readouterr()

    # A configuration overrules it, and is then refused.
    assert main(["certify", "--config", str(DIGITS), *run, "--ledger_dir=other"]) == 2
    assert "model.network.init_args.mean = [0.305], must be [0.25]" in capsys.readouterr().err
    # What it leaves open is that of the checkpoint.
    partly = "model: {network: {class_path: deqcert.models.MDEQ, init_args: {expansion: 3}}}\n"
    (tmp_path / "partly.yaml").write_text(partly)
    assert main(["certify", "--config", "partly.yaml", data, *run, "--ledger_dir=partly"]) == 0
    assert rows(tmp_path / "partly") == rows(tmp_path / "with")


@pytest.fixture
def stating(tmp_path):
    """Writes a checkpoint that states an architecture."""

    def write(network, settings):
        stated = {"network": network, "settings": settings}
        torch.save({"state_dict": {"w": torch.ones(1)}, "architecture": stated}, tmp_path / "c.ckpt")
        return str(tmp_path / "c.ckpt")

    return write


@pytest.mark.parametrize("form", [lambda path: [f"--ckpt_path={path}"], lambda path: ["--ckpt_path", path]])
def test_the_network_stands_before_all_that_is_given(stating, form):
    path = stating("MDEQ", {"image_size": 64})
    verb, option, config, *given = with_checkpoint_network(["certify", "-c", "c.yaml", "--ckpt_path=none", *form(path)])
    assert (verb, option) == ("certify", "--config")
    network = {"class_path": f"{MDEQ.__module__}.MDEQ", "init_args": {"image_size": 64}}
    assert yaml.safe_load(config) == {"model": {"network": network}}
    assert given == ["-c", "c.yaml", "--ckpt_path=none", *form(path)]


@pytest.mark.parametrize("network", ["subprocess.Popen", "deqcert.models.MDEQ", "DEQ", "nn.Linear", ""])
def test_a_checkpoint_cannot_name_what_is_imported(stating, network):
    args = ["certify", f"--ckpt_path={stating(network, {'args': 'ls'})}"]
    assert with_checkpoint_network(args) == args


def test_a_setting_cannot_name_what_is_imported(stating):
    path = stating("MDEQ", {"solver": "subprocess.Popen", "class_path": "os.system", "start": "mean"})
    config = yaml.safe_load(with_checkpoint_network(["certify", f"--ckpt_path={path}"])[2])
    assert config["model"]["network"]["init_args"] == {"start": "mean"}


@pytest.mark.parametrize(
    "args",
    [
        ["fit", "--ckpt_path=PATH"],
        ["certify"],
        ["certify", "--ckpt_path"],
        ["certify", "--ckpt_path=missing.ckpt"],
        ["certify", "--ckpt_path=PATH", "--ckpt_path=none"],
    ],
)
def test_other_command_lines_stay_as_they_are(stating, args):
    args = [argument.replace("PATH", stating("MDEQ", {"image_size": 64})) for argument in args]
    assert with_checkpoint_network(args) == args


def test_a_network_without_a_bound_survives_its_checkpoint(tmp_path, monkeypatch):
    """JSON has no infinity, YAML has."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = LBEN(units=6, gamma=float("inf"))
    weights = {f"network.{name}": weight for name, weight in network.state_dict().items()}
    torch.save({"state_dict": weights, "architecture": architecture_of(network)}, "free.ckpt")
    command = ["certify", "--data=deqcert.data.Digits", "--certification=Lipschitz", "--ckpt_path=free.ckpt"]
    assert main([*command, "--data.max_examples=2", "--ledger_dir=run", *QUIET]) == 0
    saved = yaml.safe_load((tmp_path / "run" / "certify.yaml").read_text())["model"]["network"]
    assert saved["init_args"]["gamma"] == float("inf")
    assert main(["verify", "run"]) == 0
