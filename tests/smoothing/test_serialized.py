"""Warm-started predictions and their audit, on a cell whose every iterate is known."""

from __future__ import annotations

import math

import pytest
import torch
from sampling_runs import SMALL, group_votes_of, measurement, noisy, recorded_votes, smoothed, votes_of
from torch import nn

from deqcert.errors import SettingError
from deqcert.seeding import Purpose
from deqcert.smoothing import Serialized, SmoothedClassifier, Standard, Stream
from deqcert.solvers import Broyden, Picard
from deqcert.statistics import AdaptiveAudit, CertificationRule, FixedAudit

IMAGE = torch.full((1, 4, 4), 0.5)
CONVERGED = Picard(max_steps=60)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"start": "warm"}, "start"),
        ({"warmup_steps": 0}, "warmup_steps"),
        ({"precision": "float64"}, "precision"),
        ({"n": 10, "audit": FixedAudit(11)}, r"audit\.samples"),
        ({"sides": "three"}, "sides"),
        *(({"escalation": share}, "escalation") for share in (-0.1, 1, 1.0, math.nan, True, "0.1", None)),
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


CHAIN = 1 + math.ceil(200 / 16) + math.ceil(300 / 16)  # batches of ``one_step_from_clean``, the clean image first


def places_of(asked, samples):
    """Where each image of ``asked`` stands among the samples."""
    same = (asked.flatten(1)[:, None] == samples.flatten(1)).all(dim=2)
    assert (same.sum(dim=1) == 1).all()
    return same.int().argmax(dim=1).tolist()


@pytest.mark.parametrize("threshold", [0.7, 1.4])  # elects class 0, class 1
def test_where_there_is_most_doubt_the_base_classifier_is_asked_and_nothing_of_that_is_audited(
    threshold, threshold_deq
):
    size, rest = 40, 1 - 2.0**-11  # of eleven plain steps
    for index in range(5):
        classifier = threshold_deq(threshold)
        g = smoothed(classifier, sigma=1.0, solver=Picard(max_steps=11))
        sampling = one_step_from_clean(audit=FixedAudit(size), escalation=0.4)
        votes = recorded_votes(sampling, g, IMAGE, index)
        samples = noisy(sampling, g, IMAGE, index)
        asked = places_of(torch.cat(classifier.inputs[CHAIN:]), samples)
        assert asked == sorted(set(asked))  # each once
        u = samples.flatten(1).mean(dim=1)
        fast, slow = 0.5 * rest + u, 2 * rest * u
        predicted, true = (fast <= threshold).long(), (slow <= threshold).long()
        escalated = (fast - threshold).abs().argsort()[:120].tolist()
        audited = sorted(set(asked) - set(escalated))
        assert set(escalated) < set(asked)

        a = int(threshold == 1.4)
        assert votes.selected == a
        assert (votes.escalations, sum(votes.escalated)) == (120, 120)
        assert votes.escalated == tuple(torch.bincount(true[escalated], minlength=2).tolist())
        assert min(votes.escalated) > 0
        assert votes.escalated_a == int((predicted[escalated] == a).sum())
        assert 0 < votes.escalated_a < 120
        assert votes.n_a == int((predicted == a).sum()) == votes.population + votes.escalated_a
        assert votes.audited == len(audited) == size
        assert (predicted[audited] == a).all()
        assert votes.mismatches == int((true[audited] != a).sum())
        assert votes.nfe_audit == 11 * len(asked) == 11 * (120 + size)
        votes._replace(index=0, label=0).validate()


def test_an_audit_of_escalated_votes_is_uniform_among_what_is_left(threshold_deq):
    size, places = 20, []
    for index in range(40):
        classifier = threshold_deq(0.7)
        sampling, g = one_step_from_clean(audit=FixedAudit(size), escalation=0.15), converged(classifier)
        recorded_votes(sampling, g, IMAGE, index)
        samples = noisy(sampling, g, IMAGE, index)
        u = samples.flatten(1).mean(dim=1)
        escalated = (0.5 + u - 0.7).abs().argsort()[:45]
        left = 0.5 + u > 0.7
        left[escalated] = False
        population = u[left].sort().values
        asked = places_of(torch.cat(classifier.inputs[CHAIN:]), samples)
        audited = sorted(set(asked) - set(escalated.tolist()))
        ranks = torch.searchsorted(population, u[audited]).float() / (len(population) - 1)
        places.append(float(ranks.mean()))
    # By how sure they are: the mean rank of 20 uniform ones of 200 or more has a standard deviation of at most 0.065.
    assert abs(sum(places) / 40 - 0.5) < 4 * 0.065 / math.sqrt(40)


