"""What is documented to be submitted: fit writes what certify reads, for every sigma, and the arguments parse."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deqcert.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[2]
SCRIPTS = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "docs" / "cluster.md").read_text(), re.MULTILINE | re.DOTALL)
EXAMPLES = [script for script in SCRIPTS if "sbatch" in script]
RECORD = "import json, os, sys; print(json.dumps(sys.argv[1:]), file=open(os.environ['FAKE_SLURM'] + '/calls', 'a'))"


@pytest.fixture
def submit(tmp_path):
    """Run a shell script where sbatch, srun and deqcert are stand-ins; return the arguments of each deqcert."""
    commands = {
        "sbatch": f'exec "{sys.executable}" "{Path(__file__).with_name("fake_sbatch.py")}" "$@"',
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "deqcert": f'exec "{sys.executable}" -c "{RECORD}" "$@"',
    }
    for name, line in commands.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def submit(script, **variables):
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "FAKE_SLURM": str(tmp_path)} | variables
        subprocess.run(["bash", "-eu", "-c", script], cwd=ROOT, env=environment, check=True, timeout=60)
        calls = tmp_path / "calls"
        return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    return submit


def option(call, name):
    """The last value counts."""
    return [call[i + 1] for i, argument in enumerate(call) if argument == f"--{name}"][-1]


def assert_chained(fits, certifications):
    assert [call[0] for call in [*fits, *certifications]] == ["fit"] * len(fits) + ["certify"] * len(fits)
    for fit, certify in zip(fits, certifications, strict=True):
        assert option(fit, "model.sigma") == option(certify, "smoothing.sigma")
        parts = (option(fit, f"trainer.logger.{part}") for part in ("save_dir", "name", "version"))
        assert option(certify, "ckpt_path") == str(Path(*parts, "checkpoints", "last.ckpt"))
    ledgers = [option(call, "ledger_dir") for call in certifications]
    assert len(set(ledgers)) == len(ledgers)


def parsed(call, capsys):
    """What the command line takes the arguments for."""
    with pytest.raises(SystemExit) as ending:
        main([*call, "--print_config"])
    assert ending.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_three_sigmas_are_trained_and_certified(submit, tmp_path):
    calls = submit(EXAMPLES[0])
    assert_chained(calls[:3], calls[3:])
    assert [option(call, "model.sigma") for call in calls[:3]] == ["0.25", "0.5", "1.0"]
    assert option(calls[3], "ckpt_path") == "runs/cifar10_mdeq_small/sigma_0.25/checkpoints/last.ckpt"
    assert option(calls[3], "ledger_dir") == "runs/cifar10_mdeq_small/sigma_0.25/certify_srs_3a"
    assert option(calls[3], "data.skip") == "20"
    sizes = [(option(call, "trainer.num_nodes"), option(call, "trainer.devices")) for call in calls]
    assert sizes == [("1", "1")] * 3 + [("2", "4")] * 3
    assert (tmp_path / "jobs").read_text().splitlines() == ["", "aftercorr:1001"]


def test_four_nodes_of_eight(submit, capsys):
    calls = submit(EXAMPLES[1])
    assert_chained(calls[:1], calls[1:])
    fit, certify = (parsed(call, capsys) for call in calls)
    for settings in (fit, certify):
        assert (settings["trainer"]["num_nodes"], settings["trainer"]["devices"]) == (4, "8")
        assert settings["data"]["init_args"]["root"] == "/data/imagenet"
    factor = 4 * 8 * fit["data"]["init_args"]["batch_size"] / (4 * 32)
    published = yaml.safe_load((ROOT / "configs" / "imagenet" / "mdeq_small.yaml").read_text())["model"]
    chosen = fit["model"]
    assert chosen["optimizer"]["init_args"]["lr"] == factor * published["optimizer"]["init_args"]["lr"]
    assert chosen["pretraining_steps"] == published["pretraining_steps"] / factor
    assert chosen["jacobian"]["increment_every"] == published["jacobian"]["increment_every"] / factor
    assert chosen["jacobian"]["weight"] == published["jacobian"]["weight"]
    assert chosen["optimizer"]["init_args"]["momentum"] == published["optimizer"]["init_args"]["momentum"]


@pytest.mark.parametrize("script", ["fit", "certify"])
def test_tasks_and_sigmas_need_not_be_as_many(submit, tmp_path, script):
    command = f"sbatch configs/cluster/{script}.sbatch"
    assert len(submit(command, SIGMAS="0.5")) == 1
    assert "SIGMAS = '0.5' has no sigma for task 2: nothing to do" in (tmp_path / "log").read_text()
    assert len(submit(f"sbatch --array=0 configs/cluster/{script}.sbatch", SIGMAS="0.5")) == 2
    assert len(submit(command, SIGMAS="0.1 0.2 0.3 0.4 0.5")) == 5
    assert "SIGMAS has 5 values, the array 3 tasks: --array=0-4 takes all" in (tmp_path / "log").read_text()


def test_another_run_is_followed(submit):
    variables = {"RUN": "/scratch/me/mine/SIGMA_b", "SIGMAS": "0.12", "SAMPLING": "configs/certify/standard.yaml"}
    calls = submit(EXAMPLES[0], **variables)
    assert_chained(calls[:1], calls[1:])
    assert option(calls[1], "ckpt_path") == "/scratch/me/mine/0.12_b/checkpoints/last.ckpt"
    assert option(calls[1], "ledger_dir") == "/scratch/me/mine/0.12_b/certify_standard"
