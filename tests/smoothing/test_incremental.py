"""Votes of a changed network from the predictions of an earlier run, on networks whose every answer is known."""

from __future__ import annotations

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from certification_runs import ShippedModule, certify, records
from lightning.pytorch import LightningModule
from sampling_runs import measurement
from torch import nn

from deqcert.data import Digits
from deqcert.errors import LedgerError, SettingError
from deqcert.lightning import CertifiedRadius
from deqcert.runs import read_run, verify_run, write_results
from deqcert.runs.lines import START, seal, unseal
from deqcert.seeding import Purpose
from deqcert.smoothing import Incremental, Serialized, Smoothing, Standard, Stream
from deqcert.smoothing.engine import count_classes
from deqcert.solvers import Anderson
from deqcert.statistics import AdaptiveAudit, CertificationRule, FixedAudit, GroupSequential, clopper_pearson_lower
from deqcert.statistics.packing import packed

SMALL = {"n0": 10, "n": 120, "batch_size": 50}
SMOOTHING = Smoothing(sigma=0.4)
STORED = Standard(**SMALL, store_predictions=True)


class Linear(LightningModule):
    """A classifier of digits that noise often changes, moved by ``shift`` from a fixed one."""

    def __init__(self, shift=0.0, classes=10):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
        weight, step = (torch.randn(classes, 64, generator=generator) for _ in range(2))
        self.network[1].weight.data = weight + shift * step
        self.network[1].bias.data.zero_()

    def predict_step(self, batch, batch_idx):
        return self.network(batch[0])


def run(directory, sampling, shift=0.0, images=4, smoothing=SMOOTHING, module=None, **settings):
    module = Linear(shift) if module is None else module
    return certify(module, directory, smoothing, sampling, images, callbacks=[CertifiedRadius(alpha=0.05)], **settings)


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "old"
    run(directory, STORED, images=6)
    return directory


def incremental(old, **changes):
    return Incremental(**(SMALL | {"audit": FixedAudit(30), "previous": str(old)} | changes))


def images_of(count):
    data = Digits(max_examples=count)
    data.setup("predict")
    return list(data.certification_set())


def true_predictions(shift, image, index, purpose=Purpose.ESTIMATION):
    """What f says of each noisy sample of an image."""
    g = SMOOTHING.of(Linear(shift).network.eval())
    count = SMALL["n0"] if purpose is Purpose.SELECTION else SMALL["n"]
    noisy = torch.cat(list(g.noisy(image, Stream(0, index), purpose, count, SMALL["batch_size"])))
    return g.base(noisy).argmax(dim=1)


def rewritten(directory, target, change):
    """Copy a run with other ledger lines, sealed as somebody would who knows how."""
    shutil.copytree(directory, target)
    path = target / "votes.rank0.jsonl"
    content, digest, sealed = b"", START, START
    for line in path.read_bytes().splitlines():
        record, digest = unseal(line, digest)
        if "index" in record:
            change(record)
        new, sealed = seal(record, sealed)
        content += new
    path.write_bytes(content)
    return target


# What is stored.


def test_stored_predictions_are_those_of_the_samples_and_change_nothing_else(old, tmp_path):
    plain = run(tmp_path, Standard(**SMALL), images=6)
    for votes, without, (image, _, index) in zip(read_run(old).votes, plain, images_of(6), strict=True):
        assert votes.sample_predictions().tolist() == true_predictions(0.0, image, index).tolist()
        assert measurement(votes, "predictions") == measurement(without)
    identities = [dict(read_run(each).identity) for each in (tmp_path, old)]
    assert "store_predictions" not in identities[0]["sampling"]
    assert identities[1]["sampling"].pop("store_predictions") is True
    assert identities[0] == identities[1]
    assert all("predictions" not in line for lines in records(tmp_path).values() for line in lines)
    assert "predictions" not in (old / "certificates.json").read_text().replace("store_predictions", "")
    assert verify_run(old).findings == []


def test_a_run_with_and_one_without_predictions_do_not_mix(old):
    with pytest.raises(LedgerError, match=r"sampling\.store_predictions = True there, None here"):
        run(old, Standard(**SMALL), images=6)


def test_predictions_that_the_counts_contradict_are_damage(old, tmp_path):
    def exchange(record):
        record["predictions"] = packed(np.zeros(120, dtype=np.int64), 10)

    with pytest.raises(LedgerError, match=r"line 2: damaged .*predictions are \[120, 0"):
        read_run(rewritten(old, tmp_path / "run", exchange))


