"""What machines do to runs: full disks, read-only folders, jumping clocks, second runs, torn files, dead workers."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from certification_runs import ShippedModule, certify, ledger_votes
from command_lines import certify_command, fit_command
from ranks import Ranks

import deqcert.cli.trainer_verbs  # noqa: F401  # so that forks need not import it
from deqcert.cli import main
from deqcert.errors import LedgerError
from deqcert.runs import read_run, verify_run
from deqcert.smoothing import Serialized, Smoothing
from deqcert.solvers import Picard
from deqcert.statistics import FixedAudit

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

IMAGES = 12


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    ledger = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run(certify_command(ledger), ledger) == 0
    return ledger_votes(ledger)


def run(command: list[str], folder: Path, before=lambda: None) -> int:
    """Run a command in a process of its own."""

    def inside() -> int:
        before()
        return main(command)

    folder.parent.mkdir(parents=True, exist_ok=True)
    (code,) = Ranks(1, inside, log_of(folder)).wait()
    return code


def log_of(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.log"


@pytest.fixture
def small_disk(tmp_path):
    """Mount file systems of a given size; unmounted at the end."""
    mounted = []

    def mount(name: str, options: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if made.returncode:
            pytest.skip(f"cannot mount a tmpfs here: {made.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def test_a_full_disk_during_certify(small_disk, tmp_path, expected, record_fault):
    tried = 0
    for kibibytes in (4, 8, 12, 16, 20, 40):
        disk = small_disk(f"disk{kibibytes}", f"size={kibibytes}k")
        ledger = disk / "run"
        code = run(certify_command(ledger), tmp_path / f"full{kibibytes}")
        message = (tmp_path / f"full{kibibytes}.log").read_text()
        assert code == 2, message
        assert "No space left on device" in message.splitlines()[-1]
        assert "Traceback" not in message
        tried += 1
        kept = (
            ledger_votes(ledger)
            if any(ledger.glob("votes*")) and any(f.stat().st_size for f in ledger.glob("votes*"))
            else {}
        )
        assert kept.items() <= expected.items()
        remount(disk, "size=10m")
        assert run(certify_command(ledger), tmp_path / f"roomy{kibibytes}") == 0
        assert ledger_votes(ledger) == expected
        assert verify_run(ledger).findings == []
    record_fault(
        "disk full during certify (tmpfs of 4 to 40 KiB)", tried, "exit 2, message, resumed to equal certificates"
    )


def test_a_limit_on_file_sizes_during_certify(tmp_path, expected, record_fault):
    """The same without mounting anything."""
    sizes = (1000, 3000, 3500, 5000)
    for size in sizes:
        ledger = tmp_path / f"limited{size}"
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        log = log_of(ledger)
        assert run(certify_command(ledger), ledger, limit) == 2
        assert not log.exists() or "Traceback" not in log.read_text()
        assert run(certify_command(ledger), ledger) == 0
        assert ledger_votes(ledger) == expected
    record_fault("file size limit during certify", len(sizes), "exit 2, resumed to equal certificates")


def test_a_full_disk_during_fit(small_disk, tmp_path, record_fault):
    assert run(fit_command(tmp_path / "whole"), tmp_path / "whole") == 0
    whole = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    size = (tmp_path / "whole" / "checkpoints" / "last.ckpt").stat().st_size // 1024
    rooms = (size // 2, size + 40, size * 3 // 2)
    for room in rooms:
        disk = small_disk(f"disk{room}", f"size={room}k")
        assert run(fit_command(disk / "fit"), tmp_path / f"full{room}") == 2
        assert "No space left on device" in (tmp_path / f"full{room}.log").read_text().splitlines()[-1]
        for left in disk.rglob("*.ckpt"):
            torch.load(left, weights_only=True)  # whole
        remount(disk, "size=100m")
        assert run(fit_command(disk / "fit"), tmp_path / f"roomy{room}") == 0
        state = torch.load(disk / "fit" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(state[name], whole[name]) for name in whole)
    record_fault("disk full during fit", len(rooms), "exit 2, the last checkpoint whole, resumed to equal weights")


def test_a_read_only_folder(small_disk, tmp_path, expected, record_fault):
    disk = small_disk("disk", "size=10m")
    assert run(certify_command(disk / "run", images=4), tmp_path / "first") == 0
    before = {path.name: path.read_bytes() for path in (disk / "run").iterdir()}
    remount(disk, "ro")
    for tried, ledger in enumerate((disk / "run", disk / "new", disk / "new" / "deep"), start=1):
        log = tmp_path / f"denied{tried}"
        assert run(certify_command(ledger), log) == 2
        assert "ledger_dir" in (text := log_of(log).read_text().splitlines()[-1])
        assert "writable" in text or "Read-only" in text
    assert {path.name: path.read_bytes() for path in (disk / "run").iterdir()} == before
    remount(disk, "rw")
    assert run(certify_command(disk / "run"), tmp_path / "last") == 0
    assert ledger_votes(disk / "run") == expected
    record_fault("read-only output folder", tried, "exit 2 before any work, nothing changed; resumed once writable")


def test_a_jumping_clock(tmp_path, expected, record_fault):
    moment = random.Random(0)

    def jump() -> None:
        real = time.time
        time.time = lambda: real() + moment.uniform(-1e9, 1e9)

    tried = 5
    for number in range(tried):
        ledger = tmp_path / f"run{number}"
        assert run(certify_command(ledger, images=5), ledger, jump) == 0
        assert run(certify_command(ledger), ledger, jump) == 0
        assert ledger_votes(ledger) == expected
        assert all(votes.seconds < 100 for votes in read_run(ledger).votes)
    record_fault("wall clock jumps by up to 30 years at every reading", tried, "equal certificates, times unaffected")


def test_two_runs_at_once(tmp_path, expected, record_fault):
    moment = random.Random(1)
    tried, both = 20, 0
    for number in range(tried):
        ledger = tmp_path / f"run{number}"
        first = Ranks(1, lambda: main(certify_command(ledger)), tmp_path / "first.log")  # noqa: B023
        time.sleep(moment.uniform(0, 0.02))
        second = Ranks(1, lambda: main(certify_command(ledger)), tmp_path / "second.log")  # noqa: B023
        codes = sorted([*first.wait(), *second.wait()])
        assert codes in ([0, 2], [0, 0])
        both += codes == [0, 0]
        assert ledger_votes(ledger) == expected
        assert sum(path.read_bytes().count(b'{"index"') for path in ledger.glob("votes*")) == IMAGES
    logs = (tmp_path / "first.log").read_text() + (tmp_path / "second.log").read_text()
    assert logs.count("another run is writing to it") == tried - both > tried // 2
    record_fault(
        "two runs started on one ledger at once",
        tried,
        f"{tried - both} refused by the lock, {both} one after the other",
    )


SMOOTHING = Smoothing(solver=Picard(max_steps=3))
SAMPLING = Serialized(n0=5, n=20, proposal=Picard(max_steps=1), audit=FixedAudit(20))


def test_a_ledger_cut_at_every_byte_of_its_last_two_lines(tmp_path, record_fault):
    module = ShippedModule()
    expected = certify(module, tmp_path, SMOOTHING, SAMPLING)
    path = tmp_path / "votes.rank0.jsonl"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    sizes = range(len(content) - len(lines[-1]) - len(lines[-2]), len(content) + 1)
    for size in sizes:
        path.write_bytes(content[:size])
        assert certify(module, tmp_path, SMOOTHING, SAMPLING) == expected
        assert path.read_bytes().count(b"\n") == len(lines)
    record_fault("ledger cut at every byte of its last two lines", len(sizes), "resumed to equal certificates")


def test_garbage_lines(tmp_path, record_fault):
    module = ShippedModule()
    expected = certify(module, tmp_path, SMOOTHING, SAMPLING)
    path = tmp_path / "votes.rank0.jsonl"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    moment = random.Random(2)
    tried = 100
    for _ in range(tried):
        place = moment.randrange(len(lines))
        garbage = moment.choice(
            [b"\n", b"{}\n", b"\x00" * 40 + b"\n", moment.randbytes(30) + b"\n", lines[-1], lines[0]]
        )
        damaged = b"".join([*lines[:place], garbage, *lines[place:]])
        path.write_bytes(damaged)
        with pytest.raises(
            LedgerError, match=rf"votes\.rank0\.jsonl, line {place + 1 + garbage.count(lines[place])}: damaged"
        ):
            certify(module, tmp_path, SMOOTHING, SAMPLING)
        assert path.read_bytes() == damaged
        # What the message says: without that line and those after it, the run resumes.
        path.write_bytes(b"".join(lines[:place]))
        assert certify(module, tmp_path, SMOOTHING, SAMPLING) == expected
    record_fault("garbage line at a random place of a ledger", tried, "refused by file and line; resumed once removed")


def test_a_data_loading_worker_is_killed(tmp_path, record_fault):
    more = ["--data.num_workers=2"]
    assert run(fit_command(tmp_path / "whole", *more), tmp_path / "whole") == 0
    whole = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    moment = random.Random(3)
    kills = 0
    while kills < 5:
        folder = tmp_path / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        ranks = Ranks(1, lambda: main(fit_command(folder, *more)), tmp_path / "killed.log")  # noqa: B023
        assert not ranks.run_for(moment.uniform(1.0, 2.5))
        workers = children(ranks.pids[0])
        if not workers:
            ranks.kill(signal.SIGKILL)
            continue
        os.kill(moment.choice(workers), signal.SIGKILL)
        kills += 1
        assert ranks.wait() in ([2], [0])  # 0: the epoch had all it needed of this worker
        assert "Traceback" not in (tmp_path / "killed.log").read_text()
        assert run(fit_command(folder, *more), folder) == 0
        state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(state[name], whole[name]) for name in whole)
    record_fault("a DataLoader worker is killed during fit", kills, "exit 2 with a message; resumed to equal weights")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
