"""SLURM and torchrun: SIGTERM, the same again, and the result of one process that nobody has interrupted.

SLURM itself is a stand-in (conftest.py); the scripts, the processes and what is between them are real.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from deqcert.cli import main
from deqcert.runs import read_tsv

# Whole runs pass through much code that is not ours; our own warnings are errors in every other test.
pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "configs" / "cluster").glob("*.sbatch"))
DIGITS = ROOT / "configs" / "digits" / "mdeq_tiny.yaml"
SAMPLING = ROOT / "configs" / "certify" / "srs_3a.yaml"
CHECKPOINT = ROOT / "checkpoints" / "digits_mdeq_tiny" / "model.ckpt"
VARIABLES = {
    "SIGMAS": "0.25 0.5",
    "CONFIG": str(DIGITS),
    "SAMPLING": str(SAMPLING),
    "CHECKPOINT": str(CHECKPOINT),
    "OMP_NUM_THREADS": "1",
}
CPU = "--trainer.accelerator=cpu"
LAYOUTS = pytest.mark.parametrize(("nodes", "per_node"), [(2, 1), (1, 2)], ids=["2x1", "1x2"])


def certify_alone(directory: Path, *arguments: str) -> None:
    """Certify in this process."""
    command = ["certify", f"--config={DIGITS}", f"--config={SAMPLING}", f"--ckpt_path={CHECKPOINT}", CPU]
    assert main([*command, "--trainer.logger=false", f"--ledger_dir={directory}", *arguments]) == 0


def lines(directory: Path) -> int:
    """How many measurements the ledger holds."""
    return sum(
        path.read_bytes().count(b"\n") - 1 for path in directory.glob("votes.rank*.jsonl") if path.stat().st_size
    )


def over(job: subprocess.Popen[bytes]) -> bool:
    return job.poll() is not None


def assert_same_run(directory: Path, alone: Path) -> None:
    """Every certificate is there once and equals that of the uninterrupted run; the run verifies."""
    rows, expected = (
        [row._replace(seconds=0) for row in read_tsv(each / "certificates.tsv")] for each in (directory, alone)
    )
    assert rows == expected
    records = [
        json.loads(line) for path in directory.glob("votes.rank*.jsonl") for line in path.read_text().splitlines()[1:]
    ]
    assert sorted(record["index"] for record in records if "index" in record) == [row.index for row in expected]
    assert main(["verify", str(directory)]) == 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_bash(script):
    for checker in (["bash", "-n"], ["shellcheck"]):
        if shutil.which(checker[0]):
            found = subprocess.run([*checker, str(script)], capture_output=True, text=True, check=False)
            assert found.returncode == 0, found.stdout + found.stderr


def test_certify_is_requeued_and_resumes(slurm, wait_for, tmp_path):
    """Two nodes; SIGTERM when a few images are done."""
    arguments = ["--sampling.n=400", "--data.max_examples=40"]
    directory = tmp_path / "sigma_0.5"

    def start():
        variables = VARIABLES | {"LEDGER": str(tmp_path / "sigma_SIGMA")}
        return slurm.start("certify.sbatch", CPU, *arguments, nodes=2, per_node=1, **variables)

    job = start()
    wait_for(lambda: lines(directory) >= 6, job)
    assert slurm.signal_step(job)
    assert slurm.finish(job) == 143, slurm.log()
    assert slurm.requeues() == ["requeue 71233_1"]
    assert 6 <= lines(directory) < 40
    assert slurm.finish(start()) == 0, slurm.log()
    assert slurm.requeues() == ["requeue 71233_1"]

    certify_alone(tmp_path / "alone", *arguments)
    assert_same_run(directory, tmp_path / "alone")


# What follows takes minutes.


@pytest.mark.slow
@LAYOUTS
def test_certify_survives_many_signals(slurm, wait_for, tmp_path, nodes, per_node, record_fault):
    """SIGTERM in turn at any moment, import and connection included, and between images."""
    arguments = ["--sampling.n=400", "--data.max_examples=120"]
    directory = tmp_path / "sigma_0.5"
    delays = random.Random(f"{nodes}x{per_node}")
    signals = 0
    while not slurm.codes or slurm.codes[-1] == 143:
        variables = VARIABLES | {"LEDGER": str(tmp_path / "sigma_SIGMA")}
        job = slurm.start("certify.sbatch", CPU, *arguments, nodes=nodes, per_node=per_node, **variables)
        if signals < 12:
            if signals % 2:
                aim = lines(directory) + delays.randint(1, 12)
                wait_for(lambda aim=aim, job=job: over(job) or lines(directory) >= aim, job)
            else:
                time.sleep(delays.uniform(0, 9))
            signals += slurm.signal_step(job)
        slurm.finish(job)
        print(f"exit code {slurm.codes[-1]}, tasks {slurm.tasks()[-1]}, {lines(directory)} images")
        assert slurm.codes[-1] in (0, 143), slurm.log()
    assert len(slurm.requeues()) == len(slurm.codes) - 1
    certify_alone(tmp_path / "alone", *arguments)
    assert_same_run(directory, tmp_path / "alone")
    record_fault(
        f"SLURM script (stand-in), certify, nodes x processes {nodes} x {per_node}: SIGTERM to the step",
        signals,
        "exit 143, requeued every time, equal certificates",
    )


@pytest.mark.slow
def test_no_requeue_after_scancel(slurm, wait_for, tmp_path, record_fault):
    """It signals the batch shell too, and takes the job for cancelled."""
    job = slurm.start("certify.sbatch", CPU, nodes=1, per_node=2, **VARIABLES, LEDGER=str(tmp_path / "ledger"))
    wait_for(lambda: lines(tmp_path / "ledger") >= 2, job)
    os.kill(job.pid, signal.SIGTERM)
    assert slurm.signal_step(job)
    assert slurm.finish(job) == 143, slurm.log()
    assert slurm.requeues() == []
    record_fault("SLURM script (stand-in): scancel", 1, "exit 143, not requeued")


@pytest.mark.slow
def test_no_requeue_after_an_error(slurm, tmp_path, record_fault):
    """A mistake of the user's ends the job, and says itself."""
    variables = VARIABLES | {"LEDGER": str(tmp_path / "ledger"), "CHECKPOINT": "missing.ckpt"}
    job = slurm.start("certify.sbatch", CPU, nodes=2, per_node=1, **variables)
    slurm.finish(job)
    assert slurm.codes == [max(slurm.tasks()[-1])]
    assert 2 in slurm.tasks()[-1]
    assert "missing.ckpt" in slurm.log()
    assert slurm.requeues() == []
    record_fault("SLURM script (stand-in): checkpoint missing", 1, "message, not requeued")