def test_serialized_votes_store_what_f_says_of_escalated_samples(tmp_path):
    """With all samples left audited and no mismatch, everything that is stored is what f says."""
    smoothing = Smoothing(sigma=0.5, solver=Anderson(max_steps=20))
    chain = {"proposal": Anderson(max_steps=1), "escalation": 0.3, "audit": FixedAudit(40)}
    sampling = Serialized(**SMALL, **chain, store_predictions=True)
    votes = run(tmp_path / "srs", sampling, module=ShippedModule(), smoothing=smoothing)
    true = run(tmp_path / "standard", STORED, module=ShippedModule(), smoothing=smoothing)
    changed = 0
    for each, right in zip(votes, true, strict=True):
        stored, said = each.sample_predictions(), right.sample_predictions()
        assert count_classes(torch.from_numpy(stored), 10) == tuple(
            rest + known for rest, known in zip(each.rest, each.escalated, strict=True)
        )
        assert (stored != said).sum() <= 120 - each.escalations
        changed += each.escalated != each.escalated_from
    assert changed > 0  # some escalated sample was predicted otherwise
    plain = run(tmp_path / "plain", dataclasses.replace(sampling, store_predictions=False), module=ShippedModule(),
                smoothing=smoothing)  # fmt: skip
    assert [measurement(each, "predictions") for each in votes] == list(map(measurement, plain))
    assert verify_run(tmp_path / "srs").findings == []


# Certifying a changed network.


def test_the_same_network_has_no_mismatch(old, tmp_path):
    for votes, before in zip(run(tmp_path, incremental(old), images=6), read_run(old).votes, strict=True):
        assert (votes.selection, votes.estimation) == (before.selection, before.estimation)
        assert votes.mismatches == 0
        assert votes.escalations == 120 - votes.n_a
        assert votes.escalated == votes.escalated_from
    assert verify_run(tmp_path).findings == []


