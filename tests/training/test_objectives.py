from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import nn

from deqcert.attacks import PGD, frozen
from deqcert.errors import SettingError
from deqcert.implicit import ImplicitAdjoint, OneStep
from deqcert.monotone import LBEN, MonDEQ
from deqcert.solvers import Picard
from deqcert.training.objectives import CATRS, Consistency, Gaussian, LipschitzMargin, SmoothAdv
from deqcert.training.step import ImplicitStep, TrainingStep

SHAPE = (3, 4, 4)


def random_batch(batch=5, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 + 0.4 * torch.rand(batch, *SHAPE, generator=generator, dtype=torch.float64)
    return images, torch.randint(classes, (batch,), generator=generator)


def random_logits(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


class Fixed:
    """A context whose training passes return the given logits, shape (m, B, classes), one after the other."""

    sigma = 0.5
    epoch = 0

    def __init__(self, *passes):
        self.passes = [logits.clone().requires_grad_() for logits in passes]
        self.inputs = []
        self.attacks = 0

    def logits(self, x):
        logits = self.passes[len(self.inputs)]
        self.inputs.append(x.detach())
        return logits.flatten(0, 1)

    @contextmanager
    def attacked(self, gradient):
        self.attacks += 1
        yield lambda x: x.flatten(1)[:, :3]


class Live:
    """A context around a real module that records what is asked of it."""

    def __init__(self, module, sigma=0.25, epoch=100):
        self.module = module
        self.sigma = sigma
        self.epoch = epoch
        self.trained = []
        self.attack_inputs = []
        self.gradients = []

    def logits(self, x):
        self.trained.append(x.detach())
        return self.module(x)

    @contextmanager
    def attacked(self, gradient):
        self.gradients.append(gradient)

        def classify(x):
            self.attack_inputs.append(x.detach())
            return self.module(x)

        with frozen(self.module):
            yield classify


def linear(seed=0, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, classes, dtype=torch.float64))


def convolutional(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3)
    ).double()


# References in numpy: logits of shape (m, B, classes).


def log_softmax(logits):
    return scipy.special.log_softmax(logits.detach().numpy(), axis=-1)


def softmax(logits):
    return scipy.special.softmax(logits.detach().numpy(), axis=-1)


def losses_of(logits, labels):
    return -log_softmax(logits)[:, np.arange(len(labels)), labels.numpy()]


def kl(p, logits):
    return (p * (np.log(p) - log_softmax(logits))).sum(axis=-1)


def common_metrics(logits, labels):
    correct = (logits.detach().numpy().argmax(axis=-1) == labels.numpy()).mean()
    return {"cross_entropy": losses_of(logits, labels).mean(), "accuracy_under_noise": correct}


def assert_metrics(loss, expected):
    assert {name: value.item() for name, value in loss.metrics.items()} == pytest.approx(expected)
    assert all(value.shape == () and not value.requires_grad for value in loss.metrics.values())


# Gaussian.


@pytest.mark.parametrize("count", [1, 3])
def test_gaussian_is_the_cross_entropy_over_the_noisy_samples(count):
    images, labels = random_batch()
    logits = random_logits(count, 5, 3)
    context = Fixed(logits)
    loss = Gaussian(count).loss(context, images, labels)
    assert loss.value.item() == pytest.approx(losses_of(logits, labels).mean())
    assert_metrics(loss, common_metrics(logits, labels))
    loss.value.backward()
    expected = (torch.from_numpy(softmax(logits)) - torch.eye(3, dtype=torch.float64)[labels]) / (count * 5)
    torch.testing.assert_close(context.passes[0].grad, expected)


def test_noise_is_gaussian_independent_and_from_the_global_generator():
    images, labels = random_batch(batch=400)
    context = Fixed(random_logits(3, 400, 3))
    torch.manual_seed(5)
    Gaussian(3).loss(context, images, labels)
    noise = context.inputs[0].view(3, 400, -1) - images.flatten(1)
    torch.manual_seed(5)
    torch.testing.assert_close(noise, 0.5 * torch.randn(3, 400, 48, dtype=torch.float64))
    assert noise.std().item() == pytest.approx(0.5, rel=0.02)
    assert np.abs(np.corrcoef(noise.flatten(1).numpy())[np.triu_indices(3, 1)]).max() < 0.03


