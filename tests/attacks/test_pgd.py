from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deqcert.attacks import PGD, frozen, shift_noise
from deqcert.errors import SettingError
from deqcert.implicit import ImplicitAdjoint, OneStep

SHAPE = (3, 4, 4)
SEEDS = st.integers(0, 2**32 - 1)
quickly = settings(max_examples=25, deadline=None)


def linear(seed=0, classes=2):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, classes))


def crossentropy(model, labels):
    return lambda x: F.cross_entropy(model(x), labels, reduction="none")


def away(model, labels):
    """The unit vectors along which the margin of a linear classifier of two classes falls fastest."""
    weight = model[1].weight.detach()
    direction = weight[1 - labels] - weight[labels]
    return (direction / direction.norm(dim=1, keepdim=True)).view(-1, *SHAPE)


def norms(x):
    return x.flatten(1).norm(dim=1)


def grey(batch):
    return torch.full((batch, *SHAPE), 0.5)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_pgd_finds_the_maximiser_on_a_linear_classifier(steps):
    model, labels = linear(), torch.tensor([0, 1, 1])
    delta = PGD(steps=steps).perturb(grey(3), crossentropy(model, labels), epsilon=0.25)
    torch.testing.assert_close(delta, 0.25 * away(model, labels), rtol=1e-5, atol=1e-6)
    assert not delta.requires_grad


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_in_the_maximum_norm_every_pixel_goes_as_far_as_it_may(steps):
    model, labels = linear(), torch.tensor([0, 1, 1])
    delta = PGD(steps=steps, norm="linf").perturb(grey(3), crossentropy(model, labels), epsilon=0.25)
    torch.testing.assert_close(delta, 0.25 * away(model, labels).sign())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_each_image_may_have_a_radius_of_its_own(norm):
    model, labels = linear(), torch.tensor([0, 0, 1])
    radii = torch.tensor([0.0, 0.25, 0.5]).view(3, 1, 1, 1)
    together = PGD(steps=3, norm=norm).perturb(grey(3), crossentropy(model, labels), radii)
    assert not together[0].any()
    for row in (1, 2):
        alone = PGD(steps=3, norm=norm).perturb(grey(1), crossentropy(model, labels[row : row + 1]), float(radii[row]))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-6)


def test_pgd_starts_at_zero_with_steps_of_twice_the_radius_over_the_steps():
    seen = []
    model, labels = linear(), torch.tensor([0, 1])

    def score(x):
        seen.append(x.detach() - 0.5)
        return crossentropy(model, labels)(x)

    PGD(steps=8).perturb(grey(2), score, epsilon=0.5)
    assert len(seen) == 8
    lengths = [0.0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5]
    for delta, length in zip(seen, lengths, strict=True):
        torch.testing.assert_close(norms(delta), torch.full((2,), length), rtol=1e-5, atol=1e-6)


def test_pgd_fills_the_ball_after_the_box_has_cut_the_step():
    images = torch.zeros(1, 2, 1, 1)
    slope = torch.tensor([-3.0, 4.0]).view(1, 2, 1, 1)  # the first pixel is stopped by the box

    delta = PGD(steps=1).perturb(images, lambda x: (x * slope).flatten(1).sum(1), epsilon=0.5)
    torch.testing.assert_close(delta.flatten(), torch.tensor([0.0, 0.5]))


@quickly
@given(seed=SEEDS, epsilon=st.floats(1e-3, 8), corners=st.floats(0, 1), norm=st.sampled_from(["l2", "linf"]))
def test_perturbations_stay_in_the_ball_and_in_the_box(seed, epsilon, corners, norm):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, *SHAPE, generator=generator)
    images = torch.where(torch.rand(images.shape, generator=generator) < corners, images.round(), images)
    labels = torch.randint(3, (4,), generator=generator)
    delta = PGD(steps=3, norm=norm).perturb(images, crossentropy(linear(seed, classes=3), labels), epsilon)
    assert delta.isfinite().all()
    assert ((norms(delta) if norm == "l2" else delta.abs()) <= epsilon * (1 + 1e-5)).all()
    assert ((images + delta) >= 0).all()
    assert ((images + delta) <= 1).all()


def slopes(factors):
    """A loss that is linear in the image, with one factor per row."""

    return lambda x: x.flatten(1)[:, 0] * factors


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_rows_without_a_usable_gradient_go_in_a_random_direction(bad):
    score = slopes(torch.tensor([1.0, bad, -2.0]))
    torch.manual_seed(0)
    first = PGD(steps=1).perturb(grey(3), score, epsilon=0.25)
    second = PGD(steps=1).perturb(grey(3), score, epsilon=0.25)
    assert first.isfinite().all()
    torch.testing.assert_close(norms(first), torch.full((3,), 0.25))
    assert not torch.allclose(first[1], second[1])
    assert first[0].flatten()[0].item() == pytest.approx(0.25)
    assert first[2].flatten()[0].item() == pytest.approx(-0.25)
    assert (first[1] != 0).all()


def test_the_random_stream_does_not_depend_on_the_gradients():
    states = []
    for factor in (0.0, 1.0):
        torch.manual_seed(0)
        PGD().perturb(grey(1), slopes(torch.tensor([factor])), epsilon=0.25)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_gradients_keep_their_direction(scale):
    delta = PGD(steps=2).perturb(grey(1), slopes(torch.tensor([scale])), epsilon=0.25)
    expected = torch.zeros_like(delta)
    expected[0, 0, 0, 0] = 0.25
    torch.testing.assert_close(delta, expected)