@pytest.mark.parametrize("escalation", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("sides", ["one", "two"])
def test_votes_are_those_of_a_direct_computation(escalation, sides, old, tmp_path):
    shift, size = 0.15, 120
    rule = {"alpha": 0.05, "sides": sides}
    sampling = incremental(old, escalation=escalation, audit=FixedAudit(size), sides=sides)
    found = certify(Linear(shift), tmp_path, SMOOTHING, sampling, 6, callbacks=[CertifiedRadius(**rule)])
    flipped = 0
    for votes, (image, label, index) in zip(found, images_of(6), strict=True):
        chosen = true_predictions(shift, image, index, Purpose.SELECTION)
        true, cheap = true_predictions(shift, image, index), true_predictions(0.0, image, index)
        a = int(chosen.bincount().argmax())
        asked = (cheap != a).nonzero().flatten()[: int(escalation * 120)]
        flipped += int((cheap != true).sum())
        cheap[asked] = true[asked]
        left = torch.ones(120, dtype=torch.bool)
        left[asked] = False
        population = left & (cheap == a)
        assert (votes.index, votes.label) == (index, label)
        assert votes.selection == count_classes(chosen, 10)
        assert votes.estimation == count_classes(cheap, 10)
        assert votes.escalations == len(asked)
        assert votes.escalated == votes.escalated_from == (count_classes(true[asked], 10) if len(asked) else ())
        assert votes.audited == votes.population == int(population.sum())  # a complete audit
        assert votes.mismatches == int((true[population] != a).sum())
        if sides == "two":
            assert votes.audited_as == count_classes(cheap[left], 10)
            assert votes.mistaken == count_classes(true[left & (true != cheap)], 10)
        if escalation == 1.0:  # nothing is unknown
            assert votes.known(a) + votes.population - votes.mismatches == int((true == a).sum())
        assert votes.nfe_fast == 10
        assert votes.nfe_audit == len(asked) + votes.examined
    assert flipped > 20
    assert verify_run(tmp_path).findings == []


def test_audits_are_of_a_uniform_part_that_the_earlier_run_has_not_drawn(old, tmp_path):
    drawn = []
    for part in (0, int(read_run(old).digest[:8], 16)):
        votes = read_run(old).votes[0]._replace(audited=0)
        sampling = incremental(old, audit=FixedAudit(5))
        nothing = np.zeros(0, dtype=np.int64)
        predicted = torch.from_numpy(votes.sample_predictions())
        drawn.append(sampling.draw_audit(votes, predicted, nothing, Stream(0, 5), part).tolist())
    assert drawn[0] != drawn[1]


class Lying:
    """Other predictions in the ledger of the old run, which fit its counts."""

    def __init__(self, shift, how):
        self.shift, self.how = shift, how
        self.images = {index: image for image, _, index in images_of(6)}
        self.generator = np.random.default_rng(0)

    def __call__(self, record):
        true = true_predictions(self.shift, self.images[record["index"]], record["index"]).numpy()
        if self.how == "random":
            lies = self.generator.integers(-1, 10, 120)
        elif self.how == "everything":  # all of the class that will be selected
            lies = np.full(120, np.bincount(true).argmax())
        else:  # wrong wherever that can be
            lies = (true + 1) % 10
        record["predictions"] = packed(lies, 10)
        record["estimation"] = np.bincount(lies[lies >= 0], minlength=10).tolist()


@pytest.mark.parametrize("how", ["random", "everything", "wrong"])
def test_a_lying_run_costs_radius_and_proves_nothing_false(how, old, tmp_path):
    """No bound is above the one from all true answers, which fails no more often than it may."""
    lying = rewritten(old, tmp_path / "lying", Lying(0.15, how))
    write_results_again(lying)
    rule = CertificationRule(0.05)
    honest = []
    for escalation in (0.0, 1.0):
        sampling = incremental(lying, escalation=escalation, audit=AdaptiveAudit())
        found = run(tmp_path / f"new{escalation}", sampling, 0.15, images=6)
        for votes, (image, _, index) in zip(found, images_of(6), strict=True):
            true = int((true_predictions(0.15, image, index) == votes.selected).sum())
            bound = rule.bounds(votes)[0]
            assert bound <= float(clopper_pearson_lower(true, 120, 0.05))
            honest.append(bound > 0.5)
            assert votes.known(votes.selected) <= true
    assert any(honest) or how != "wrong"  # all are asked about, so that the true ones certify


def write_results_again(directory):
    """As the votes are now."""
    (directory / "certificates.json").unlink()
    old = read_run(directory)
    write_results(directory, old.votes, CertificationRule(0.05), old.identity, radii=[0.0])


def test_a_chain_of_changes(old, tmp_path):
    """An incremental run stores what it has found, and serves the next change."""
    first = run(tmp_path / "first", incremental(old, store_predictions=True), 0.1)
    for votes in first:
        assert np.bincount(votes.sample_predictions(), minlength=10).tolist() == list(votes.estimation)
    same = run(tmp_path / "second", incremental(tmp_path / "first", audit=FixedAudit(120)), 0.1)
    fresh = run(tmp_path / "fresh", incremental(old, audit=FixedAudit(120)), 0.1)
    for votes, other in zip(same, fresh, strict=True):
        assert votes.mismatches == other.mismatches  # what was audited, and nothing else, is not in the predictions
        assert votes.n_a == other.n_a


def test_a_run_resumes_and_refuses_another_earlier_run(old, tmp_path):
    target = tmp_path / "new"
    expected = run(tmp_path / "whole", incremental(old), 0.1)
    run(target, incremental(old), 0.1, images=2)
    assert run(target, incremental(old), 0.1) == expected
    run(tmp_path / "other", STORED, 0.05)
    with pytest.raises(LedgerError, match=r"sampling\.previous = '[0-9a-f]{64}' there, '[0-9a-f]{64}' here"):
        run(target, incremental(tmp_path / "other"), 0.1)


def test_two_processes_find_what_one_finds(old, tmp_path):
    run(tmp_path / "one", incremental(old), 0.1)
    run(tmp_path / "two", incremental(old), 0.1, devices=2)
    assert read_run(tmp_path / "two").digest == read_run(tmp_path / "one").digest
    assert len(records(tmp_path / "two")) == 2


def test_images_go_side_by_side(old):
    g, sampling = SMOOTHING.of(Linear(0.1).network.eval()), incremental(old, audit=FixedAudit(20))
    images = images_of(3)
    streams = [Stream(0, index) for *_, index in images]
    stacked = torch.stack([image for image, *_ in images])
    together = sampling.group_votes(g, sampling.engine(g, stacked[0]), stacked, streams)
    alone = [sampling.votes(g, image, stream) for image, stream in zip(stacked, streams, strict=True)]
    assert list(map(measurement, together)) == list(map(measurement, alone))
    assert len({votes.escalations for votes in alone}) > 1


# What is refused.


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"seed": 1}, {}, "seed = 0 there, 1 here"),
        ({"smoothing": Smoothing(sigma=0.5)}, {}, r"smoothing\.sigma = 0\.4 there, 0\.5 here"),
        ({"smoothing": Smoothing(sigma=0.4, noise="quantised")}, {}, r"smoothing\.noise = 'float32' there"),
        ({}, {"n": 119}, r"sampling\.n = 120 there, 119 here"),
        ({}, {"batch_size": 60}, r"sampling\.batch_size = 50 there, 60 here"),
        ({"images": 9}, {}, r"has no votes of image \d+"),
        ({"module": Linear(classes=11)}, {}, "has 10 classes, the network has 11"),
    ],
)
def test_other_noise_or_images_are_refused(settings, changes, message, old, tmp_path):
    with pytest.raises(SettingError, match=rf"^sampling\.previous = '{old}': .*{message}"):
        run(tmp_path, incremental(old, **changes), **settings)


