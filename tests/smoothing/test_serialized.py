"""Warm-started predictions and their audit, on a cell whose every iterate is known."""

from __future__ import annotations

import math

import pytest
import torch
from sampling_runs import SMALL, noisy, recorded_votes, smoothed, votes_of
from torch import nn

from deqcert.errors import SettingError
from deqcert.seeding import Purpose
from deqcert.smoothing import Serialized, SmoothedClassifier, Standard, Stream
from deqcert.solvers import Broyden, Picard
from deqcert.statistics import AdaptiveAudit, FixedAudit

IMAGE = torch.full((1, 4, 4), 0.5)
CONVERGED = Picard(max_steps=60)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"start": "warm"}, "start"),
        ({"warmup_steps": 0}, "warmup_steps"),
        ({"precision": "float64"}, "precision"),
        ({"n": 10, "audit": FixedAudit(11)}, r"audit\.samples"),
    ],
)
def test_settings_are_refused_by_name(settings, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        Serialized(**settings)


def test_another_classifier_than_a_deq_is_refused():
    with pytest.raises(SettingError, match=r"^sampling = 'Serialized': .*Flatten"):
        votes_of(Serialized(**SMALL), SmoothedClassifier(nn.Flatten().eval(), 0.5), IMAGE)


def test_names_are_those_of_the_field(threshold_deq):
    base = smoothed(threshold_deq()).base
    names = [Serialized(proposal=Picard(max_steps=1)), Serialized(start="clean"), Serialized(proposal=Broyden(14))]
    assert [each.name(base) for each in names] == ["SRS-1N", "SRS-3A-clean", "SRS-14B"]


def serialized(**changes):
    """Predictions that converge, unless told otherwise."""
    return Serialized(**(SMALL | {"proposal": CONVERGED, "audit": FixedAudit(20)} | changes))


def converged(network):
    return smoothed(network, sigma=1.0, solver=CONVERGED)


def means(sampling, g, index):
    return noisy(sampling, g, IMAGE, index).flatten(1).mean(dim=1)


@pytest.mark.parametrize("start", ["previous", "first", "clean"])
def test_a_converged_chain_gives_the_standard_votes_and_no_mismatch(start, threshold_deq):
    sampling = serialized(start=start, warmup_steps=60, audit=FixedAudit(50))
    g = converged(threshold_deq())
    for index in range(5):
        votes, expected = (votes_of(each, g, IMAGE, index) for each in (sampling, Standard(**SMALL)))
        assert (votes.selection, votes.estimation) == (expected.selection, expected.estimation)
        assert min(votes.estimation) > 0
        assert (votes.audited, votes.mismatches) == (votes.n_a, 0)


def one_step_from_clean(**changes):
    """S = A where ū + u > t, with ū = 1/2 the mean of the clean image; Y = A where 2u > t."""
    return serialized(proposal=Picard(max_steps=1), start="clean", n0=200, n=300, batch_size=16, **changes)


def test_a_full_audit_finds_exactly_the_true_mismatches(threshold_deq):
    threshold = 0.7
    sampling, g = one_step_from_clean(audit=FixedAudit(300)), converged(threshold_deq(threshold))
    for index in range(4):
        votes, u = votes_of(sampling, g, IMAGE, index), means(sampling, g, index)
        predicted, true = 0.5 + u > threshold, 2 * u > threshold
        assert votes.selected == 0
        assert votes.n_a == votes.audited == int(predicted.sum())
        assert votes.mismatches == int((predicted & ~true).sum()) >= 10


def test_a_partial_audit_is_of_a_uniform_subset_of_the_agreeing_samples_on_their_own_noise(threshold_deq):
    threshold, size = 0.7, 40
    sampling = one_step_from_clean(audit=FixedAudit(size))
    positions, shares = [], []
    for index in range(60):
        classifier = threshold_deq(threshold)
        g = converged(classifier)
        votes = recorded_votes(sampling, g, IMAGE, index)
        assert votes.audited == size
        batches = 1 + math.ceil(200 / 16) + math.ceil(300 / 16)  # the clean image, the chain
        audited = torch.cat(classifier.inputs[batches:]).flatten(1)
        assert [len(x) for x in classifier.inputs[batches:]] == [16, 16, 8]

        samples = noisy(sampling, g, IMAGE, index).flatten(1)
        same = (audited[:, None] == samples).all(dim=2)
        assert (same.sum(dim=1) == 1).all()  # each audited sample is one of the estimation samples,
        places = same.int().argmax(dim=1)
        assert len(set(places.tolist())) == size  # none is audited twice,
        u = samples.mean(dim=1)
        predicted, true = 0.5 + u > threshold, 2 * u > threshold
        assert predicted[places].all()  # the SRS prediction of all is the selected class,
        assert votes.mismatches == int((~true[places]).sum())
        agreeing = torch.nonzero(predicted).flatten()
        positions.append(float(torch.searchsorted(agreeing, places).float().mean() / (len(agreeing) - 1)))
        shares.append(votes.mismatches / size - float((~true[predicted]).float().mean()))
    # … and they lie anywhere: the mean place of 40 uniform ones has a standard deviation of about 0.04 per image.
    assert abs(sum(positions) / 60 - 0.5) < 0.025
    assert abs(sum(shares) / 60) < 0.04


@pytest.mark.parametrize("samples", [1, 5, 50])
def test_audited_is_the_smaller_of_the_setting_and_what_agrees(samples, threshold_deq):
    g = smoothed(threshold_deq(), sigma=1.0, solver=Picard(max_steps=11))
    votes = votes_of(serialized(audit=FixedAudit(samples)), g, IMAGE)
    assert 5 < votes.n_a < 50
    assert votes.audited == min(samples, votes.n_a)
    assert votes.nfe_audit == votes.audited * 11


def test_adaptive_audit_depends_on_n_a(threshold_deq):
    audit = AdaptiveAudit(radius_loss=0.3, alpha=0.01)
    sizes = set()
    for threshold in (-1.0, 0.6, 5.0):
        votes = votes_of(serialized(n=200, audit=audit), smoothed(threshold_deq(threshold), solver=CONVERGED), IMAGE)
        assert votes.audited == audit.size(votes.n_a, 200)
        sizes.add(votes.audited)
    assert len(sizes) > 1


def test_starts_differ_in_what_the_chain_remembers(threshold_deq):
    """One plain step from the cache at rate 1/2, with two samples per batch, against the recursion by hand."""
    seen = []

    class Spy(threshold_deq):
        def head(self, z):
            seen.append(z.clone())
            return super().head(z)

    g = converged(Spy())
    for start in ("previous", "first", "clean"):
        chain = {"proposal": Picard(max_steps=1), "warmup_steps": 1, "n0": 2, "n": 6, "batch_size": 2}
        sampling = serialized(start=start, audit=FixedAudit(6), **chain)
        engine = sampling.engine(g, IMAGE)
        seen.clear()  # of the engine's own checks
        sampling.group_votes(g, engine, IMAGE[None], [Stream(0, 0)])
        samples = torch.cat(
            [noisy(sampling, g, IMAGE, purpose=each) for each in (Purpose.SELECTION, Purpose.ESTIMATION)]
        )
        u = list(samples.flatten(1).mean(dim=1, keepdim=True).split(2))
        if start == "clean":
            expected = [torch.ones(1, 1)] + [0.5 * torch.ones(2, 1) + each for each in u]  # z*(clean) = 2 · 1/2
        elif start == "first":
            expected = [u[0]] + [0.5 * u[0] + each for each in u[1:]]
        else:
            expected = [u[0]]
            for each in u[1:]:
                expected.append(0.5 * expected[-1] + each)
        for found, wanted in zip(seen, expected, strict=False):
            assert torch.allclose(found, wanted, atol=1e-6)


def test_a_chain_warms_up_from_the_start_of_its_base_classifier(threshold_deq):
    """Anderson's first step is plain: the first batch shows where it started."""
    seen = []

    class Anchored(threshold_deq):
        start_kind, start_sigma = "mean", 1.0

        def anchor(self, injection):
            return torch.full_like(injection, 4.0)

        def head(self, z):
            seen.append(z.clone())
            return super().head(z)

    g = smoothed(Anchored(), sigma=1.0, solver=Picard(max_steps=2), start="anchor")
    sampling = serialized(proposal=Picard(max_steps=1), warmup_steps=1, audit=FixedAudit(50))
    engine = sampling.engine(g, IMAGE)
    seen.clear()
    votes = sampling.group_votes(g, engine, IMAGE[None], [Stream(0, 0)])[0]
    first = noisy(sampling, g, IMAGE, purpose=Purpose.SELECTION)[:8].flatten(1).mean(dim=1, keepdim=True)
    assert torch.allclose(seen[0], 2 + first, atol=1e-6)
    u = noisy(sampling, g, IMAGE).flatten(1).mean(dim=1)
    assert votes.n_a - votes.mismatches <= int((1 + 1.5 * u > 1).sum())  # what f says after two steps from 4


def test_rows_that_diverge_vote_for_nobody_and_do_not_poison_the_chain(threshold_deq):
    poison = 0.6
    g = converged(threshold_deq(poison=poison))
    for start in ("previous", "first"):
        sampling = serialized(start=start, warmup_steps=60)
        for index in range(4):
            votes, expected = (votes_of(each, g, IMAGE, index) for each in (sampling, Standard(**SMALL)))
            finite = int((means(sampling, g, index) <= poison).sum())
            assert 10 < finite < 45
            assert sum(votes.estimation) == finite
            assert (votes.selection, votes.estimation) == (expected.selection, expected.estimation)
