from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from deqcert.smoothing.labels import count_labels, labels_of
from scipy.stats import norm
from torch import nn

from deqcert.errors import DataError, SettingError
from deqcert.models import MDEQ, CifarResNet
from deqcert.seeding import Purpose
from deqcert.smoothing import Execution, Serialized, Standard
from deqcert.solvers import Anderson, Broyden, Picard
from deqcert.statistics import AdaptiveAudit, CertificationRule, FixedAudit, TargetRadius

IMAGE = torch.full((1, 4, 4), 0.5)
SMALL = {"n0": 10, "n": 50, "batch_size": 8}
STRATEGIES = [Standard(**SMALL), Serialized(**SMALL, audit=FixedAudit(20))]


def measurement(votes):
    return {key: value for key, value in votes.to_json().items() if key != "seconds"}


def recorded_vote(strategy, classifier, index=0):
    """Vote; the classifier then has recorded the votes' own calls, and not those of the checks before."""
    engine = strategy.engine(classifier, IMAGE)
    classifier.rows.clear()
    classifier.inputs.clear()
    return strategy.vote_group(engine, IMAGE[None], [index], [0])[0]


class Linear(nn.Module):
    """Class 0 where w · x + b > 0, else class 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 2, 16))
        self.eval()

    def forward(self, x):
        score = x.flatten(1) @ self.weight - 3
        return torch.stack([score, torch.zeros_like(score)], dim=1)


class NanAbove(nn.Module):
    """Class 0, but not finite where the first pixel exceeds the limit."""

    def __init__(self, value):
        super().__init__()
        self.value = value
        self.eval()

    def forward(self, x):
        logits = torch.tensor([1.0, 0.0]).repeat(len(x), 1)
        return torch.where(x[:, 0, 0, :1] > 0.5, self.value, logits)


def test_labels_of_rows_that_are_not_finite_are_nobody_s():
    inf = math.inf
    logits = torch.tensor([[1.0, 2.0], [math.nan, 0.0], [0.0, inf], [0.0, -inf], [3.0, 2.0]])
    assert labels_of(logits).tolist() == [1, -1, -1, -1, 0]
    assert count_labels(labels_of(logits).numpy(), 3) == (1, 1, 0)


# Standard smoothing.


def test_standard_agrees_with_the_closed_form_of_a_linear_classifier():
    classifier, sigma, n = Linear(), 0.7, 20_000
    votes = Standard(sigma=sigma, n0=10, n=n).vote(classifier, IMAGE, 0, 0)
    weight = classifier.weight.detach()
    p = norm.cdf(float(weight.sum() * 0.5 - 3) / (sigma * float(weight.norm())))
    assert 0.2 < p < 0.8
    assert abs(votes.estimation[0] - n * p) < 4 * math.sqrt(n * p * (1 - p))
    assert votes.audited is None
    assert math.isnan(votes.residual)
    assert votes.nfe_fast == 10 + n
    votes.validate()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_standard_gives_votes_that_are_not_finite_to_nobody(value):
    strategy = Standard(n0=100, n=400, batch_size=64)
    votes = strategy.vote(NanAbove(value), IMAGE, 0, 0)
    noisy = torch.cat(list(strategy._noisy_batches(IMAGE, 0, Purpose.ESTIMATION)))
    finite = int((noisy[:, 0, 0, 0] <= 0.5).sum())
    assert 100 < finite < 300
    assert votes.estimation == (finite, 0)
    assert sum(votes.selection) < 100
    votes.validate()


def test_standard_counts_the_cost_of_a_deq(threshold_deq):
    classifier = threshold_deq()
    votes = recorded_vote(Standard(**SMALL, solver=Picard(max_steps=7)), classifier)
    assert votes.nfe_fast == sum(classifier.rows) == 60 * 7
    assert votes.nfe_audit == 0


def test_residual_is_the_mean_over_the_estimation_copies(threshold_deq):
    # From a cold start ‖F(z) − z‖ / ‖F(z)‖ is 1 at the first step and rate^k / (1 + rate + … + rate^k) after k more.
    votes = Standard(**SMALL, solver=Picard(max_steps=2)).vote(threshold_deq(), IMAGE, 0, 0)
    assert votes.residual == pytest.approx(0.5 / 1.5, rel=1e-5)


@pytest.mark.parametrize("chains", [1, 2])
def test_classes_beyond_16_bits_keep_their_votes(chains):
    class Far(nn.Module):
        """Class 5 where the mean pixel exceeds 1/2, else class 65541, which is 5 in 16 bits."""

        def forward(self, x):
            above = x.flatten(1).mean(dim=1) > 0.5
            return nn.functional.one_hot(torch.where(above, 5, 65_541), 65_546).float()

    strategy = Standard(n0=10, n=90, batch_size=16, chains=chains)
    votes = strategy.vote(Far().eval(), IMAGE, 0, 0)
    noisy = [noisy for chain in range(chains) for noisy in strategy._noisy_batches(IMAGE, 0, Purpose.ESTIMATION, chain)]
    above = int((torch.cat(noisy).flatten(1).mean(dim=1) > 0.5).sum())
    assert 20 < above < 70
    assert (votes.estimation[5], votes.estimation[65_541], sum(votes.estimation)) == (above, 90 - above, 90)


# All strategies.


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.label)
def test_votes_are_a_function_of_seed_and_index(strategy, threshold_deq):
    def vote(index, classifier=None, strategy=strategy):
        return measurement(strategy.vote(classifier or threshold_deq(), IMAGE, index, 0))

    first = {index: vote(index) for index in range(5)}
    one = threshold_deq()
    again = {index: vote(index, one) for index in (4, 2, 0, 0, 3, 1)}
    assert again == first
    assert len({str(votes["estimation"]) for votes in first.values()}) > 1
    reseeded = dataclasses.replace(strategy, seed=1)
    assert {i: vote(i, strategy=reseeded)["estimation"] for i in first} != {
        i: v["estimation"] for i, v in first.items()
    }


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.label)
def test_estimation_copies_are_fresh(strategy, threshold_deq):
    classifier = threshold_deq()
    recorded_vote(dataclasses.replace(strategy, n0=8), classifier)
    selection, estimation = classifier.inputs[0], torch.cat(classifier.inputs[1:8])
    assert len(estimation) == 50
    assert not torch.isin(selection, estimation).any()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.label)
def test_training_mode_is_refused(strategy, threshold_deq):
    with pytest.raises(SettingError, match="evaluation mode"):
        strategy.vote(threshold_deq().train(), IMAGE, 0, 0)
    nested = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16)).eval()
    nested[1].train()
    with pytest.raises(SettingError, match="evaluation mode"):
        strategy.vote(nested, IMAGE, 0, 0)


@pytest.mark.parametrize("network", [CifarResNet(depth=8, image_size=8), MDEQ(image_size=8)], ids=["explicit", "DEQ"])
def test_grey_images_are_not_broadcast_through_a_network_for_color(network):
    with pytest.raises(SettingError, match=r"^image = \(1, 8, 8\): must have 3 channels, as the classifier"):
        Standard(**SMALL).vote(network.eval(), torch.full((1, 8, 8), 0.5), 0, 0)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.label)
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((1, 4, 4), 128, dtype=torch.uint8), r"not torch\.uint8; divide integers in \[0, 255\] by 255"),
        (torch.full((1, 4, 4), 1), r"not torch\.int64"),
        (torch.full((1, 4, 4), 128.0), r"a pixel is 128\.0"),
        (torch.tensor([[[0.5, -1e-3], [0.0, 1.0]]]), r"a pixel is -0\.001"),
        (torch.full((1, 4, 4), math.nan), "a pixel is nan"),
    ],
)
def test_images_in_another_unit_are_refused(strategy, image, message, threshold_deq):
    with pytest.raises(DataError, match=rf"^image: must hold floats in \[0, 1\], .*{message}"):
        strategy.vote(threshold_deq(), image, 0, 0)
    engine = strategy.engine(threshold_deq(), IMAGE)
    with pytest.raises(DataError, match=message):
        strategy.vote_group(engine, image[None], [0], [0])


@pytest.mark.parametrize("kind", [Standard, Serialized])
@pytest.mark.parametrize(
    ("field", "value"),
    [("sigma", 0.0), ("sigma", -1.0), ("sigma", math.inf), ("sigma", math.nan), ("n", 0), ("n0", 0), ("batch_size", 0),
     ("seed", -1), ("chains", 0), ("chains", 10_001), ("n", 10**30), ("batch_size", 10**12), ("n", 2.0),
     ("noise", "float64")],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(kind, field, value):
    with pytest.raises(SettingError, match=f"^{field} = "):
        kind(**{field: value})


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"start": "warm"}, "start"),
        ({"warmup_steps": 0}, "warmup_steps"),
        ({"n": 10, "audit": FixedAudit(11)}, r"audit\.samples"),
    ],
)
def test_settings_of_serialized_smoothing_are_refused_by_name(settings, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        Serialized(**settings)


CHANGES = {
    "sigma": 0.25, "n0": 11, "n": 51, "batch_size": 9, "seed": 1, "solver": Anderson(max_steps=2), "start": "clean",
    "warmup_steps": 9, "reference": Anderson(max_steps=29), "audit": AdaptiveAudit(), "precision": "bfloat16",
    "execution": Execution(rows=7), "chains": 2, "noise": "quantised", "stopping": TargetRadius(1.0),
}  # fmt: skip


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.label)
def test_identity_is_json_and_changes_with_every_setting(strategy):
    own = strategy.identity
    assert json.loads(json.dumps(own)) == own
    fields = [field.name for field in dataclasses.fields(strategy)]
    assert set(fields) <= set(CHANGES)
    for field in fields:
        other = dataclasses.replace(strategy, **{field: CHANGES[field]}).identity
        assert {key for key in own if own[key] != other[key]} == {field}
    assert dataclasses.replace(strategy, solver=Picard(max_steps=3)).identity != own
    assert len({json.dumps(each.identity) for each in STRATEGIES}) == 2


@pytest.mark.parametrize(
    ("strategy", "label"),
    [
        (Standard(), "standard-30A"),
        (Standard(solver=Broyden(max_steps=14)), "standard-14B"),
        (Serialized(solver=Picard(max_steps=1)), "SRS-1N"),
        (Serialized(start="clean"), "SRS-3A-clean"),
    ],
)
def test_label(strategy, label):
    assert strategy.label == label


@pytest.mark.parametrize("noise", ["float32", "quantised"])
@pytest.mark.parametrize("sigma", [0.25, 1.0])
def test_votes_carry_their_noise(sigma, noise, threshold_deq):
    image = torch.full((1, 4, 4), 51 / 255)
    votes = Serialized(**SMALL, sigma=sigma, noise=noise, audit=FixedAudit(20)).vote(threshold_deq(), image, 0, 0)
    assert (votes.sigma, votes.noise_error) == (sigma, 16 * 2.0**-48 if noise == "quantised" else 0.0)
    p_a_lower = CertificationRule(alpha=0.05).p_a_lower(votes)
    assert CertificationRule(alpha=0.05).certify(votes).radius == sigma * norm.ppf(p_a_lower) > 0
    assert votes.from_json(json.loads(json.dumps(votes.to_json()))).sigma == sigma


# Serialized smoothing.


def serialized(**changes):
    """Converging fast path and reference, unless told otherwise."""
    settings = {
        "sigma": 1.0,
        **SMALL,
        "solver": Picard(max_steps=60),
        "reference": Picard(max_steps=60),
        "audit": FixedAudit(20),
    }
    return Serialized(**(settings | changes))


def estimation_means(strategy, index):
    noisy = torch.cat(list(strategy._noisy_batches(IMAGE, index, Purpose.ESTIMATION)))
    return noisy.flatten(1).mean(dim=1)


@pytest.mark.parametrize("start", ["previous", "first", "clean"])
def test_a_converged_chain_gives_the_standard_votes_and_no_mismatch(start, threshold_deq):
    strategy = serialized(start=start, warmup_steps=60, audit=FixedAudit(50))
    standard = Standard(sigma=1.0, **SMALL, solver=Picard(max_steps=60))
    for index in range(5):
        votes = strategy.vote(threshold_deq(), IMAGE, index, 0)
        expected = standard.vote(threshold_deq(), IMAGE, index, 0)
        assert (votes.selection, votes.estimation) == (expected.selection, expected.estimation)
        assert min(votes.estimation) > 0
        assert (votes.audited, votes.mismatches) == (votes.n_a, 0)
        votes.validate()


def one_step_from_clean(**changes):
    """S = A where ū + u > t, with ū = 1/2 the mean of the clean image; Y = A where 2u > t."""
    return serialized(solver=Picard(max_steps=1), start="clean", n0=200, n=300, batch_size=16, **changes)


def test_a_full_audit_finds_exactly_the_true_mismatches(threshold_deq):
    strategy = one_step_from_clean(audit=FixedAudit(300))
    threshold = 0.7
    for index in range(4):
        votes = strategy.vote(threshold_deq(threshold), IMAGE, index, 0)
        u = estimation_means(strategy, index)
        cheap, true = 0.5 + u > threshold, 2 * u > threshold
        assert votes.selected == 0
        assert votes.n_a == votes.audited == int(cheap.sum())
        assert votes.mismatches == int((cheap & ~true).sum())
        assert votes.mismatches >= 10


def test_a_partial_audit_labels_a_uniform_subset_of_the_agreeing_copies_on_their_own_noise(threshold_deq):
    threshold, size = 0.7, 40
    strategy = one_step_from_clean(audit=FixedAudit(size))
    positions, shares = [], []
    for index in range(60):
        classifier = threshold_deq(threshold)
        votes = recorded_vote(strategy, classifier, index)
        assert votes.audited == size
        batches = 1 + math.ceil(200 / 16) + math.ceil(300 / 16)  # the clean image, the chain
        audited = torch.cat(classifier.inputs[batches:]).flatten(1)
        assert [len(x) for x in classifier.inputs[batches:]] == [16, 16, 8]

        copies = torch.cat(list(strategy._noisy_batches(IMAGE, index, Purpose.ESTIMATION))).flatten(1)
        same = (audited[:, None] == copies).all(dim=2)
        assert (same.sum(dim=1) == 1).all()  # each audited copy is one of the estimation copies,
        places = same.int().argmax(dim=1)
        assert len(set(places.tolist())) == size  # none is audited twice,
        u = copies.mean(dim=1)
        cheap, true = 0.5 + u > threshold, 2 * u > threshold
        assert cheap[places].all()  # all have the selected cheap label,
        assert votes.mismatches == int((~true[places]).sum())
        agreeing = torch.nonzero(cheap).flatten()
        positions.append(float(torch.searchsorted(agreeing, places).float().mean() / (len(agreeing) - 1)))
        shares.append(votes.mismatches / size - float((~true[cheap]).float().mean()))
    # … and they lie anywhere: the mean place of 40 uniform ones has a standard deviation of about 0.04 per image.
    assert abs(sum(positions) / 60 - 0.5) < 0.025
    assert abs(sum(shares) / 60) < 0.04


@pytest.mark.parametrize("samples", [1, 5, 50])
def test_audited_is_the_smaller_of_the_setting_and_what_agrees(samples, threshold_deq):
    votes = serialized(audit=FixedAudit(samples), reference=Picard(max_steps=11)).vote(threshold_deq(), IMAGE, 0, 0)
    assert 5 < votes.n_a < 50
    assert votes.audited == min(samples, votes.n_a)
    assert votes.nfe_audit == votes.audited * 11


def test_adaptive_audit_depends_on_n_a(threshold_deq):
    audit = AdaptiveAudit(radius_loss=0.3, alpha=0.01)
    sizes = set()
    for threshold in (-1.0, 0.6, 5.0):
        votes = serialized(sigma=0.5, n=200, audit=audit).vote(threshold_deq(threshold), IMAGE, 0, 0)
        assert votes.audited == audit.size(votes.n_a, 200)
        sizes.add(votes.audited)
    assert len(sizes) > 1


def test_starts_differ_in_what_the_chain_remembers(threshold_deq):
    """One plain step from the cache at rate 1/2, with two copies per batch, against the recursion by hand."""
    settings = {"solver": Picard(max_steps=1), "warmup_steps": 1, "n0": 2, "n": 6, "batch_size": 2}
    for start in ("previous", "first", "clean"):
        strategy = serialized(start=start, audit=FixedAudit(6), **settings)
        seen = []

        class Spy(threshold_deq):
            def head(self, z, seen=seen):
                seen.append(z.clone())
                return super().head(z)

        engine = strategy.engine(Spy(), IMAGE)
        seen.clear()  # of the engine's own checks
        strategy.vote_group(engine, IMAGE[None], [0], [0])
        batches = list(strategy._noisy_batches(IMAGE, 0, Purpose.SELECTION))
        batches += list(strategy._noisy_batches(IMAGE, 0, Purpose.ESTIMATION))
        u = [batch.flatten(1).mean(dim=1, keepdim=True) for batch in batches]
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


def test_rows_that_diverge_vote_for_nobody_and_do_not_poison_the_chain(threshold_deq):
    poison = 0.6
    standard = Standard(sigma=1.0, **SMALL, solver=Picard(max_steps=60))
    for start in ("previous", "first"):
        for index in range(4):
            strategy = serialized(start=start, warmup_steps=60)
            votes = strategy.vote(threshold_deq(poison=poison), IMAGE, index, 0)
            finite = int((estimation_means(strategy, index) <= poison).sum())
            assert 10 < finite < 45
            assert sum(votes.estimation) == finite
            expected = standard.vote(threshold_deq(poison=poison), IMAGE, index, 0)
            assert (votes.selection, votes.estimation) == (expected.selection, expected.estimation)


def test_a_nan_reference_is_a_mismatch(threshold_deq):
    class NanAfterWarmStart(threshold_deq):
        """The reference, alone in taking 60 steps, ends in NaN."""

        def solve(self, x, solver, start=None, workspace=None, anchored=False):
            logits, solution = super().solve(x, solver, start, workspace, anchored)
            return (torch.full_like(logits, torch.nan) if solver.max_steps == 60 else logits), solution

    votes = serialized(solver=Picard(max_steps=20)).vote(NanAfterWarmStart(), IMAGE, 0, 0)
    assert votes.mismatches == votes.audited == min(20, votes.n_a) > 0


@pytest.mark.parametrize("start", ["previous", "first", "clean"])
def test_cost_is_counted_exactly(start, threshold_deq):
    classifier = threshold_deq()
    strategy = serialized(start=start, solver=Anderson(max_steps=3), warmup_steps=5, reference=Picard(max_steps=11))
    votes = recorded_vote(strategy, classifier)
    fast = 11 + 60 * 3 if start == "clean" else 8 * 5 + 52 * 3
    assert votes.nfe_fast == fast
    assert votes.nfe_audit == votes.audited * 11 > 0
    assert sum(classifier.rows) == votes.nfe_fast + votes.nfe_audit


def test_serialized_smoothing_needs_a_deq():
    with pytest.raises(SettingError, match="needs a DEQ"):
        Serialized().vote(Linear(), IMAGE, 0, 0)
