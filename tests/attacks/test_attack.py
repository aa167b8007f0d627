from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_runs import noisy, smoothed
from torch import nn

from deqcert.attacks import CertificateAttack, SmoothedTarget, distances, frozen
from deqcert.errors import SettingError
from deqcert.implicit import ImplicitAdjoint, OneStep
from deqcert.seeding import Purpose
from deqcert.smoothing import Standard, Stream
from deqcert.solvers import Picard

RADII = (0.0, 0.1, 0.4, 0.8)
ATTACK = CertificateAttack(steps=5, samples=4)


def plain(seed=0, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).eval()


@pytest.mark.parametrize("gradient", [ImplicitAdjoint(), OneStep()])
def test_the_optimal_direction_is_found(target, image, gradient):
    points = dataclasses.replace(ATTACK, gradient=gradient).points(target, image, 3, 0, RADII)
    for point, radius in zip(points, RADII, strict=True):
        torch.testing.assert_close(point, image - radius / 4, rtol=0, atol=1e-5)


def test_a_classifier_without_a_cell_is_differentiated_as_it_is(image, make_target):
    model = plain(classes=2)
    target = make_target(model)
    (point,) = ATTACK.points(target, image, 3, 0, [0.3])
    weight = model[1].weight.detach()
    away = (weight[1] - weight[0]).view(1, 4, 4)
    torch.testing.assert_close(point - image, 0.3 * away / away.norm(), rtol=0, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), corners=st.floats(0, 1), radius=st.floats(1e-4, 5))
def test_points_stay_in_the_ball_without_a_tolerance_and_in_the_box(seed, corners, radius):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 4, 4, generator=generator)
    image = torch.where(torch.rand(image.shape, generator=generator) < corners, image.round(), image)
    target = SmoothedTarget(smoothed(plain(seed % 7)), image, 0)
    points = ATTACK.points(target, image, 0, seed % 3, [radius, 0.0, radius / 2])
    limits = torch.tensor([radius, 0.0, radius / 2], dtype=torch.float64)
    assert (distances(points, image) <= limits).all()
    assert points.min() >= 0
    assert points.max() <= 1
    if corners == 0 and radius < 0.05:
        assert distances(points, image)[0] > 0


def test_points_do_not_depend_on_what_is_attacked_beside_them(target, image):
    together = ATTACK.points(target, image, 3, 0, RADII)
    for radius, point in zip(RADII, together, strict=True):
        torch.testing.assert_close(ATTACK.points(target, image, 3, 0, [radius])[0], point, rtol=0, atol=1e-6)


def test_points_are_repeatable_and_leave_the_global_generator_alone(image, make_target):
    target = make_target(plain())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = ATTACK.points(target, image, 3, 0, RADII)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(ATTACK.points(target, image, 3, 0, RADII), first)


def test_many_points_are_attacked_in_groups_that_fit_a_batch(target, image):
    target.rows = 8  # two points of four samples each
    network = target.g.base.network
    network.rows.clear()
    grouped = ATTACK.points(target, image, 3, 0, RADII)
    sizes = set(network.rows)
    target.rows = 1000
    assert sizes == {8}
    torch.testing.assert_close(grouped, ATTACK.points(target, image, 3, 0, RADII), rtol=0, atol=1e-6)