# SmoothAdv.


class Probe(PGD):
    """Evaluates the loss of the clean images and perturbs nothing."""

    def perturb(self, images, loss, epsilon):
        probed.append(loss(images))
        return torch.zeros_like(images)


probed: list = []


def test_the_attack_maximises_the_cross_entropy_of_the_averaged_softmax():
    images, labels = random_batch(batch=40)
    context = Live(linear(), sigma=2.0)
    probed.clear()
    SmoothAdv(noisy_samples=3, attack=Probe()).loss(context, images, labels)
    averaged = softmax(context.module(context.attack_inputs[0]).view(3, 40, 3)).mean(axis=0)
    np.testing.assert_allclose(probed[0].detach(), -np.log(averaged[np.arange(40), labels]))


def test_the_averaged_softmax_does_not_underflow():
    images, labels = torch.zeros(1, *SHAPE, dtype=torch.float64), torch.tensor([1])
    module = linear(classes=2)
    module[1].bias.data = torch.tensor([3000.0, 0.0], dtype=torch.float64)
    probed.clear()
    SmoothAdv(noisy_samples=2, attack=Probe()).loss(Live(module, sigma=0.0), images, labels)
    assert probed[0].item() == pytest.approx(3000)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_with_two_classes_the_attack_finds_the_maximiser_of_the_averaged_loss(steps):
    images, labels = random_batch(classes=2)
    context = Live(linear(classes=2))
    loss = SmoothAdv(noisy_samples=4, attack=PGD(epsilon=0.25, steps=steps)).loss(context, images, labels)
    weight = context.module[1].weight.detach()
    direction = weight[1 - labels] - weight[labels]
    delta = 0.25 * direction / direction.norm(dim=1, keepdim=True)
    noise = context.attack_inputs[0].view(4, 5, -1) - images.flatten(1)
    torch.testing.assert_close(context.trained[0].view(4, 5, -1), noise + images.flatten(1) + delta)
    assert loss.metrics["attack_norm"].item() == pytest.approx(0.25)


def test_the_training_step_reuses_the_noise_of_the_attack():
    attack = PGD(steps=3, epsilon=0.5)
    images, labels = random_batch()
    context = Live(convolutional())
    torch.manual_seed(7)
    loss = SmoothAdv(noisy_samples=4, attack=attack).loss(context, images, labels)
    torch.manual_seed(7)
    noise = 0.25 * torch.randn(4, *images.shape, dtype=torch.float64)
    assert len(context.attack_inputs) == 3
    assert torch.equal(context.attack_inputs[0], (images + noise).flatten(0, 1))
    assert len(context.trained) == 1
    for inputs in (*context.attack_inputs[1:], context.trained[0]):
        deltas = inputs.view_as(noise) - images - noise
        torch.testing.assert_close(
            deltas, deltas[:1].expand_as(deltas), rtol=0, atol=1e-14
        )  # one for all noisy samples
    norms = deltas[0].flatten(1).norm(dim=1)
    assert (norms <= 0.5 + 1e-12).all()
    assert norms.max() > 0.1
    assert loss.metrics["attack_norm"].item() == pytest.approx(norms.mean().item())
    assert loss.metrics["attack_epsilon"].item() == 0.5
    assert context.gradients == [attack.gradient]


@pytest.mark.parametrize(("multi_noise", "trained"), [(True, 3), (False, 1)])
def test_smoothadv_trains_on_all_noisy_samples_or_on_the_first(multi_noise, trained):
    images, labels = random_batch()
    logits = random_logits(trained, 5, 3)
    context = Fixed(logits)
    torch.manual_seed(3)
    loss = SmoothAdv(noisy_samples=3, attack=PGD(epsilon=0.0), multi_noise=multi_noise).loss(context, images, labels)
    assert loss.value.item() == pytest.approx(losses_of(logits, labels).mean())
    assert_metrics(loss, common_metrics(logits, labels) | {"attack_epsilon": 0, "attack_norm": 0})
    torch.manual_seed(3)
    noise = 0.5 * torch.randn(3, *images.shape, dtype=torch.float64)[:trained]
    assert torch.equal(context.inputs[0], (images + noise).flatten(0, 1))