@pytest.mark.parametrize("escalation", [0.05, 0.3])
def test_a_full_audit_and_escalation_together_find_all_that_is_true(escalation, threshold_deq):
    g = converged(threshold_deq(0.7))
    sampling = one_step_from_clean(audit=FixedAudit(300), escalation=escalation)
    for index in range(4):
        votes, without = (
            votes_of(each, g, IMAGE, index) for each in (sampling, one_step_from_clean(audit=FixedAudit(300)))
        )
        u = means(sampling, g, index)
        escalated = torch.zeros(300, dtype=torch.bool)
        escalated[(0.5 + u - 0.7).abs().argsort()[: int(escalation * 300)]] = True
        predicted, true = 0.5 + u > 0.7, 2 * u > 0.7
        assert votes.audited == votes.population
        assert votes.known(0) + votes.population - votes.mismatches == int((true & (predicted | escalated)).sum())
        if escalation == 0.3:  # all samples near the threshold, where alone S and Y differ
            assert votes.mismatches == 0 < 10 < without.mismatches
            assert votes.known(0) + votes.population == int(true.sum())


def test_votes_without_escalation_are_those_of_before(threshold_deq):
    g = converged(threshold_deq(0.7))
    for share in (0.0, 0.003):  # of 300 samples, 0.9: none
        votes = votes_of(one_step_from_clean(escalation=share), g, IMAGE)
        assert (votes.escalations, votes.escalated, votes.escalated_a) == (0, (), 0)
        assert (votes.population, votes.audited) == (votes.n_a, 20)
        assert not {"escalations", "escalated", "escalated_from", "audited_as", "mistaken"} & votes.to_json().keys()
    some = votes_of(one_step_from_clean(escalation=0.1), g, IMAGE)
    for field in ("selection", "estimation", "nfe_fast", "residual"):
        assert getattr(some, field) == getattr(votes, field)


def test_no_one_is_asked_where_the_selected_class_is_neither_first_nor_second(threshold_deq):
    """Of the logits (z, t, 2t - z - 0.2), z is among the first two where z > t - 0.1."""

    class ThreeClasses(threshold_deq):
        def head(self, z):
            return torch.cat([super().head(z), 2 * self.threshold - z - 0.2], dim=1)

    g = converged(ThreeClasses(0.7))
    sampling = one_step_from_clean(escalation=0.98)
    for index in range(3):
        votes, u = votes_of(sampling, g, IMAGE, index), means(sampling, g, index)
        doubtful = 0.5 + u > 0.6
        assert votes.selected == 0
        assert votes.estimation[2] > 0
        assert votes.escalations == int(doubtful.sum()) < 294
        assert (votes.escalated_a, votes.population, votes.audited, votes.mismatches) == (votes.n_a, 0, 0, 0)
        assert votes.known(0) == int((2 * u[doubtful] > 0.7).sum())


def test_predictions_that_are_not_finite_are_asked_first(threshold_deq):
    """Beside the logit of A there is none in the way; what f says may be A."""

    class Failing(threshold_deq):
        def head(self, z):
            logits = super().head(z)
            logits[((z > 0.95) & (z < 1.05))[:, 0], 1] = torch.nan
            return logits

    g = converged(Failing(0.7))
    sampling = one_step_from_clean(escalation=0.3, audit=FixedAudit(300))
    votes, u = votes_of(sampling, g, IMAGE), means(sampling, g, 0)
    failed, z = (0.5 + u > 0.95) & (0.5 + u < 1.05), 2 * u
    true = torch.where((z > 0.95) & (z < 1.05), -1, (z <= 0.7).long())
    assert 10 < 300 - sum(votes.estimation) == int(failed.sum()) < votes.escalations == 90
    escalated = torch.where(failed, 0.0, (0.5 + u - 0.7).abs()).argsort(stable=True)[:90]
    assert votes.escalated == tuple(int((true[escalated] == c).sum()) for c in (0, 1))
    assert votes.known(0) > 0
    assert sum(votes.escalated) < 90
    votes._replace(index=0, label=0).validate()


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_images_side_by_side_are_escalated_each_by_its_own_doubt(share, threshold_deq):
    images = torch.stack([torch.full((1, 4, 4), level) for level in (0.2, 0.35, 0.5, 0.8)])
    sampling, g = one_step_from_clean(escalation=share, audit=FixedAudit(30)), converged(threshold_deq(0.7))
    alone = [votes_of(sampling, g, image, index) for index, image in enumerate(images)]
    assert list(map(measurement, group_votes_of(sampling, g, images))) == list(map(measurement, alone))
    assert len({votes.escalated for votes in alone}) == 4


