"""What is shown while an image is being measured."""

from __future__ import annotations

import math
import sys

import pytest
from certification_runs import ShippedModule, certify

from deqcert.lightning import CertificationCallback, CertificationProgress
from deqcert.lightning import sample_progress as module
from deqcert.lightning.sample_progress import SampleCounter, SampleProgress
from deqcert.smoothing import Execution, Serialized, Smoothing, Standard
from deqcert.statistics import FixedAudit

SIZES = {"n0": 10, "n": 60, "batch_size": 32, "execution": Execution(rows=8)}


class Heard(CertificationCallback):
    def __init__(self):
        self.heard = []

    def on_certify_samples(self, trainer, module, progress):
        self.heard.append(progress)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_progress_reads_as_a_few_words():
    assert str(SampleProgress((340,), 1200, 10100, 12.0)) == "image 340: 1200/10100 samples, 12 s"
    further = SampleProgress((340, 350), 20300, 20200, 180.0)
    assert str(further) == "images 340, 350: 20200/20200 samples + 100 for audit and escalation, 3 min"


def test_a_counter_tells_once_a_second(clock):
    heard = []
    counter = SampleCounter([3], 100, heard.append)
    for now, samples in ((100.5, 10), (101.0, 20), (101.9, 5), (102.0, 30), (109.0, 35)):
        clock.now = now
        counter(samples)
    assert heard == [SampleProgress([3], *each) for each in ((30, 100, 1.0), (65, 100, 2.0), (100, 100, 9.0))]


@pytest.mark.parametrize("audited", [0, 25])
def test_every_batch_is_counted(tmp_path, monkeypatch, audited):
    monkeypatch.setattr(module, "_SECONDS", -math.inf)
    sampling = Serialized(**SIZES, audit=FixedAudit(audited)) if audited else Standard(**SIZES)
    heard = Heard()
    certify(ShippedModule(), tmp_path, Smoothing(), sampling, images=2, callbacks=[heard])
    first, second = (
        [each for each in heard.heard if each.indices == [i]] for i in {each.indices[0] for each in heard.heard}
    )
    for progress in (first, second):
        done = [each.done for each in progress]
        assert done == sorted(done)
        assert done[:2] == [8, 10]  # selection, in batches of 8
        assert done[-1] == 70 + audited
        assert {each.expected for each in progress} == {70}


def test_short_images_tell_nothing(tmp_path, clock):
    heard = Heard()
    certify(ShippedModule(), tmp_path, Smoothing(), Standard(**SIZES), images=2, callbacks=[heard])
    assert heard.heard == []


@pytest.mark.parametrize("terminal", [False, True])
def test_a_log_gets_a_line_a_minute_and_a_terminal_all(tmp_path, monkeypatch, capsys, terminal):
    class Slow(CertificationProgress):
        def on_certify_example_end(self, trainer, module, votes):
            if len(trainer.shown) == 0:
                for seconds in (2, 59, 61, 62, 119, 125):
                    self.on_certify_samples(trainer, module, SampleProgress([7], 10 * seconds, 10100, float(seconds)))
                trainer.shown.append(votes)
            super().on_certify_example_end(trainer, module, votes)

        def on_certify_start(self, trainer, module, run):
            trainer.shown = []
            super().on_certify_start(trainer, module, run)

    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    certify(ShippedModule(), tmp_path, Smoothing(), Standard(**SIZES), images=2, callbacks=[Slow()])
    shown = capsys.readouterr().err
    assert [f"image 7: {10 * seconds}/10100 samples" in shown for seconds in (61, 125)] == [True] * 2
    assert [f"image 7: {10 * seconds}/10100 samples" in shown for seconds in (2, 59, 62, 119)] == [terminal] * 4
    assert "NFE/sample=" in shown