@pytest.mark.parametrize(("steps", "epsilon"), [(0, 1.0), (3, 0.0)])
def test_without_steps_or_radius_the_model_is_not_asked(steps, epsilon):
    def score(x):
        raise AssertionError

    assert (PGD(steps=steps).perturb(grey(2), score, epsilon) == 0).all()


def test_the_radius_may_differ_from_the_setting():
    model, labels = linear(), torch.tensor([0, 1])
    delta = PGD(epsilon=4.0).perturb(grey(2), crossentropy(model, labels), epsilon=0.125)
    torch.testing.assert_close(norms(delta), torch.full((2,), 0.125))


# Noise.


def reference_shift(noise, slope, epsilon, steps):
    """In numpy, for a loss that is linear with this slope; one vector."""
    shifted = noise
    for _ in range(steps):
        shift = shifted - noise + 2 * epsilon / steps * slope / np.linalg.norm(slope)
        shift *= min(1, epsilon / np.linalg.norm(shift))
        moved = noise + shift
        shifted = noise.mean() + (moved - moved.mean()) / moved.std() * noise.std()
    return shifted


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_noise_is_shifted_as_in_the_reference(steps):
    generator = torch.Generator().manual_seed(0)
    noise = 0.5 * torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)
    slope = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64) + 0.3
    shifted = shift_noise(noise, lambda n: (n * slope).flatten(1).sum(1), epsilon=0.75, steps=steps)
    for row in range(3):
        expected = reference_shift(noise[row].numpy(), slope[row].numpy(), 0.75, steps)
        torch.testing.assert_close(shifted[row], torch.from_numpy(expected))
    assert not shifted.requires_grad
    assert not noise.requires_grad


@quickly
@given(seed=SEEDS, epsilon=st.floats(1e-3, 4), steps=st.integers(1, 5))
def test_shifted_noise_keeps_its_mean_and_deviation(seed, epsilon, steps):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)
    shifted = shift_noise(noise, lambda n: (n**3).flatten(1).sum(1), epsilon, steps)
    assert not torch.equal(shifted, noise)
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(moment(shifted.flatten(1), dim=1), moment(noise.flatten(1), dim=1))
    assert (norms(shifted - noise) <= 2 * epsilon).all()  # the nearest vector with these moments is within ε


def test_noise_without_deviation_or_gradient_stays_finite():
    shifted = shift_noise(torch.zeros(2, *SHAPE), lambda n: n.flatten(1).sum(1) * float("nan"), 1.0, 2)
    torch.testing.assert_close(shifted, torch.zeros(2, *SHAPE))


@pytest.mark.parametrize(("steps", "epsilon"), [(0, 1.0), (3, 0.0)])
def test_without_steps_or_radius_noise_stays_as_it_is(steps, epsilon):
    def loss(noise):
        raise AssertionError

    noise = torch.randn(2, *SHAPE)
    assert torch.equal(shift_noise(noise, loss, epsilon, steps), noise)


# Freezing.


@pytest.fixture
def network():
    """With batch statistics and dropout; one submodule and one parameter are frozen beforehand."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    module.train()
    module[1].eval()
    module[3].bias.requires_grad = False
    return module


def state(module):
    tensors = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = {name: submodule.training for name, submodule in module.named_modules()}
    return tensors, modes, {name: parameter.requires_grad for name, parameter in module.named_parameters()}


def assert_untouched(module, before):
    tensors, modes, flags = state(module)
    assert modes == before[1]
    assert flags == before[2]
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in tensors.items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_an_attack_leaves_the_network_as_it_was(network):
    before = state(network)
    images, labels = torch.rand(2, *SHAPE), torch.tensor([0, 1])
    with frozen(network):
        assert not any(submodule.training for submodule in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        delta = PGD(steps=3).perturb(images, crossentropy(network, labels), epsilon=0.5)
    assert delta.isfinite().all()
    assert_untouched(network, before)


def test_an_error_in_the_middle_of_an_attack_leaves_the_network_as_it_was(network):
    before = state(network)
    calls = []

    def score(x):
        calls.append(x)
        if len(calls) == 2:
            raise RuntimeError("in the middle")
        return crossentropy(network, torch.tensor([0, 1]))(x)

    with pytest.raises(RuntimeError, match="in the middle"), frozen(network):
        PGD(steps=3).perturb(torch.rand(2, *SHAPE), score, epsilon=0.5)
    assert len(calls) == 2
    assert_untouched(network, before)


# Settings.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("epsilon", value) for value in (-0.1, float("nan"), float("inf"))),
        *(("steps", value) for value in (-1, 2.5, 2.0, True)),
        ("norm", "l1"),
    ],
)
def test_bad_settings_are_refused_by_name(field, value):
    with pytest.raises(SettingError, match=rf"^attack\.{field} = "):
        PGD(**{field: value})


def test_attacks_are_settings():
    assert PGD().gradient == OneStep()
    assert PGD(gradient=ImplicitAdjoint()) != PGD()
    with pytest.raises(dataclasses.FrozenInstanceError):
        PGD().steps = 3