@pytest.mark.parametrize("attack", [PGD(steps=0), PGD(epsilon=0.0)])
def test_without_steps_or_radius_the_attack_never_asks_the_network(attack):
    images, labels = random_batch()
    context = Live(linear())
    loss = SmoothAdv(attack=attack).loss(context, images, labels)
    assert context.attack_inputs == []
    assert loss.metrics["attack_norm"] == 0


def test_the_radius_grows_over_the_warm_up():
    objective = SmoothAdv(attack=PGD(epsilon=2.0), warmup_epochs=4)
    assert [objective.epsilon_at(epoch) for epoch in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert SmoothAdv(attack=PGD(epsilon=2.0), warmup_epochs=0).epsilon_at(0) == 2.0
    images, labels = random_batch()
    context = Live(linear(), epoch=1)
    loss = SmoothAdv(attack=PGD(epsilon=0.2), warmup_epochs=4).loss(context, images, labels)
    assert loss.metrics["attack_epsilon"].item() == pytest.approx(0.1)
    assert loss.metrics["attack_norm"].item() == pytest.approx(0.1)


def test_the_gradient_is_that_at_fixed_perturbations():
    images, labels = random_batch()
    context = Live(linear())
    SmoothAdv(noisy_samples=2).loss(context, images, labels).value.backward()
    found = context.module[1].weight.grad.clone()
    context.module.zero_grad()
    nn.functional.cross_entropy(context.module(context.trained[0]), labels.repeat(2)).backward()
    torch.testing.assert_close(found, context.module[1].weight.grad)


# Consistency.


def test_consistency_adds_divergence_and_entropy():
    images, labels = random_batch()
    logits = random_logits(3, 5, 3)
    loss = Consistency(noisy_samples=3, weight=7.0, entropy_weight=0.25).loss(Fixed(logits), images, labels)
    mean = softmax(logits).mean(axis=0)
    divergence = kl(mean, logits).mean()
    entropy = -(mean * np.log(mean)).sum(axis=1).mean()
    expected = losses_of(logits, labels).mean() + 7 * divergence + 0.25 * entropy
    assert loss.value.item() == pytest.approx(expected)
    assert_metrics(loss, common_metrics(logits, labels) | {"consistency_kl": divergence, "entropy": entropy})


def test_consistency_is_finite_where_probabilities_vanish():
    logits = 1000 * random_logits(2, 5, 3)
    context = Fixed(logits)
    value = Consistency().loss(context, *random_batch()).value
    value.backward()
    assert value.isfinite()
    assert context.passes[0].grad.isfinite().all()


# CAT-RS.


def logits_for(labels, count, right):
    """Logits at which the image b is classified correctly by the first ``right[b]`` noisy samples."""
    logits = random_logits(count, len(labels), 3, seed=2)
    for image, label in enumerate(labels):
        for sample in range(count):
            wins = label if sample < right[image] else (label + 1) % 3
            logits[sample, image, wins] += 20
    return logits


def test_catrs_counts_one_noisy_sample_of_images_that_are_never_right():
    images, labels = random_batch()
    logits = logits_for(labels, 4, [0] * 5)
    context = Fixed(logits)
    loss = CATRS(noisy_samples=4).loss(context, images, labels)
    assert loss.value.item() == pytest.approx((losses_of(logits, labels).min(axis=0) / 4).mean())
    assert_metrics(loss, common_metrics(logits, labels) | {"masked": 0, "worst_kl": 0})
    assert (len(context.inputs), context.attacks) == (1, 0)  # no confident image: neither attack nor second pass


@pytest.mark.parametrize("counted", [[1, 2, 3, 2, 1], [3, 3, 3, 3, 3]])
def test_catrs_sums_the_smallest_losses_over_the_number_of_noisy_samples(monkeypatch, counted):
    images, labels = random_batch()
    logits = random_logits(4, 5, 3)
    monkeypatch.setattr(CATRS, "_draw_counted", lambda *_: torch.tensor(counted))
    loss = CATRS(noisy_samples=4).loss(Fixed(logits), images, labels)
    sorted_losses = np.sort(losses_of(logits, labels), axis=0)
    expected = np.mean([sorted_losses[:k, image].sum() / 4 for image, k in enumerate(counted)])
    assert loss.value.item() == pytest.approx(expected)


def test_the_number_of_counted_noisy_samples_is_binomial():
    images = 20_000
    labels = torch.zeros(images, dtype=torch.int64)
    for right in range(5):
        logits = torch.zeros(4, images, 2)
        logits[:, :, 1] = 1.0
        logits[:right, :, 0] = 2.0
        torch.manual_seed(right)
        counted = CATRS(noisy_samples=4)._draw_counted(logits, labels).numpy()
        found = np.bincount(counted, minlength=5) / images
        expected = scipy.stats.binom.pmf(np.arange(5), 4, right / 4)
        expected[:2] = 0, expected[0] + expected[1]
        np.testing.assert_allclose(found, expected, atol=0.015)


def test_catrs_adds_the_worst_divergence_of_confident_images():
    images, labels = random_batch()
    right = [4, 0, 4, 0, 4]
    confident = [0, 2, 4]
    first, second = logits_for(labels, 4, right), random_logits(4, 5, 3, seed=9)
    context = Fixed(first, second)
    loss = CATRS(noisy_samples=4, weight=3.0).loss(context, images, labels)
    losses = losses_of(first, labels)
    low = np.where(np.array(right) == 4, losses.sum(axis=0), losses.min(axis=0)) / 4
    worst = kl(softmax(first).mean(axis=0), second).max(axis=0)[confident].sum() / 5
    assert loss.value.item() == pytest.approx(low.mean() + 3 * worst)
    assert_metrics(loss, common_metrics(first, labels) | {"masked": 0.6, "worst_kl": worst})
    loss.value.backward()
    # Only the cross-entropy reaches the first pass: the smoothed prediction is a constant.
    counted = torch.zeros(4, 5, 1, dtype=torch.float64)
    counted[:, confident] = 1
    for image in (1, 3):
        counted[losses.argmin(axis=0)[image], image] = 1
    expected = counted * (torch.from_numpy(softmax(first)) - torch.eye(3, dtype=torch.float64)[labels]) / (4 * 5)
    torch.testing.assert_close(context.passes[0].grad, expected)
    reached = context.passes[1].grad.abs().sum(dim=2) > 0
    assert reached.sum(dim=0).tolist() == [1, 0, 1, 0, 1]  # the worst sample of each confident image


def test_catrs_attacks_confident_images_only_and_trains_on_the_whole_batch():
    images, labels = random_batch(batch=3)
    context = Fixed(logits_for(labels, 4, [4, 0, 4]), random_logits(4, 3, 3))
    seen = []

    @contextmanager
    def attacked(gradient):
        def classify(x):
            seen.append(x.detach())
            return x.flatten(1)[:, :3]

        yield classify

    context.attacked = attacked
    torch.manual_seed(0)
    CATRS(noisy_samples=4, epsilon=0.5, steps=3).loss(context, images, labels)
    before, after = (inputs.view(4, 3, -1) for inputs in context.inputs)
    assert torch.equal(before[:, 1], after[:, 1])
    shifts = (after - before)[:, [0, 2]].norm(dim=2)
    assert (shifts > 0.1).all()
    assert (shifts < 0.6).all()
    assert len(seen) == 3
    assert torch.equal(seen[0].view(4, 2, -1), before[:, [0, 2]])
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(moment(after - images.flatten(1), 2), moment(before - images.flatten(1), 2))


def test_the_shift_of_the_noise_increases_the_divergence():
    images = random_batch()[0]
    labels = torch.full((5,), 1)
    found = {}
    for steps in (0, 1, 4):
        module = linear()
        module[1].bias.data = torch.tensor([0.0, 12.0, 0.0], dtype=torch.float64)
        torch.manual_seed(0)
        context = Live(module)
        gradient = ImplicitAdjoint()
        found[steps] = CATRS(epsilon=0.5, steps=steps, gradient=gradient).loss(context, images, labels)
        assert context.gradients == [gradient]
        assert found[steps].metrics["masked"] == 1
    assert found[0].metrics["worst_kl"] * 1.5 < found[1].metrics["worst_kl"]
    assert found[0].metrics["worst_kl"] * 1.5 < found[4].metrics["worst_kl"]


def test_catrs_without_weight_does_not_attack():
    images, labels = random_batch()
    context = Fixed(logits_for(labels, 4, [4] * 5))
    loss = CATRS(weight=0.0).loss(context, images, labels)
    assert (len(context.inputs), context.attacks) == (1, 0)
    assert loss.metrics["masked"] == 1
    assert loss.value.item() == pytest.approx(losses_of(context.passes[0], labels).mean())


# All of them on a real network.


@dataclass(frozen=True)
class AlwaysConfident(CATRS):
    def _draw_counted(self, logits, labels):
        return torch.full((len(labels),), self.noisy_samples)


@pytest.mark.parametrize(
    ("objective", "passes"),
    [
        (Gaussian(), 1),
        (Gaussian(noisy_samples=3), 1),
        (SmoothAdv(), 1),
        (SmoothAdv(attack=PGD(steps=4), multi_noise=False), 1),
        (Consistency(), 1),
        (AlwaysConfident(), 2),
    ],
)
def test_every_parameter_gets_a_gradient_and_attacks_leave_no_trace(objective, passes):
    images, labels = random_batch()
    module = convolutional().train()
    module[3].eval()
    context = Live(module)
    loss = objective.loss(context, images, labels)
    loss.value.backward()
    assert loss.value.isfinite()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters())
    assert module[1].num_batches_tracked == passes == len(context.trained)
    assert [submodule.training for submodule in module] == [index != 3 for index in range(6)]


