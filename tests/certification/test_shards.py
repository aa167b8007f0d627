"""Votes do not depend on who takes them: any number of processes, shared by images or by samples, slow or resumed."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass

import pytest
import torch
from certification_runs import ShippedModule, certify, records

from deqcert.certification import CertificationCallback, identity, loop
from deqcert.errors import LedgerError, SettingError
from deqcert.runs import Ledger, verify_run
from deqcert.smoothing import Serialized, Standard
from deqcert.solvers import Picard
from deqcert.statistics import FixedAudit

SETTINGS = {"sigma": 0.5, "n0": 10, "n": 61, "batch_size": 16}
WHOLE = Serialized(**SETTINGS, solver=Picard(max_steps=1), reference=Picard(max_steps=6), audit=FixedAudit(30))
CHAINS = dataclasses.replace(WHOLE, chains=3)
STANDARD = Standard(**SETTINGS, solver=Picard(max_steps=2), chains=3)


@dataclass(frozen=True)
class SlowRank(Serialized):
    """The first rank takes its time."""

    def label_chain(self, engine, images, indices, chain):
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 0:
            time.sleep(0.3)
        return super().label_chain(engine, images, indices, chain)


@pytest.fixture(scope="module")
def module():
    return ShippedModule()


@pytest.fixture(scope="module")
def expected(module, tmp_path_factory):
    """Votes of one process by strategy."""
    return {
        strategy: certify(module, tmp_path_factory.mktemp("one"), strategy, images=5)
        for strategy in (WHOLE, CHAINS, STANDARD)
    }


def test_the_cheap_labels_and_the_audit_say_something(expected):
    for strategy in (WHOLE, CHAINS):
        assert sum(votes.mismatches for votes in expected[strategy]) > 0
        assert all(votes.audited == min(30, votes.n_a) for votes in expected[strategy])
    assert all(sum(votes.estimation) == 61 and sum(votes.selection) == 10 for votes in expected[STANDARD])
    assert len({tuple(map(tuple, (v.estimation for v in votes))) for votes in expected.values()}) == 3


@pytest.mark.parametrize("devices", [2, 3, 4])
@pytest.mark.parametrize(("strategy", "shard"), [(WHOLE, "images"), (CHAINS, "images"), (CHAINS, "samples")])
def test_votes_do_not_depend_on_the_number_of_processes(tmp_path, module, expected, devices, strategy, shard):
    votes = certify(module, tmp_path, strategy, images=5, devices=devices, shard=shard)
    assert votes == expected[strategy]
    shares = [len(lines) for lines in records(tmp_path).values()]
    assert len(shares) == devices
    assert min(shares) > 0


def test_samples_of_standard_smoothing(tmp_path, module, expected):
    assert certify(module, tmp_path, STANDARD, images=5, devices=2, shard="samples") == expected[STANDARD]
    assert not Ledger(tmp_path, {}).contents.audits


def test_one_image_is_shared_by_all(tmp_path, module, expected):
    assert certify(module, tmp_path, CHAINS, images=1, devices=3, shard="samples") == expected[CHAINS][:1]
    kinds = [[next(iter(line)) for line in lines] for lines in records(tmp_path).values()]
    assert kinds == [["labels_of_chain", "audit_of_chain", "index"], *[["labels_of_chain", "audit_of_chain"]] * 2]


@pytest.mark.parametrize(("strategy", "shard"), [(WHOLE, "images"), (CHAINS, "samples")])
def test_fewer_images_than_processes(tmp_path, module, expected, strategy, shard):
    assert certify(module, tmp_path, strategy, images=2, devices=4, shard=shard) == expected[strategy][:2]


@pytest.mark.parametrize("shard", ["images", "samples"])
def test_a_slow_process_changes_nothing(tmp_path, module, expected, shard):
    slow = SlowRank(**{field.name: getattr(CHAINS, field.name) for field in dataclasses.fields(CHAINS)})
    assert certify(module, tmp_path, slow, images=3, devices=2, shard=shard) == expected[CHAINS][:3]


@pytest.mark.parametrize(
    "stages",
    [
        [(1, "samples"), (2, "samples"), (1, "images")],
        [(3, "samples"), (1, "samples"), (4, "samples")],
        [(2, "images"), (3, "samples"), (1, "samples")],
    ],
)
def test_another_number_of_processes_and_another_shard_resume(tmp_path, module, expected, stages):
    """Each stage is cut off in the middle: the last line of every file is torn."""
    for images, (devices, shard) in zip((2, 4, 5), stages, strict=True):
        votes = certify(module, tmp_path, CHAINS, images=images, devices=devices, shard=shard)
        assert votes == expected[CHAINS][:images]
        if images < 5:
            for path in tmp_path.glob("votes.rank*.jsonl"):
                path.write_bytes(path.read_bytes()[:-30])


def test_what_is_labelled_is_not_labelled_again(tmp_path, module, expected):
    """A run that was killed between the chains of an image goes on with the rest."""
    certify(module, tmp_path, CHAINS, images=1, shard="samples")
    path = tmp_path / "votes.rank0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 3 + 3 + 1
    for kept in range(1, len(lines)):
        path.write_bytes(b"".join(lines[:kept]))
        assert certify(module, tmp_path, CHAINS, images=1, shard="samples") == expected[CHAINS][:1]
        again = path.read_bytes().splitlines(keepends=True)
        assert again[:kept] == lines[:kept]
        assert len(again) == len(lines)


def test_samples_need_chains(tmp_path, module):
    with pytest.raises(SettingError, match=r"smoothing\.chains = 1: must be >= 2"):
        certify(module, tmp_path, WHOLE, shard="samples")
    with pytest.raises(SettingError, match="shard = 'pixels': must be one of images, samples"):
        certify(module, tmp_path, WHOLE, shard="pixels")


def test_processes_that_would_certify_different_things_are_refused(tmp_path, module, monkeypatch):
    """E.g. a node with another version or another file of weights."""
    real = identity.classifier_digest
    monkeypatch.setattr(identity, "classifier_digest", lambda network: real(network) + str(os.getpid()))
    with pytest.raises(BaseException, match=r"would certify another run: classifier\.digest|cannot take part"):
        certify(module, tmp_path, WHOLE, devices=2)
    assert all(lines == [] for lines in records(tmp_path).values())


@pytest.mark.parametrize("elsewhere", ["local", "missing/deep"])
def test_processes_that_do_not_share_a_file_system_are_refused(tmp_path, module, monkeypatch, elsewhere):
    real = Ledger.open

    def open_locally(ledger, rank):
        ledger.directory = tmp_path / elsewhere if rank else ledger.directory
        return real(ledger, rank)

    (tmp_path / "local").mkdir()
    monkeypatch.setattr(loop, "_FILE_SYSTEM_SECONDS", 0.2)
    monkeypatch.setattr(Ledger, "open", open_locally)
    with pytest.raises(BaseException, match=r"must be on a file system that all processes share|cannot take part"):
        certify(module, tmp_path / "shared", WHOLE, devices=2, patience=10.0)


def test_a_run_beside_a_running_one_is_refused(tmp_path, module, expected):
    class Second(CertificationCallback):
        def on_certify_example_end(self, trainer, pl_module, votes):
            with pytest.raises(LedgerError, match="another run is writing to it"):
                certify(module, tmp_path, WHOLE, images=5)
            refused.append(votes.index)

    refused: list[int] = []
    assert certify(module, tmp_path, WHOLE, images=3, callbacks=[Second()]) == expected[WHOLE][:3]
    assert len(refused) == 3


def test_chains_have_noise_of_their_own(module, expected):
    """Without it the votes of three chains would be three times those of one."""
    from deqcert.seeding import Purpose

    image = torch.full((1, 8, 8), 0.5)
    batches = [torch.cat(list(CHAINS._noisy_batches(image, 3, Purpose.ESTIMATION, chain))) for chain in range(3)]
    assert [len(batch) for batch in batches] == [21, 20, 20]
    everything = torch.cat(batches)
    assert len(everything.flatten(1).unique(dim=0)) == 61
    whole = torch.cat(list(WHOLE._noisy_batches(image, 3, Purpose.ESTIMATION)))
    assert torch.equal(whole[:16], batches[0][:16])  # one chain is the first of several
    assert CHAINS.copies(Purpose.SELECTION, 0) == 10
    assert CHAINS.copies(Purpose.SELECTION, 1) == 0


def test_a_run_shared_by_samples_verifies(tmp_path, module):
    from deqcert.callbacks import CertifiedRadius

    certify(module, tmp_path, CHAINS, images=3, devices=2, shard="samples", callbacks=[CertifiedRadius()])
    assert verify_run(tmp_path).findings == []


@pytest.mark.parametrize("kept", range(1, 8))
def test_a_run_that_went_on_by_images_verifies(tmp_path, module, expected, kept):
    """It has left chains of an image unfinished."""
    from deqcert.callbacks import CertifiedRadius

    certify(module, tmp_path, CHAINS, images=1, shard="samples")
    path = tmp_path / "votes.rank0.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:kept]))
    assert certify(module, tmp_path, CHAINS, images=2, callbacks=[CertifiedRadius()]) == expected[CHAINS][:2]
    assert verify_run(tmp_path).findings == []