def test_the_best_of_several_restarts_counts(image, make_target):
    """Restarts differ in their noise; a network that is not linear sends them to different points."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    target = make_target(model)
    attack = CertificateAttack(steps=3, samples=2)
    single = [attack._search(target, image, 3, 0, [1.0], restart) for restart in range(4)]
    assert len({tuple(point.flatten().tolist()) for point in single}) == 4
    best = dataclasses.replace(attack, restarts=4).points(target, image, 3, 0, [1.0])
    noise = target.noise(image, 3, 2, 4)
    losses = [float(attack._losses(target, point, 0, noise)) for point in single]
    assert float(attack._losses(target, best, 0, noise)) == max(losses)
    assert max(losses) > min(losses)


def test_noise_of_certificate_attack_and_check_are_different(target, image):
    network = target.g.base.network
    network.inputs.clear()
    target.counts(image[None], 3, 100)
    sampling = Standard(n0=20, n=100, batch_size=50)
    streams = {
        "selection": noisy(sampling, target.g, image, 3, Purpose.SELECTION) - image,
        "estimation": noisy(sampling, target.g, image, 3) - image,
        "attack": target.noise(image, 3, 20, 0)[:, 0],
        "restart": target.noise(image, 3, 20, 1)[:, 0],
        "check": torch.cat(network.inputs) - image,
    }
    joined = torch.cat(list(streams.values())).flatten(1)
    apart = torch.cdist(joined, joined) + 10 * torch.eye(len(joined))
    assert apart.min() > 0.1
    for noise in streams.values():
        assert noise.std().item() == pytest.approx(0.5, rel=0.15)


def test_votes_are_those_of_f_under_fresh_noise(target, make_target, threshold_deq, image):
    (counts,) = target.counts(image[None], 3, 4000)
    assert sum(counts) == 4000
    p = float(torch.special.ndtr(torch.tensor(0.4 / 0.5)))
    assert counts[0] / 4000 == pytest.approx(p, abs=5 * (p * (1 - p) / 4000) ** 0.5)
    assert target.counts(image[None], 3, 4000) == [counts]
    assert make_target(threshold_deq(), seed=1).counts(image[None], 3, 4000) != [counts]
    assert target.counts(image[None], 4, 4000) != [counts]


def test_points_side_by_side_get_the_votes_they_get_alone(target, image):
    points = torch.stack([image, image - 0.1, image + 0.1])
    assert target.counts(points, 3, 200) == [target.counts(point[None], 3, 200)[0] for point in points]


def test_a_diverged_sample_votes_for_nobody(threshold_deq, make_target, image):
    (counts,) = make_target(threshold_deq(poison=0.6)).counts(image[None], 3, 1000)
    assert 400 < sum(counts) < 600


def test_quantised_noise_rounds_the_noisy_point_and_not_the_point(threshold_deq, make_target):
    network, image = threshold_deq(), torch.full((1, 4, 4), 153 / 255)
    target = make_target(network, image, noise="quantised")
    point = image + 0.3 / 255
    network.inputs.clear()
    target.counts(point[None], 3, 1000)
    given = torch.cat(network.inputs)
    assert given.dtype == torch.float32
    assert torch.equal(given, (given * 255).round() / 255)
    levels = given * 255
    assert (levels.mean() - 255 * point.mean()).abs() < 5 * 0.5 * 255 / (16 * 1000) ** 0.5


def test_the_network_is_left_as_it_was(image, make_target):
    model = plain()
    ATTACK.points(make_target(model), image, 0, 0, [0.1])
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    with frozen(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("field", ["steps", "samples", "restarts"])
def test_bad_settings_are_named(field):
    with pytest.raises(SettingError, match=field):
        CertificateAttack(**{field: 0})


def test_an_anchored_classifier_is_attacked_and_judged_as_few_steps_from_its_anchor(threshold_deq, make_target, image):
    class AnchoredDEQ(threshold_deq):
        start_kind, start_sigma = "mean", 0.5

        def anchor(self, injection):
            return 1.6 * injection  # z* is 2 times the injection; one step leads to 1.8 times

    target = make_target(AnchoredDEQ(), solver=Picard(max_steps=1), start="anchor")
    x = torch.rand(5, 1, 4, 4).requires_grad_()
    with target.differentiable(OneStep()) as classifier:
        logits = classifier(x)
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    torch.testing.assert_close(logits[:, :1], 1.8 * x.flatten(1).mean(dim=1, keepdim=True))
    torch.testing.assert_close(gradient, torch.full_like(x, 1.8 / 16))
    (counts,) = target.counts(image[None], index=0, n=200)
    samples = torch.cat(list(target.g.noisy(image, Stream(0, 0), Purpose.ATTACK_CHECK, 200, 400)))
    expected = int((1.8 * samples.flatten(1).mean(dim=1) > 1.0).sum())
    assert counts == (expected, 200 - expected)
    assert 0 < expected < 200
