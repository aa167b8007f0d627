"""The shipped CIFAR-10 checkpoint on two processes, interrupted three times, against an undisturbed process."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from command_lines import QUIET, ROOT, processes
from ranks import Ranks

import deqcert.cli.trainer_verbs  # noqa: F401  # so that forks need not import it
from deqcert.cli import main
from deqcert.runs import read_tsv, verify_run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

IMAGES = ROOT.parent / "shared" / "data" / "cifar10_jpeg.npz"
CHECKPOINT = ROOT / "checkpoints" / "cifar10_mdeq_small_cpu" / "model.ckpt"


def certify(ledger: Path, count: int) -> Ranks:
    command = [
        "certify",
        f"--config={ROOT / 'configs' / 'cifar10' / 'mdeq_small.yaml'}",
        f"--config={ROOT / 'configs' / 'certify' / 'srs_3a.yaml'}",
        f"--ckpt_path={CHECKPOINT}",
        f"--data.root={IMAGES}",
        "--data.skip=500",
        "--sampling.n=1000",
        f"--ledger_dir={ledger}",
        *QUIET,
        *processes(count),
    ]
    return Ranks(count, lambda: main(command), ledger.with_suffix(".log"))


@pytest.mark.skipif(not IMAGES.exists(), reason="needs ../shared/data/cifar10_jpeg.npz beside the repository")
def test_two_processes_interrupted_three_times(tmp_path, record_fault):
    assert certify(tmp_path / "whole", 1).wait(600) == [0]
    moment = random.Random(0)
    ledger = tmp_path / "interrupted"
    numbers = (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)
    for number in numbers:
        ranks = certify(ledger, 2)
        assert not ranks.run_for(moment.uniform(6.0, 12.0))
        ranks.kill(number)
        assert set(ranks.wait()) == {143 if number == signal.SIGTERM else -number}
    assert certify(ledger, 2).wait(600) == [0, 0]
    whole, interrupted = (
        [row._replace(seconds=0.0) for row in read_tsv(folder / "certificates.tsv")]
        for folder in (tmp_path / "whole", ledger)
    )
    assert interrupted == whole
    assert len(whole) == 20
    assert sum(row.radius > 0 for row in whole) > 5
    assert verify_run(ledger, CHECKPOINT).findings == []
    record_fault(
        "certify of the shipped CIFAR-10 checkpoint on 2 processes, interrupted",
        len(numbers),
        "20 images, SRS-3A, n = 1000: the certificates of an undisturbed process",
    )
