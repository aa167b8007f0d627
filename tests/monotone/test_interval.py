"""IBP-MonDEQ: its weights, the joint fixed point of its bounds, and that nothing in a box violates them."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from command_lines import ROOT

from deqcert.attacks.networks import few_step_logits
from deqcert.checkpoints import load_network
from deqcert.data import Digits
from deqcert.errors import SettingError
from deqcert.models import IntervalClassifier
from deqcert.monotone import LBEN, IBPMonDEQ, MonDEQ
from deqcert.solvers import Anderson, Picard

EXACT = Picard(max_steps=300, tolerance=1e-13)
CHECKPOINT = ROOT / "checkpoints" / "digits_ibp" / "model.ckpt"


def random_network(units=6, image_size=2, m=0.5, scale=1.0, seed=0):
    torch.manual_seed(seed)
    network = IBPMonDEQ(units, m, num_classes=4, image_size=image_size, mean=(0.3,), std=(0.4,)).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    return network


@pytest.fixture(scope="module")
def trained():
    return load_network(CHECKPOINT).network.double()


@pytest.fixture(scope="module")
def digits():
    split = Digits().load_split("test")
    return torch.stack([split[i][0] for i in range(500)]).double() / 255


@pytest.fixture(scope="module")
def predicted(trained, digits):
    return exact_logits(trained, digits).argmax(dim=1)


def exact_logits(network, x):
    return network.solve(x, EXACT)[0]


def gaps(logits, predicted):
    return logits.gather(1, predicted[:, None]) - logits


def proven(margins):
    return margins.logits - margins.errors


def certified(network, x, predicted, epsilon, solver=EXACT):
    """Whether the class of each image is proved in its box, shape (B,)."""
    lower = proven(network.interval_margins(x, predicted, epsilon, solver))
    return lower.scatter(1, predicted[:, None], torch.inf).amin(dim=1) > 0


def largest_epsilons(network, x, predicted):
    low, high = torch.zeros(len(x), dtype=torch.float64), torch.ones(len(x), dtype=torch.float64)
    for _ in range(20):
        middle = (low + high) / 2
        holds = certified(network, x, predicted, middle)
        low, high = middle.where(holds, low), high.where(holds, middle)
    return low


@pytest.mark.parametrize("m", [1e-3, 0.5, 0.999])
@pytest.mark.parametrize("scale", [1e-13, 1.0, 1e6])
def test_the_magnitudes_of_w_contract_whatever_the_weights_are(m, scale):
    network = random_network(units=40, m=m, scale=scale)
    weight = network.weight().detach().numpy()
    assert np.abs(np.linalg.eigvals(np.abs(weight))).max() <= 1 - m + 1e-12
    assert np.linalg.eigvalsh(network.monotone_matrix().detach().numpy()).min() >= 2 * m - 1e-12
    assert (np.abs(weight).sum() > 10 * (1 - m)) == (scale > 1e-3)  # weights far below 1e-8 vanish


def reference_margins(network, x, predicted, epsilon):
    """The same bounds from the positive and the negative part of each matrix, in numpy."""

    def split(matrix, low, high):
        positive, negative = matrix.clip(min=0), matrix.clip(max=0)
        return low @ positive.T + high @ negative.T, high @ positive.T + low @ negative.T

    parts = (
        network.weight(),
        network.encoder.weight,
        network.encoder.bias,
        network.decoder.weight,
        network.decoder.bias,
    )
    w, u, b, out, c = (part.detach().numpy() for part in parts)
    mean, std = float(network.mean), float(network.std)
    images, radius = x.flatten(1).numpy(), epsilon.numpy()[:, None]
    bias_low, bias_high = split(u, (images - radius - mean) / std, (images + radius - mean) / std)
    low = high = np.zeros_like(bias_low)
    for _ in range(200):
        low, high = (s.clip(min=0) for s in map(np.add, split(w, low, high), (bias_low + b, bias_high + b)))
    differences = out[predicted.numpy()][:, None] - out
    bounds = [split(rows, low[i], high[i])[0] for i, rows in enumerate(differences)]
    return np.stack(bounds) + c[predicted.numpy()][:, None] - c


@pytest.mark.parametrize(
    "solver", [EXACT, Anderson(max_steps=100, tolerance=1e-13, ridge=0.0)], ids=["picard", "anderson"]
)
def test_the_margins_are_those_of_the_exact_bounds(trained, digits, predicted, solver):
    epsilon = torch.linspace(0, 0.2, 60, dtype=torch.float64)
    x, predicted = digits[:60], predicted[:60]
    margins = trained.interval_margins(x, predicted, epsilon, solver)
    expected = torch.from_numpy(reference_margins(trained, x, predicted, epsilon))
    torch.testing.assert_close(margins.logits, expected, rtol=0, atol=1e-10)
    assert margins.errors.max() < 1e-10
    assert (margins.logits.gather(1, predicted[:, None]) == 0).all()
    assert margins.steps.min() > 3


def test_without_a_box_the_margins_are_the_gaps_and_they_fall_with_epsilon(trained, digits, predicted):
    values = []
    for epsilon in (0.0, 1e-6, 0.01, 0.05, 0.1, 0.3, 5.0):
        margins = trained.interval_margins(digits, predicted, torch.full((500,), epsilon, dtype=torch.float64), EXACT)
        values.append(margins.logits)
    torch.testing.assert_close(values[0], gaps(exact_logits(trained, digits), predicted), rtol=0, atol=1e-10)
    others = torch.ones_like(values[0]).scatter(1, predicted[:, None], 0).bool()
    for small, large in pairwise(values):
        assert ((small - large)[others] > 0).all()


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-4, 1e-8, 1e-12])
@pytest.mark.parametrize("kind", [Picard, Anderson])
def test_no_corner_of_a_box_violates_the_bounds_however_coarse_the_solve_is(
    trained, digits, predicted, kind, tolerance
):
    generator = torch.Generator().manual_seed(0)
    epsilon = 0.2 * torch.rand(500, generator=generator, dtype=torch.float64)
    margins = trained.interval_margins(digits, predicted, epsilon, kind(max_steps=100, tolerance=tolerance))
    assert margins.errors.isfinite().all()
    for _ in range(24):
        signs = torch.randint(2, digits.shape, generator=generator) * 2 - 1
        corners = digits + epsilon.view(-1, 1, 1, 1) * signs
        assert (gaps(exact_logits(trained, corners), predicted) >= proven(margins)).all()


def test_a_coarse_solve_costs_margin_and_nothing_else(trained, digits, predicted):
    epsilon = torch.full((500,), 0.05, dtype=torch.float64)
    margins = [
        trained.interval_margins(digits, predicted, epsilon, Picard(max_steps=steps)).logits for steps in (1, 3, 60)
    ]
    others = torch.ones_like(margins[0]).scatter(1, predicted[:, None], 0).bool()
    assert (margins[0] < margins[1])[others].all()
    assert (margins[1] < margins[2])[others].all()


def test_an_attack_finds_nothing_inside_and_much_outside(trained, digits, predicted):
    epsilon = largest_epsilons(trained, digits, predicted)
    assert epsilon.mean() > 0.05

    def fooled(radius):
        """Projected gradient steps on the smallest gap, from random corners."""
        found = torch.zeros(len(digits), dtype=torch.bool)
        generator = torch.Generator().manual_seed(1)
        size = radius.view(-1, 1, 1, 1)
        for _ in range(2):
            x = digits + size * (torch.randint(2, digits.shape, generator=generator) * 2 - 1)
            for _ in range(8):
                x.requires_grad_()
                behind = gaps(few_step_logits(trained, x, 12), predicted)
                smallest = behind.scatter(1, predicted[:, None], torch.inf).amin(dim=1)
                (gradient,) = torch.autograd.grad(smallest.sum(), x)
                x = (x.detach() - size / 3 * gradient.sign()).clamp(digits - size, digits + size)
            found |= exact_logits(trained, x).argmax(dim=1) != predicted
        return found

    assert not fooled(epsilon).any()
    assert fooled(2 * epsilon).double().mean() > 0.9
    assert fooled(4 * epsilon).double().mean() > 0.99


def test_it_has_lipschitz_certificates_too(trained, digits, predicted):
    constants = trained.lipschitz_constants()[predicted]
    bounded = trained.bounded_logits(digits, EXACT)
    radii = (gaps(bounded.logits, predicted) - bounded.errors) / constants
    assert (bounded.logits.argmax(dim=1) == predicted).all()
    assert radii.scatter(1, predicted[:, None], torch.inf).amin(dim=1).clamp_min(0).mean() > 0.1


def boxes(network, x, epsilon):
    twin = network.worst_case(
        torch.zeros(len(x), dtype=torch.int64), torch.full((len(x),), epsilon, dtype=torch.float64)
    )
    injection = twin.inject(x)
    z = EXACT.solve(lambda z: twin.cell(z, injection), twin.initial_state(injection)).value
    return twin, injection, z


def test_only_a_box_that_the_cell_maps_into_itself_is_proved(trained, digits):
    x = digits[:50]
    with torch.no_grad():
        twin, injection, z = boxes(trained, x, 0.05)
        box = twin.widened(z, x, injection)
        units = len(trained.free.weight)
        image, proved = twin.image(box, x, injection)
        assert proved.all()
        assert (image[:, :units] >= box[:, :units]).all()
        assert (image[:, units:] <= box[:, units:]).all()
        torch.testing.assert_close(image, z, rtol=0, atol=1e-9)

        # The solution itself leaves no room for rounding; a smaller, shifted or inverted box is wrong.
        wrong = {"solution": z, "inverted": z.roll(units, dims=1)}
        active = z[:, units:].argmax(dim=1)
        for name, place, change in (("upper", units, -1e-6), ("lower", 0, 1e-6)):
            wrong[name] = box.clone()
            wrong[name][torch.arange(50), place + active] += change
        wrong["shifted"] = box + 1e-6 * (box > 0)
        wrong["not a number"] = box * torch.nan
        for name, candidate in wrong.items():
            assert not twin.image(candidate, x, injection)[1].any(), name


def test_each_image_has_its_own_box(trained, digits, predicted):
    epsilon = torch.linspace(0, 0.3, 80, dtype=torch.float64)  # as many rows as units
    whole = trained.interval_margins(digits[:80], predicted[:80], epsilon, EXACT)
    for i in (0, 40, 79):
        alone = trained.interval_margins(digits[i : i + 1], predicted[i : i + 1], epsilon[i : i + 1], EXACT)
        torch.testing.assert_close(alone.logits[0], whole.logits[i], rtol=0, atol=1e-11)
        assert alone.steps[0] == whole.steps[i]
    assert whole.steps.unique().numel() > 1


class Expanding(IBPMonDEQ):
    def weight(self):
        return 4 * super().weight()


def test_bounds_without_a_proof_are_infinite():
    torch.manual_seed(0)
    network = Expanding(8, image_size=2).double().eval()
    x, predicted = torch.rand(5, 1, 2, 2).double(), torch.zeros(5, dtype=torch.int64)
    assert not certified(network, x, predicted, torch.full((5,), 0.01, dtype=torch.float64), Picard(max_steps=20)).any()
    margins = network.interval_margins(x, predicted, torch.full((5,), 0.01, dtype=torch.float64), Picard(max_steps=20))
    assert margins.errors.isinf().all()
    spoilt = x * torch.tensor([1.0, torch.nan, 1.0, torch.inf, 1.0]).view(-1, 1, 1, 1).double()
    margins = random_network().interval_margins(spoilt, predicted, torch.full((5,), 0.01, dtype=torch.float64), EXACT)
    assert margins.errors.isfinite().all(dim=1).tolist() == [True, False, True, False, True]


def exact(tensor):
    return np.vectorize(Fraction, otypes=[object])(tensor.detach().numpy())


def test_rounding_is_outward_in_exact_arithmetic():
    naive_violations = 0
    for seed in range(20):
        network = random_network(units=3, seed=seed)
        with torch.no_grad():
            network.encoder.bias.mul_(1e5)
            network.encoder.weight.mul_(1e5)
        x, predicted, epsilon = torch.rand(2, 1, 2, 2).double(), torch.tensor([1, 2]), 0.03
        with torch.no_grad():
            twin, injection, z = boxes(network, x, epsilon)
            box = twin.widened(z, x, injection)
            image, proved = twin.image(box, x, injection)
            rounded = twin.cell(box, injection)
        assert proved.all()
        margins = network.interval_margins(x, predicted, torch.full((2,), epsilon, dtype=torch.float64), EXACT)

        w, u, b = exact(network.weight()), exact(network.encoder.weight), exact(network.encoder.bias)
        out, c = exact(network.decoder.weight), exact(network.decoder.bias)
        mean, std = Fraction(float(network.mean)), Fraction(float(network.std))
        for row in range(2):
            low, high = np.split(exact(box[row]), 2)
            center = w @ ((low + high) / 2) + u @ ((exact(x[row].flatten()) - mean) / std) + b
            radius = abs(w) @ ((high - low) / 2) + abs(u).sum(axis=1) * Fraction(epsilon) / std
            below, above = np.maximum(center - radius, 0), np.maximum(center + radius, 0)
            given_below, given_above = np.split(exact(image[row]), 2)
            assert (given_below <= below).all()
            assert (above <= given_above).all()
            assert max(given_above - above) <= Fraction(1e-12) * max(abs(center) + radius)
            differences = out[predicted[row]] - out
            worst = differences @ ((below + above) / 2) - abs(differences) @ ((above - below) / 2)
            worst = worst + c[predicted[row]] - c
            assert (exact(proven(margins)[row]) <= worst).all()
            naive_below, naive_above = np.split(exact(rounded[row]), 2)
            naive_violations += (naive_below > below).any() or (naive_above < above).any()
    assert naive_violations > 10  # so the allowance for rounding is needed


@pytest.mark.parametrize("m", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_m_is_between_0_and_1(m):
    with pytest.raises(SettingError, match=rf"^m = {m}: must be in \(0, 1\)"):
        IBPMonDEQ(m=m)


@pytest.mark.parametrize("epsilon", [-1e-9, float("nan"), float("inf")])
def test_epsilon_is_finite_and_not_negative(epsilon):
    x, predicted = torch.rand(2, 1, 2, 2).double(), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(SettingError, match=r"^epsilon = \[0\.0, .*\]: must be finite and >= 0"):
        random_network().interval_margins(x, predicted, torch.tensor([0.0, epsilon], dtype=torch.float64), EXACT)


def test_other_monotone_networks_have_no_bounds_over_boxes():
    """|W| of theirs need not contract, so the joint fixed point may not exist."""
    torch.manual_seed(0)
    for kind in (MonDEQ, LBEN):
        network = kind()
        assert not isinstance(network, IntervalClassifier)
        assert torch.linalg.eigvals(network.weight().abs()).abs().max() > 1
