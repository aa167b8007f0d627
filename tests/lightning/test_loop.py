from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
from contextlib import nullcontext
from dataclasses import dataclass

import certification_runs
import pytest
import torch
from certification_runs import records, trainer
from lightning.pytorch import LightningModule
from sampling_runs import votes_of
from torch import nn

from deqcert.data import Digits, TensorImages
from deqcert.errors import DataError, LedgerError, SettingError
from deqcert.lightning import CertificationCallback, CertificationProgress, CertifiedRadius, Trainer
from deqcert.lightning.ranks import Watch
from deqcert.runs import Ledger, read_tsv
from deqcert.smoothing import Execution, Serialized, Smoothing, Standard
from deqcert.statistics import CertificationRule

SMOOTHING = Smoothing(sigma=0.3)
SAMPLING = Standard(n0=10, n=50, batch_size=32)
CALLS: list[int] = []


@dataclass(frozen=True)
class Counting(Standard):
    def group_votes(self, g, engine, images, streams):
        CALLS.extend(stream.index for stream in streams)
        assert not torch.is_grad_enabled()
        return super().group_votes(g, engine, images, streams)


class Module(LightningModule):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10))

    def predict_step(self, batch, batch_idx):
        return self.network(batch[0])

    def validation_step(self, batch, batch_idx):
        self.log("seen", float(len(batch[0])), reduce_fx="sum", batch_size=1)


def certify(directory, images=4, devices=1, smoothing=SMOOTHING, sampling=SAMPLING, module=None, **settings):
    votes = certification_runs.certify(module or Module(), directory, smoothing, sampling, images, devices, **settings)
    return [each._replace(residual=0.0) for each in votes]