def test_other_data_are_refused(old, tmp_path):
    sampling = incremental(old)
    identity = {**read_run(old).identity, "data": {"split": "test", "sha256": "0"}}
    with pytest.raises(SettingError, match=r"data\.sha256 = '[0-9a-f]+' there, '0' here"):
        sampling.demand_fitting(identity, [])


def test_a_stream_of_its_own_is_refused_in_python(old):
    image, _, index = images_of(1)[0]
    g = SMOOTHING.of(Linear().network.eval())
    with pytest.raises(SettingError, match="seed = 0 there"):
        g.certify(image, sampling=incremental(old))
    rule = CertificationRule(0.05)
    assert g.certify(image, sampling=incremental(old), rule=rule, stream=Stream(0, index)).index == -1


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Standard(**SMALL), "was taken without --sampling.store_predictions true"),
        (STORED, "is not finished"),
        (
            Standard(n0=10, n=120, batch_size=40, stopping=GroupSequential(looks=(40, 120)), store_predictions=True),
            r"sampling\.stopping = \{",  # n depends on votes on this noise
        ),
    ],
)
def test_runs_that_cannot_predict_are_refused(sampling, message, tmp_path):
    run(tmp_path / "old", sampling, images=1)
    if "finished" in message:
        (tmp_path / "old" / "certificates.json").unlink()
    with pytest.raises(SettingError, match=message):
        run(tmp_path / "new", incremental(tmp_path / "old"), images=1)
    assert not (tmp_path / "new").exists()


def test_what_is_no_run_or_damaged_is_refused(old, tmp_path):
    with pytest.raises(LedgerError, match="holds no ledger"):
        run(tmp_path / "new", incremental(tmp_path / "nothing"), images=1)
    damaged = shutil.copytree(old, tmp_path / "damaged")
    path = damaged / "votes.rank0.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"n0": 10', b'"n0": 11', 1))
    with pytest.raises(LedgerError, match=r"line \d: damaged"):
        run(tmp_path / "new", incremental(damaged), images=1)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        *(({"escalation": share}, "escalation") for share in (-0.1, 1.1, math.nan, True, None)),
        ({"audit": FixedAudit(121)}, r"audit\.samples"),
        ({"sides": "three"}, "sides"),
    ],
)
def test_settings_are_refused_by_name(settings, field, old):
    with pytest.raises(SettingError, match=f"^{field} = "):
        incremental(old, **settings)


def test_verification_knows_what_f_is_asked(old, tmp_path):
    run(tmp_path / "new", incremental(old, escalation=0.2), 0.1, images=6)

    def one_less(record):
        c = next(c for c, count in enumerate(record["escalated"]) if count)
        record["escalations"] -= 1
        for field in ("escalated", "escalated_from"):
            record[field][c] -= 1

    changed = rewritten(tmp_path / "new", tmp_path / "changed", one_less)
    findings = verify_run(changed).findings
    assert [text for text in findings if "escalations = 23, but the run escalates 24" in text]
    without = rewritten(old, tmp_path / "without", lambda record: record.pop("predictions"))
    assert [text for text in verify_run(without).findings if "predictions are not stored" in text]