@pytest.mark.parametrize("objective", [SmoothAdv(), AlwaysConfident()])
def test_an_error_in_the_attack_leaves_the_network_as_it_was(objective):
    module = convolutional().train()
    context = Live(module)
    original = module.forward
    calls = []

    def failing(x):
        calls.append(x)
        if not module.training and len(calls) > 1:
            raise RuntimeError("in the middle")
        return original(x)

    module.forward = failing
    with pytest.raises(RuntimeError, match="in the middle"):
        objective.loss(context, *random_batch())
    assert all(submodule.training for submodule in module.modules())
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(
    "objective", [Gaussian(), SmoothAdv(noisy_samples=2, warmup_epochs=0), Consistency(), CATRS(epsilon=0.5)]
)
def test_objectives_learn(objective):
    """Two classes of images, the one brighter on the left and the other on the right."""
    labels = torch.arange(32) % 2
    images = torch.full((32, *SHAPE), 0.3, dtype=torch.float64)
    images[labels == 0, :, :, :2] = 0.7
    images[labels == 1, :, :, 2:] = 0.7
    context = Live(linear(classes=2), sigma=0.5)
    optimizer = torch.optim.SGD(context.module.parameters(), lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        loss = objective.loss(context, images, labels)
        loss.value.backward()
        optimizer.step()
    weight = context.module[1].weight.detach()
    ideal = (images[0] - images[1]).flatten()
    assert torch.cosine_similarity(weight[0] - weight[1], ideal, dim=0) > 0.8
    assert torch.equal(context.module(images).argmax(dim=1), labels)


# Settings.


@pytest.mark.parametrize(
    ("objective", "field", "value"),
    [
        *(
            (objective, "noisy_samples", value)
            for objective in (Gaussian, SmoothAdv, CATRS)
            for value in (0, -1, 1.0, True)
        ),
        *((Consistency, "noisy_samples", value) for value in (0, 1, 2.5)),
        *((Consistency, field, value) for field in ("weight", "entropy_weight") for value in (-1, math.nan)),
        *((CATRS, field, value) for field in ("weight", "epsilon") for value in (-0.5, math.nan, math.inf)),
        *((CATRS, "steps", value) for value in (-1, 2.5, True)),
        *((SmoothAdv, "warmup_epochs", value) for value in (-1, 1.5)),
    ],
)
def test_bad_settings_are_refused_by_name(objective, field, value):
    with pytest.raises(SettingError, match=rf"^objective\.{field} = "):
        objective(**{field: value})


def test_defaults_are_the_cheaper_gradient():
    assert SmoothAdv().attack == PGD(epsilon=1.0, steps=2, gradient=OneStep())
    assert CATRS().gradient == OneStep()


def monotone_step(network, sigma=0.0):
    solver = Picard(max_steps=500, tolerance=1e-8)
    return ImplicitStep(network, sigma, 0, network.cell, gradient=ImplicitAdjoint(solver), solver=solver)


def monotone(kind=MonDEQ, **settings):
    torch.manual_seed(0)
    return kind(
        units=10, num_classes=3, image_channels=3, image_size=4, mean=[0.5] * 3, std=[0.3] * 3, **settings
    ).double()


@pytest.mark.parametrize("network", [monotone(), monotone(LBEN, gamma=0.5), monotone(LBEN, gamma=math.inf)])
def test_lipschitz_margin_is_the_cross_entropy_of_radii(network):
    images, labels = random_batch()
    loss = LipschitzMargin(temperature=3.0, margin=0.25).loss(monotone_step(network), images, labels)
    logits = network.solve(images, Picard(max_steps=500, tolerance=1e-8))[0].numpy()
    constants = network.training_constants().detach().numpy()
    expected, certified = [], []
    for y, label in zip(logits, labels.tolist(), strict=True):
        others = [j for j in range(3) if j != label]
        radii = [(y[label] - y[j]) / constants[label, j] for j in others]
        expected.append(math.log(1 + sum(math.exp(3.0 * (0.25 - r)) for r in radii)))
        certified.append(max(0.0, min(radii)))
    assert loss.value.item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert loss.metrics["certified_radius"].item() == pytest.approx(np.mean(certified), rel=1e-5)
    assert loss.metrics.keys() == {"cross_entropy", "accuracy_under_noise", "certified_radius"}
    loss.value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_lipschitz_margin_does_not_depend_on_the_scale_of_logits():
    network, (images, labels) = monotone(), random_batch()
    before = LipschitzMargin().loss(monotone_step(network), images, labels).value.item()
    for parameter in network.decoder.parameters():
        parameter.data *= 10
    assert LipschitzMargin().loss(monotone_step(network), images, labels).value.item() == pytest.approx(before)


def test_lipschitz_margin_trains_the_certified_radius():
    network, (images, labels) = monotone(), random_batch(batch=20)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)

    def certified():
        logits, constants = (
            network.solve(images, Picard(max_steps=500, tolerance=1e-8))[0],
            network.lipschitz_constants(),
        )
        gaps = (logits.gather(1, labels[:, None]) - logits) / constants[labels]
        return gaps.scatter(1, labels[:, None], math.inf).amin(dim=1).clamp_min(0).mean().item()

    before = certified()
    for _ in range(60):
        loss = LipschitzMargin(temperature=8.0, margin=1.0).loss(monotone_step(network), images, labels)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    assert certified() > 5 * before
    assert certified() == pytest.approx(loss.metrics["certified_radius"].item(), rel=0.1)


def test_lipschitz_margin_needs_a_network_that_knows_its_constants():
    network = nn.Linear(48, 3)
    step = TrainingStep(network, 0.0, 0, network)
    with pytest.raises(SettingError, match=r"^model.network = 'Linear': .*LipschitzMargin.*deqcert.monotone"):
        LipschitzMargin().loss(step, *random_batch())


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", 0.0), ("temperature", math.inf), ("temperature", None), ("margin", -0.1), ("margin", math.nan)],
)
def test_lipschitz_margin_names_bad_settings(field, value):
    with pytest.raises(SettingError, match=rf"^objective\.{field} = "):
        LipschitzMargin(**{field: value})