def lines(directory):
    """Image indices in the file of each rank."""
    return {name: [line["index"] for line in found] for name, found in records(directory).items()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return certify(tmp_path_factory.mktemp("expected"), images=7)


def test_votes_are_the_strategy_s(expected):
    examples = Digits(max_examples=7)
    examples.setup("predict")
    g = SMOOTHING.of(Module().network.eval())
    for votes, (image, label, index) in zip(expected, examples.certification_set(), strict=True):
        by_hand = votes_of(SAMPLING, g, image, index)._replace(seconds=0.0, residual=0.0, index=index, label=label)
        assert votes == by_hand
    assert [each.index for each in expected] != list(range(7))  # original indices, not positions


def test_certificates_are_of_all_images_by_the_rule_of_the_callback(tmp_path, expected):
    """Also of those that an earlier run has certified."""
    for rule, callbacks in ((CertificationRule(), []), (CertificationRule(0.3), [CertifiedRadius(alpha=0.3)])):
        data = Digits(max_examples=7)
        own = trainer(callbacks=callbacks)
        given = own.certify(Module(), data, SMOOTHING, SAMPLING, ledger_dir=str(tmp_path))
        assert given == [rule.certify(votes) for votes in expected]
    assert any(each.correct for each in given)


def test_the_seed_is_that_of_the_streams(tmp_path, expected):
    votes = certify(tmp_path, 2, seed=1)
    assert votes != expected[:2]
    with pytest.raises(LedgerError, match=r"seed = 1 there, 0 here"):
        certify(tmp_path, 2)
    with pytest.raises(SettingError, match=r"^seed = "):
        certify(tmp_path, 2, seed=2**64)


def test_what_the_ledger_holds_is_not_done_again(tmp_path, expected):
    sampling = Counting(n0=10, n=50, batch_size=32)
    indices = [each.index for each in expected]
    for images, new in ((2, indices[:2]), (5, indices[2:5]), (5, []), (3, [])):
        CALLS.clear()
        assert certify(tmp_path, images, sampling=sampling) == expected[:images]
        assert new == CALLS
    assert lines(tmp_path) == {"votes.rank0.jsonl": indices[:5]}


def test_two_processes_give_the_votes_of_one(tmp_path, expected):
    assert certify(tmp_path, 7, devices=2) == expected
    indices = [each.index for each in expected]
    assert lines(tmp_path) == {"votes.rank0.jsonl": indices[::2], "votes.rank1.jsonl": indices[1::2]}


class TwiceDigits(Digits):
    def load_split(self, split):
        once = super().load_split(split)
        return TensorImages(once.images.repeat(2, 1, 1, 1), once.labels.repeat(2), once.classes, once.name)


def test_many_images_come_back_from_forked_processes(tmp_path):
    """Their certificates are more than a pipe holds."""
    sampling = Standard(n0=1, n=10, batch_size=10)
    certificates = trainer(devices=2).certify(Module(), TwiceDigits(), SMOOTHING, sampling, ledger_dir=str(tmp_path))
    assert len({each.index for each in certificates}) > 800


def test_images_side_by_side_have_the_votes_of_images_alone(tmp_path, expected):
    sampling = dataclasses.replace(SAMPLING, execution=Execution(images=3))
    indices = [each.index for each in expected]
    assert certify(tmp_path, 2, sampling=sampling) == expected[:2]
    assert certify(tmp_path, 7, sampling=sampling) == expected  # groups of 3 and 2
    assert lines(tmp_path) == {"votes.rank0.jsonl": indices}
    assert certify(tmp_path / "two", 7, devices=2, sampling=sampling) == expected
    with pytest.raises(LedgerError, match=r"sampling\.execution\.images = 3 there, None here"):
        certify(tmp_path, 7)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_another_number_of_processes_resumes(tmp_path, expected, first, second):
    assert certify(tmp_path, 3, devices=first) == expected[:3]
    assert certify(tmp_path, 7, devices=second) == expected
    done = [index for indices in lines(tmp_path).values() for index in indices]
    assert sorted(done) == sorted({each.index for each in expected})


def test_callbacks_do_not_wait_for_the_other_process(tmp_path, expected):
    """A collective in a callback hangs as soon as the ranks have different numbers of images left."""
    certify(tmp_path, 7, devices=2, callbacks=[CertifiedRadius(), CertificationProgress()], patience=30.0)
    rows = read_tsv(tmp_path / "certificates.tsv")
    assert [row.index for row in rows] == [each.index for each in expected]


def test_more_processes_than_images(tmp_path, expected):
    assert certify(tmp_path, 1, devices=2) == expected[:1]
    assert [len(indices) for indices in lines(tmp_path).values()] == [1, 0]


def test_a_torn_line_is_certified_again(tmp_path, expected):
    certify(tmp_path, 4)
    path = tmp_path / "votes.rank0.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert certify(tmp_path, 4) == expected[:4]
    assert lines(tmp_path)["votes.rank0.jsonl"] == [each.index for each in expected[:4]]


class Recorder(CertificationCallback):
    def __init__(self):
        self.events = []

    def on_certify_start(self, trainer, module, run):
        done = sorted(votes.index for votes in run.done)
        self.events.append(("start", len(run.examples), done, run.examples.num_classes, run.directory))
        self.run = run

    def on_certify_example_end(self, trainer, module, votes):
        written = lines(self.run.directory).values()
        assert any(votes.index in indices for indices in written)  # safe before anybody hears of it
        self.events.append(("example", votes.index))

    def on_certify_end(self, trainer, module, votes):
        self.events.append(("end", [v.index for v in votes]))


def test_hooks_come_in_order(tmp_path, expected):
    indices = [each.index for each in expected]
    first, second = Recorder(), Recorder()
    certify(tmp_path, 2, callbacks=[first])
    certify(tmp_path, 4, callbacks=[second])
    assert first.events == [
        ("start", 2, [], 10, tmp_path), ("example", indices[0]), ("example", indices[1]), ("end", indices[:2])
    ]  # fmt: skip
    assert second.events == [
        ("start", 4, indices[:2], 10, tmp_path), ("example", indices[2]), ("example", indices[3]), ("end", indices[:4])
    ]  # fmt: skip
    assert (second.run.method.smoothing, second.run.method.sampling) == (SMOOTHING, SAMPLING)
    assert second.run.name == "standard"
    assert second.run.identity["smoothing"]["sigma"] == 0.3


def test_rank_zero_hears_of_every_image(tmp_path, expected):
    class OnDisk(Recorder):
        def on_certify_end(self, trainer, module, votes):
            heard = sorted(index for kind, index, *_ in self.events if kind == "example")
            (self.run.directory / f"heard{trainer.global_rank}.json").write_text(json.dumps(heard))

    certify(tmp_path, 5, devices=2, callbacks=[OnDisk()])
    assert json.loads((tmp_path / "heard0.json").read_text()) == [each.index for each in expected[:5]]


def test_other_ranks_look_for_votes_only_once_they_have_done_their_own(tmp_path, monkeypatch):
    """N ranks that look into N files after each image would keep a file system busy."""
    events = []
    original_append, original_refresh = Ledger.append, Ledger.refresh

    def append(self, votes):
        events.append("append")
        original_append(self, votes)

    def refresh(self):
        events.append("refresh")
        return original_refresh(self)

    class OnDisk(CertificationCallback):
        def on_certify_end(self, trainer, module, votes):
            (tmp_path / f"events{trainer.global_rank}.json").write_text(json.dumps(events))

    monkeypatch.setattr(Ledger, "append", append)
    monkeypatch.setattr(Ledger, "refresh", refresh)
    certify(tmp_path, 7, devices=2, callbacks=[OnDisk()])
    own = json.loads((tmp_path / "events1.json").read_text())
    assert own[:4] == ["append"] * 3 + ["refresh"]
    assert set(own[4:]) <= {"refresh"}
    first = json.loads((tmp_path / "events0.json").read_text())
    assert first[:8] == ["refresh", *["append", "refresh"] * 3, "append"]


def test_another_sigma_than_in_training_is_warned_about(tmp_path):
    module = Module()
    module.checkpoint_sigma = 0.25
    with pytest.warns(UserWarning, match=r"trained at sigma = 0\.25, but is certified at sigma = 0\.3"):
        certify(tmp_path, 1, module=module)
    module.checkpoint_sigma = 0.3
    certify(tmp_path, 1, module=module)  # silent: warnings are errors here


@pytest.mark.parametrize("devices", [1, 2])
def test_sigterm_ends_the_run_with_143_and_keeps_what_is_done(tmp_path, expected, devices):
    class Stop(CertificationCallback):
        def on_certify_example_end(self, trainer, module, votes):
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    if devices == 1:
        with pytest.raises(SystemExit) as caught:
            certify(tmp_path, 7, callbacks=[Stop()])
        assert caught.value.code == 128 + signal.SIGTERM == 143
        assert lines(tmp_path) == {"votes.rank0.jsonl": [expected[0].index]}
    else:
        with pytest.raises(BaseException, match="143"):
            certify(tmp_path, 7, devices=2, callbacks=[Stop()])
        assert 1 <= sum(map(len, lines(tmp_path).values())) < 7
    assert signal.getsignal(signal.SIGTERM) == handler
    assert certify(tmp_path, 7) == expected


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"module": Module(seed=1)}, r"classifier\.digest"),
        ({"smoothing": Smoothing(sigma=0.4)}, r"smoothing\.sigma"),
        ({"sampling": Standard(n0=10, n=51, batch_size=32)}, r"sampling\.n "),
    ],
)
def test_another_run_in_the_same_directory_is_refused(tmp_path, changes, field):
    certify(tmp_path, 1)
    before = (tmp_path / "votes.rank0.jsonl").read_bytes()
    with pytest.raises(LedgerError, match=field):
        certify(tmp_path, 2, **changes)
    assert (tmp_path / "votes.rank0.jsonl").read_bytes() == before


