"""A SLURM of one machine that runs the batch scripts in the tree."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JOB, ARRAY_TASK = "71234", "1"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


class Slurm:
    """Runs batch scripts, with stand-ins for the commands they call; the rest is real.

    Args:
        place: Folder for the stand-ins and what they record.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.codes: list[int] = []
        commands = {
            "srun": f'exec "{sys.executable}" "{Path(__file__).with_name("fake_srun.py")}" "$@"',
            "scontrol": 'echo "$@" >> "$FAKE_SLURM/scontrol"',
            "deqcert": f'exec "{sys.executable}" -m deqcert "$@"',
        }
        for name, line in commands.items():
            path = place / "bin" / name
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(f"#!/bin/sh\n{line}\n")
            path.chmod(0o755)

    def log(self) -> str:
        """What the scripts have printed, in all starts."""
        return (self.place / "log").read_text(errors="replace")

    def requeues(self) -> list[str]:
        """What scontrol was called with, once per call."""
        calls = self.place / "scontrol"
        return calls.read_text().splitlines() if calls.exists() else []

    def tasks(self) -> list[list[int]]:
        """Exit codes of the processes, per start."""
        return [[int(code) for code in line.split()] for line in (self.place / "tasks").read_text().splitlines()]

    def start(
        self, script: str, *arguments: str, nodes: int, per_node: int, **variables: str
    ) -> subprocess.Popen[bytes]:
        """Start a batch script as SLURM does."""
        environment = os.environ | {
            "PATH": f"{self.place / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "FAKE_SLURM": str(self.place),
            "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NAME": "deqcert",
            "SLURM_ARRAY_JOB_ID": "71233",
            "SLURM_ARRAY_TASK_ID": ARRAY_TASK,
            "SLURM_ARRAY_TASK_COUNT": "2",
            "SLURM_RESTART_COUNT": str(len(self.codes)),
            "SLURM_NNODES": str(nodes),
            "SLURM_NTASKS": str(nodes * per_node),
            "SLURM_NTASKS_PER_NODE": str(per_node),
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_NODELIST": "localhost",
            "MASTER_PORT": str(free_port()),
        }
        command = ["bash", str(ROOT / "configs" / "cluster" / script), *arguments]
        with (self.place / "log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment | variables, stdout=log, stderr=log)

    def finish(self, job: subprocess.Popen[bytes], timeout: float = 120) -> int:
        """Wait for the end of a job; record its exit code."""
        self.codes.append(job.wait(timeout))
        return self.codes[-1]

    def signal_step(self, job: subprocess.Popen[bytes], timeout: float = 60) -> bool:
        """Send SIGTERM to the step, as ``--signal=TERM@120`` does; return False if it has ended."""
        deadline = time.monotonic() + timeout
        while job.poll() is None and time.monotonic() < deadline:
            # Not there yet, just being written, or over.
            with suppress(FileNotFoundError, ValueError, ProcessLookupError):
                os.kill(int((self.place / "srun.pid").read_text()), signal.SIGTERM)
                return True
            time.sleep(0.01)
        return False

    def end(self) -> None:
        """End what a failed test has left running."""
        with suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.kill(int((self.place / "srun.pid").read_text()), signal.SIGTERM)


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    machine = Slurm(tmp_path / "slurm")
    yield machine
    machine.end()


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """Wait until a condition holds, while a process runs."""

    def wait(condition: Callable[[], bool], job: subprocess.Popen[bytes], timeout: float = 90) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    return wait