FIT = [
    CPU,
    "--trainer.max_epochs=8",
    "--trainer.limit_train_batches=10",
    "--trainer.limit_val_batches=1",
    "--model.pretraining_steps=20",
]


def start_fit(slurm, folder, nodes, per_node):
    variables = VARIABLES | {"RUN": f"{folder}/digits_mdeq_tiny/sigma_SIGMA"}
    return slurm.start("fit.sbatch", *FIT, nodes=nodes, per_node=per_node, **variables)


def steps(log: str) -> int:
    """How many training steps the progress bar has shown."""
    return len(set(re.findall(r"Epoch \d+: +\d+%\|[^|]*\| \d+/", log)))


def checkpoints(folder: Path) -> Path:
    return folder / "digits_mdeq_tiny" / "sigma_0.5" / "checkpoints"


def assert_same_training(folder: Path, whole: Path) -> None:
    """One last checkpoint, whose weights and optimiser are those of the uninterrupted run, bit for bit."""
    assert [path.name for path in checkpoints(folder).glob("last*")] == ["last.ckpt"]
    one, other = (torch.load(checkpoints(each) / "last.ckpt", weights_only=True) for each in (folder, whole))
    assert one["global_step"] == other["global_step"] == 80
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(tensor, other["state_dict"][name]) for name, tensor in one["state_dict"].items())
    moments, expected = (each["optimizer_states"][0]["state"] for each in (one, other))
    assert all(torch.equal(moments[key]["exp_avg"], expected[key]["exp_avg"]) for key in expected)


@pytest.mark.slow
@LAYOUTS
def test_fit_resumes_exactly(slurm, wait_for, tmp_path, nodes, per_node, record_fault):
    """SIGTERM in turn after a few steps, in the first epoch at first, and at any moment."""
    job = start_fit(slurm, tmp_path / "whole", nodes, per_node)
    assert slurm.finish(job) == 0, slurm.log()

    delays = random.Random(f"{nodes}x{per_node}")
    slurm.codes.clear()
    folder = tmp_path / "requeued"
    signals = 0
    while not slurm.codes or slurm.codes[-1] == 143:
        before = len(slurm.log())
        job = start_fit(slurm, folder, nodes, per_node)
        if signals < 8:
            if signals % 2:
                time.sleep(delays.uniform(0, 12))
            else:
                aim = delays.randint(1, 8)
                wait_for(lambda before=before, aim=aim, job=job: over(job) or steps(slurm.log()[before:]) >= aim, job)
            signals += slurm.signal_step(job)
        slurm.finish(job)
        saved = [torch.load(path, weights_only=True)["global_step"] for path in folder.rglob("*.ckpt")]
        print(f"exit code {slurm.codes[-1]}, tasks {slurm.tasks()[-1]}, checkpoints at steps {saved}")
        assert slurm.codes[-1] in (0, 143), slurm.log()
    assert slurm.requeues() == ["requeue 71233_1"] * (len(slurm.codes) - 1)
    assert_same_training(folder, tmp_path / "whole")
    record_fault(
        f"SLURM script (stand-in), fit, nodes x processes {nodes} x {per_node}: SIGTERM to the step",
        signals,
        "exit 143, requeued every time, equal weights and moments",
    )


@pytest.mark.slow
def test_torchrun(wait_for, tmp_path, record_fault):
    """Two processes of torchrun, SIGTERM, the same command; torchrun itself ends with code 1."""
    arguments = ["--sampling.n=400", "--data.max_examples=20"]
    directory = tmp_path / "ledger"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "deqcert"]
    command += ["certify", f"--config={DIGITS}", f"--config={SAMPLING}", f"--ckpt_path={CHECKPOINT}", CPU]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.logger=false", *arguments]
    command += [f"--ledger_dir={directory}"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as job:
        wait_for(lambda: lines(directory) >= 4, job)
        job.terminate()
        assert job.wait(60) == 1
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    certify_alone(tmp_path / "alone", *arguments)
    assert_same_run(directory, tmp_path / "alone")
    record_fault("torchrun, certify, 2 processes: SIGTERM", 1, "exit 1, resumed to equal certificates")
