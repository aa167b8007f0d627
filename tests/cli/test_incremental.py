"""A run that stores predictions, and the certification of a changed network with them, from the command line."""

from __future__ import annotations

import pytest
import torch
from command_lines import CHECKPOINT, certify_command

from deqcert.cli import main
from deqcert.runs import read_run

pytestmark = pytest.mark.filterwarnings("ignore")  # jsonargparse and lightning warn of each other


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "old"
    options = ["--sampling.batch_size=50", "--sampling.store_predictions=true"]
    assert main(certify_command(directory, *options, config="standard")) == 0
    return directory


@pytest.fixture
def changed(tmp_path):
    """The shipped network, its weights rounded to bfloat16."""
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    weights = checkpoint["state_dict"]
    checkpoint["state_dict"] = {
        name: tensor.bfloat16().to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    return tmp_path / "changed.ckpt"


def command(directory, old, checkpoint, *more):
    settings = [f"--ckpt_path={checkpoint}", f"--sampling.previous={old}", "--sampling.batch_size=50"]
    return certify_command(directory, *settings, *more, config="incremental")


def test_a_changed_network_is_certified_at_a_share_of_the_cost(old, changed, tmp_path, capsys):
    anew, new = tmp_path / "anew", tmp_path / "new"
    options = [f"--ckpt_path={changed}", "--sampling.batch_size=50"]
    assert main(certify_command(anew, *options, config="standard")) == 0
    assert main(command(new, old, changed)) == 0
    capsys.readouterr()
    assert main(["verify", str(new), "--ckpt_path", str(changed)]) == 0
    assert "12 images follow from their votes" in capsys.readouterr().out
    evaluations = [sum(votes.nfe_fast + votes.nfe_audit for votes in read_run(each).votes) for each in (new, anew)]
    assert evaluations[0] < evaluations[1]
    for votes, right in zip(read_run(new).votes, read_run(anew).votes, strict=True):
        assert votes.selection == right.selection
        assert votes.known(votes.selected) + votes.population - votes.mismatches >= right.n_a  # those not audited
    assert main(["report", str(new), str(anew), "--radii", "0"]) == 0
    out = capsys.readouterr().out
    assert "Incremental(escalation=1, audit=AdaptiveAudit(" in out
    assert main(command(new, old, changed)) == 0  # resumes: nothing is left to do
    assert main(command(new, old, changed, "--sampling.escalation=0")) == 2
    assert "sampling.escalation = 1.0 there, 0.0 here" in capsys.readouterr().err


def test_without_a_run_there_is_nothing_to_do(old, changed, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([each for each in command(tmp_path / "new", old, changed) if "previous" not in each])
    assert "previous" in capsys.readouterr().err
    assert main(command(tmp_path / "new", tmp_path / "nothing", changed)) == 2
    assert "holds no ledger" in capsys.readouterr().err
    assert main(command(tmp_path / "new", old, changed, "--seed=1", "--smoothing.sigma=0.25")) == 2
    assert "seed = 0 there, 1 here; smoothing.sigma = 0.5 there, 0.25 here" in capsys.readouterr().err
    assert not (tmp_path / "new" / "votes.rank0.jsonl").exists()