def test_a_classifier_of_one_class_is_escalated_like_any_other(threshold_deq):
    """No doubt is infinite: it would decide by the votes which bounds share alpha."""

    class OneClass(threshold_deq):
        def head(self, z):
            return z

    votes = votes_of(serialized(escalation=0.2, sides="two"), converged(OneClass()), IMAGE)
    assert (votes.escalations, votes.escalated, votes.escalated_from) == (10, (10,), (10,))
    assert (votes.n_a, votes.population, votes.audited, votes.mismatches) == (50, 40, 20, 0)
    assert (votes.audited_as, votes.mistaken) == ((20,), (0,))
    rules = [CertificationRule(0.05, sides=sides) for sides in ("one", "two")]
    one, two = (rule.certify(votes) for rule in rules)
    assert two.radius < one.radius  # a tenth of alpha is for nothing


class ThreeLevels:
    """Logits (0, z - 0.6, 2z - 1.6): class 0 up to 0.6, class 1 up to 1, class 2 above."""

    def head(self, z):
        level = z.mean(dim=1, keepdim=True)
        return torch.cat([torch.zeros_like(level), level - 0.6, 2 * level - 1.6], dim=1)


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("size", [60, 300])
def test_an_audit_for_two_sides_is_of_all_classes(size, share, threshold_deq):
    """f sees 2u where S sees 1/2 + u; doubt is about which class it is, whatever was selected."""

    class Network(ThreeLevels, threshold_deq):
        pass

    sampling = one_step_from_clean(audit=FixedAudit(size), escalation=share, sides="two")
    for index in range(6):
        classifier = Network()
        g = smoothed(classifier, sigma=1.0, solver=Picard(max_steps=11))
        votes = recorded_votes(sampling, g, IMAGE, index)
        samples = noisy(sampling, g, IMAGE, index)
        u = samples.flatten(1).mean(dim=1)
        rest = 1 - 2.0**-11  # of eleven plain steps
        predicted, true = (torch.bucketize(z, torch.tensor([0.6, 1.0])) for z in (0.5 * rest + u, 2 * rest * u))
        logits = torch.cat([ThreeLevels().head(z[:, None]) for z in (0.5 * rest + u,)]).sort(dim=1).values
        count = int(share * 300)
        escalated = (logits[:, 2] - logits[:, 1]).argsort()[:count].tolist()
        asked = places_of(torch.cat(classifier.inputs[CHAIN:]), samples)
        audited = sorted(set(asked) - set(escalated))
        assert set(escalated) <= set(asked)
        assert len(asked) == len(set(asked)) == count + min(size, 300 - count)

        def counts(classes):
            return tuple(torch.bincount(classes, minlength=3).tolist())

        assert votes.estimation == counts(predicted)
        assert votes.escalations == count
        assert votes.escalated == (counts(true[escalated]) if count else ())
        assert votes.escalated_from == (counts(predicted[escalated]) if count else ())
        assert votes.audited_as == counts(predicted[audited])
        assert min(votes.audited_as) > 0
        wrong = predicted[audited] != true[audited]
        assert votes.mistaken == counts(true[audited][wrong])
        assert votes.mismatches == int((wrong & (predicted[audited] == votes.selected)).sum())
        assert votes.audited == votes.audited_as[votes.selected]
        assert votes.nfe_audit == 11 * len(asked)
        votes._replace(index=0, label=0).validate()
        if size == 300:  # all is known
            rest_of = votes.rest
            for c in range(3):
                found = votes.known(c) + rest_of[c] + votes.mistaken[c]
                assert found - int((wrong & (predicted[audited] == c)).sum()) == int((true == c).sum())


def test_serialized_votes_are_for_the_sides_of_the_certificates(threshold_deq):
    assert Serialized().aimed_at(CertificationRule(sides="two")).sides == "two"
    assert Serialized().aimed_at(CertificationRule()).sides == "one"
    assert Serialized(sides="two").aimed_at(CertificationRule()).sides == "two"
    with pytest.raises(SettingError, match=r"^certificate\.audit = 'exact'"):
        Serialized().aimed_at(CertificationRule(sides="two", audit="exact"))
    votes = votes_of(one_step_from_clean(sides="two"), converged(threshold_deq(0.7)), IMAGE)
    assert 0 < votes.audited < sum(votes.audited_as) == 20
    assert CertificationRule(sides="one").certify(votes).sound


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
        assert votes.audited == audit.size(votes)
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
