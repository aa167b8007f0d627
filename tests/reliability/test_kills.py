"""Kill runs at random moments, resume them, and compare with runs that nobody disturbed."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from certification_runs import ledger_votes
from command_lines import certify_command, fit_command, processes
from ranks import CRASH, Ranks

import deqcert.cli.trainer_verbs  # noqa: F401  # so that forks need not import it
from deqcert.cli import main
from deqcert.errors import LedgerError
from deqcert.runs import read_tsv, verify_run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

KILLS = 25
IMAGES = 40


def certify(ledger: Path, count: int) -> Ranks:
    command = certify_command(ledger, *processes(count), images=IMAGES, n=200)
    return Ranks(count, lambda: main(command), ledger.with_suffix(".log"))


def fit(folder: Path, count: int) -> Ranks:
    folder.mkdir(parents=True, exist_ok=True)
    return Ranks(count, lambda: main(fit_command(folder, *processes(count))), folder.with_suffix(".log"))


def disturb(ranks: Ranks, number: signal.Signals, moment: random.Random, longest: float) -> bool:
    """Kill a run at a random moment, as a scheduler does: all ranks, or one and then the others; False if too late."""
    if ranks.run_for(moment.uniform(0.05, longest)):
        return False
    alive = ranks.alive()
    first = alive if moment.random() < 0.5 else [moment.choice(alive)]
    hit = ranks.kill(number, first)
    if len(first) < len(alive):
        ranks.run_for(moment.uniform(0.0, 0.5))
        hit += ranks.kill(number)
    if number == signal.SIGTERM and not ranks.run_for(60.0):
        raise AssertionError(f"a rank hangs after SIGTERM: {ranks.alive()}")
    ranks.wait()
    assert CRASH not in ranks.codes.values()
    # Before Python listens to SIGTERM, it ends a process as it always does: -15, which a shell reports as 143 too.
    allowed = {0, 143, -number} if number == signal.SIGTERM else {0, -number}
    if -number in ranks.codes.values():
        allowed |= {2}  # a rank in the midst of a collective with one that was killed
    assert set(ranks.codes.values()) <= allowed
    return hit > 0


def measured(ledger: Path) -> dict[int, object]:
    """Return the votes in a ledger without times."""
    if not any(ledger.glob("votes.rank*.jsonl")):
        return {}
    try:
        return ledger_votes(ledger)
    except LedgerError:  # no line is whole yet
        assert all(b"\n" not in path.read_bytes() for path in ledger.glob("votes.rank*.jsonl"))
        return {}


def lines_of(ledger: Path) -> int:
    """Count the images in a ledger, whole lines only."""
    return sum(path.read_bytes().count(b'\n{"index"') for path in ledger.glob("votes.rank*.jsonl"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Votes and table of one undisturbed process."""
    ledger = tmp_path_factory.mktemp("undisturbed") / "whole"
    assert certify(ledger, 1).wait() == [0]
    rows = [row._replace(seconds=0.0) for row in read_tsv(ledger / "certificates.tsv")]
    return measured(ledger), rows


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_certify(tmp_path, undisturbed, number, count, record_fault):
    expected, rows = undisturbed
    moment = random.Random(f"{number} {count}")
    kills = finished = 0
    while kills < KILLS:
        ledger = tmp_path / f"run{finished}"
        known: dict[int, object] = {}
        while True:
            # A resumed run may have another number of processes.
            ranks = certify(ledger, count if moment.random() < 0.8 else 3 - count)
            if not disturb(ranks, number, moment, longest=2.0):
                assert ranks.wait() == [0] * len(ranks.pids), ledger.with_suffix(".log").read_text()[-2000:]
                break
            kills += 1
            now = measured(ledger)
            assert known.items() <= now.items() <= expected.items()  # none lost, none wrong
            assert lines_of(ledger) - len(now) in (0, 1)  # none double; one may be torn
            known = now
        finished += 1
        assert measured(ledger) == expected
        assert [row._replace(seconds=0.0) for row in read_tsv(ledger / "certificates.tsv")] == rows
        assert verify_run(ledger).findings == []
        assert lines_of(ledger) == IMAGES
    record_fault(
        f"{number.name} of certify, {count} process{'es' if count > 1 else ''}",
        kills,
        f"all resumed; {finished} runs finished with the certificates of an undisturbed one, none lost, none double",
    )


def test_a_kill_within_an_image_keeps_those_before_it(tmp_path):
    """Images of a second or more: the second of two is cut off and measured again, with the votes of one run."""

    def run(name: str) -> Ranks:
        command = certify_command(tmp_path / name, images=2, n=5000, config="standard")
        return Ranks(1, lambda: main(command), tmp_path / f"{name}.log")

    assert run("whole").wait() == [0]
    ranks = run("cut")
    while lines_of(tmp_path / "cut") == 0:
        assert not ranks.run_for(0.02)
    assert not ranks.run_for(0.3)
    assert ranks.kill(signal.SIGKILL) == 1
    assert ranks.wait() == [-signal.SIGKILL]
    kept = measured(tmp_path / "cut")
    assert len(kept) == 1
    assert run("cut").wait() == [0]
    assert lines_of(tmp_path / "cut") == 2
    assert kept.items() < measured(tmp_path / "cut").items()
    assert measured(tmp_path / "cut") == measured(tmp_path / "whole")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_fit(tmp_path, number, count, record_fault):
    assert fit(tmp_path / "whole", count).wait() == [0] * count
    expected = weights(tmp_path / "whole")
    moment = random.Random(f"fit {number} {count}")
    kills = finished = 0
    while kills < KILLS:
        folder = tmp_path / f"run{finished}"
        while True:
            ranks = fit(folder, count)
            if not disturb(ranks, number, moment, longest=2.5):
                assert ranks.wait() == [0] * count, folder.with_suffix(".log").read_text()[-2000:]
                break
            kills += 1
        finished += 1
        state = weights(folder)
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        shutil.rmtree(folder)
    record_fault(
        f"{number.name} of fit, {count} process{'es' if count > 1 else ''}",
        kills,
        f"all resumed; {finished} runs finished with the weights of an undisturbed one, bit for bit",
    )