def test_a_rank_does_not_wait_for_ever(tmp_path, monkeypatch):
    from deqcert.lightning import loop

    monkeypatch.setattr(loop, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(Ledger, "append", lambda self, votes: None)  # rank 1's votes never arrive
    with pytest.raises(BaseException, match="another rank has stopped"):
        certify(tmp_path, 2, devices=2, patience=0.2)


@pytest.mark.parametrize("devices", [1, 2])
def test_who_waits_for_a_parent_that_is_gone(tmp_path, expected, monkeypatch, devices):
    """A shell may log out from a run of its own; a launched rank ends with its launcher."""
    parents = itertools.count(1000)
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    if devices == 1:
        assert certify(tmp_path, 7) == expected
    else:
        with pytest.raises(BaseException, match=r"the process that launched this rank is gone|exit code 1"):
            certify(tmp_path, 7, devices=2)


@pytest.mark.parametrize("launches", [True, False])
def test_the_process_that_launches_the_others_does_not_wait_for_its_shell(monkeypatch, launches):
    monkeypatch.setenv("LOCAL_RANK", "0")  # of a cluster, or what Lightning's launcher sets for itself
    monkeypatch.setattr(os, "getppid", itertools.count(1000).__next__)
    own = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    own.strategy.launcher.procs = [object()] if launches else []
    watch = Watch(own, patience=1)
    with nullcontext() if launches else pytest.raises(LedgerError, match="launched this rank is gone"):
        watch.check(news=True, missing=1)


@pytest.mark.parametrize("patience", [0.0, -1.0])
def test_patience_must_be_positive(tmp_path, patience):
    with pytest.raises(SettingError, match="patience"):
        certify(tmp_path, 1, patience=patience)


def test_a_data_module_without_certification_set_is_refused(tmp_path):
    with pytest.raises(DataError, match="certification_set"):
        trainer().certify(Module(), None, SMOOTHING, SAMPLING, ledger_dir=str(tmp_path))


def test_the_trainer_is_as_before_afterwards(tmp_path):
    data = Digits(max_examples=2, eval_batch_size=250)
    data.predict_dataloader = data.test_dataloader
    own = trainer()
    loop = own.predict_loop
    own.certify(Module(), data, SMOOTHING, SAMPLING, ledger_dir=str(tmp_path))
    assert own.predict_loop is loop
    predictions = own.predict(Module(), data)
    assert [tuple(each.shape) for each in predictions] == [(250, 10)] * 2
    assert own.validate(Module(), data, verbose=False) == [{"seen": 500.0}]
    with pytest.raises(SettingError, match=r"^sampling = 'Serialized'"):
        own.certify(Module(), data, SMOOTHING, Serialized(), ledger_dir=str(tmp_path / "other"))
    assert own.predict_loop is loop


def test_a_checkpoint_is_restored_before_the_digest_is_taken(tmp_path):
    own, weights = trainer(), Module(seed=5)
    own.certify(weights, Digits(max_examples=1), SMOOTHING, SAMPLING, ledger_dir=str(tmp_path / "a"))
    own.save_checkpoint(tmp_path / "c.ckpt")
    certify(tmp_path / "a", 2, module=Module(seed=6), ckpt_path=str(tmp_path / "c.ckpt"))
    assert len(lines(tmp_path / "a")["votes.rank0.jsonl"]) == 2
