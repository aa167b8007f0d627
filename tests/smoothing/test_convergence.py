from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from sampling_runs import smoothed, votes_of
from scipy.stats import beta

from deqcert.errors import SettingError
from deqcert.models import DEQ
from deqcert.seeding import Purpose
from deqcert.smoothing import ConvergenceSettings, MismatchCount, convergence_report, residual_curve
from deqcert.smoothing.noise import Stream, noisy_batches
from deqcert.solvers import Anderson, Broyden, Picard

RATE = 0.5
SETTINGS = ConvergenceSettings(sigma=0.5, solver=Picard(max_steps=30), copies=48, batch_size=8)
IMAGES = torch.linspace(0.2, 0.8, 3).view(3, 1, 1, 1).expand(3, 1, 4, 4).contiguous()
INDICES = torch.tensor([5, 2, 9])


class Tanh(DEQ):
    """z = tanh(A z + x) with a dense A of norm 0.8: every solver takes its own path."""

    def __init__(self):
        super().__init__(Picard(max_steps=60))
        matrix = torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.matrix = torch.nn.Parameter(0.8 * matrix / torch.linalg.matrix_norm(matrix, 2))
        self.eval()

    def inject(self, x):
        return x.flatten(1).double()

    def initial_state(self, injection):
        return torch.zeros_like(injection)

    def cell(self, z, injection):
        return torch.tanh(z @ self.matrix.T + injection)

    def head(self, z):
        return z[:, :2]


def noisy(count=6):
    batches = noisy_batches(IMAGES[0], Stream(0, 0), Purpose.ESTIMATION, sigma=0.5, count=count, batch_size=count)
    return next(batches)


def report(classifier, settings=SETTINGS, images=IMAGES):
    return convergence_report(classifier, images, INDICES[: len(images)], settings)


@pytest.mark.parametrize(
    "solver",
    [
        Picard(max_steps=8),
        Anderson(max_steps=1),
        Anderson(max_steps=8),
        Anderson(max_steps=8, memory=2, tolerance=0.1),
        Broyden(max_steps=8),
    ],
    ids=["picard", "anderson 1", "anderson", "anderson 2", "broyden"],
)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_the_curve_holds_the_residuals_of_what_k_steps_return(solver, warm):
    classifier, x = Tanh(), noisy()
    start = torch.full((6, 16), 0.3, dtype=torch.float64) if warm else None
    curve = residual_curve(classifier, x, solver, start)
    assert curve.shape == (solver.max_steps, 6)
    injection = classifier.inject(x)
    for steps, residual in enumerate(curve, start=1):
        exactly = dataclasses.replace(solver, max_steps=steps, tolerance=0.0, iterate="last")
        value = classifier.solve(x, exactly, start)[1].value
        image = classifier.cell(value, injection)
        torch.testing.assert_close(residual, (image - value).norm(dim=1) / image.norm(dim=1))


def test_the_curve_of_a_linear_cell_is_known(threshold_deq):
    """From 0, X_k = u (1 - a^k) / (1 - a), hence its residual a^k (1 - a) / (1 - a^(k+1))."""
    curve = residual_curve(threshold_deq(rate=RATE), IMAGES, Picard(max_steps=10))
    steps = torch.arange(1, 11)
    expected = RATE**steps * (1 - RATE) / (1 - RATE ** (steps + 1))
    torch.testing.assert_close(curve, expected[:, None].expand(10, 3), rtol=1e-4, atol=1e-6)


def test_the_curve_takes_one_evaluation_more_than_its_length(threshold_deq):
    classifier = threshold_deq()
    residual_curve(classifier, IMAGES, Anderson(max_steps=7))
    assert classifier.rows == [3] * 8


def test_a_fixed_point_at_zero_has_no_residual(threshold_deq):
    curve = residual_curve(threshold_deq(), torch.zeros(2, 1, 4, 4), Picard(max_steps=3))
    assert curve.tolist() == [[0.0, 0.0]] * 3


@pytest.mark.parametrize("solver", [Picard(max_steps=4), Anderson(max_steps=4), Broyden(max_steps=4)])
def test_rows_that_are_not_finite_are_infinite_and_leave_the_others_alone(threshold_deq, solver):
    classifier = threshold_deq(poison=0.7)
    curve = residual_curve(classifier, IMAGES, solver)
    assert curve[:, 2].tolist() == [math.inf] * 4
    torch.testing.assert_close(curve[:, :2], residual_curve(classifier, IMAGES[:2], solver))
    assert curve[:, :2].isfinite().all()


def test_the_report_averages_curves_from_a_cold_and_a_warm_start(threshold_deq):
    """Warm, the error is that of the other sample's noise only: a^k |u_A - u_B|, against a^k u."""
    classifier = threshold_deq(rate=RATE)
    measured = report(classifier)
    assert measured.images == 3
    steps = torch.arange(1, 31, dtype=torch.float64)
    cold = RATE**steps * (1 - RATE) / (1 - RATE ** (steps + 1))
    assert measured.cold[:15] == pytest.approx(cold[:15].tolist(), rel=1e-2)

    logarithms = []
    for image, index in zip(IMAGES, INDICES.tolist(), strict=True):
        stream = Stream(SETTINGS.stream_seed, index)
        mean = [
            next(noisy_batches(image, stream, purpose, sigma=0.5, count=8, batch_size=8)).mean(dim=(1, 2, 3))
            for purpose in (Purpose.SELECTION, Purpose.ESTIMATION)
        ]
        start, end = mean[0] / (1 - RATE), mean[1] / (1 - RATE)
        error = RATE**3 * (start - end)
        residual = (1 - RATE) * error.abs() / (end + RATE * error).abs()
        logarithms += residual.log().tolist()
    assert measured.warm[2] == pytest.approx(math.exp(sum(logarithms) / len(logarithms)), rel=1e-3)


def test_a_warm_start_is_far_ahead_of_a_cold_one():
    measured = report(Tanh(), dataclasses.replace(SETTINGS, sigma=0.02))
    assert measured.warm[0] < 0.1 * measured.cold[0]


def test_residuals_below_rounding_count_as_rounding(threshold_deq):
    """Otherwise one exact fixed point would make a geometric mean zero."""
    measured = report(threshold_deq(rate=RATE), dataclasses.replace(SETTINGS, solver=Picard(max_steps=60)))
    assert measured.cold[-1] == pytest.approx(torch.finfo(torch.float32).eps)


def test_one_row_that_is_not_finite_shows_in_the_report(threshold_deq):
    measured = report(threshold_deq(poison=0.7))
    finite = report(threshold_deq(poison=9.0))
    assert set(measured.cold) == {math.inf}
    assert set(measured.warm) == {math.inf}
    assert all(map(math.isfinite, finite.cold + finite.warm))


def test_mismatches_are_those_that_certification_would_count(threshold_deq):
    classifier = threshold_deq(threshold=1.0, rate=0.8)
    g = smoothed(classifier, SETTINGS.sigma, solver=SETTINGS.solver)
    settings = dataclasses.replace(SETTINGS, mismatch_steps=(3, 1))
    measured = report(classifier, settings)
    assert [count.steps for count in measured.mismatches] == [3, 1]
    for count in measured.mismatches:
        votes = [
            votes_of(settings.serialized(count.steps), g, image, index, settings.stream_seed)
            for image, index in zip(IMAGES, INDICES.tolist(), strict=True)
        ]
        assert count.mismatches == sum(each.mismatches for each in votes)
        assert count.audited == sum(each.n_a for each in votes) == sum(each.audited for each in votes)


def test_a_cell_that_converges_in_one_step_has_no_mismatch_and_a_slow_one_has(threshold_deq):
    noise = dataclasses.replace(SETTINGS, sigma=2.0)
    images = torch.full((3, 1, 4, 4), 0.5)
    instant = report(threshold_deq(threshold=0.5, rate=0.0), noise, images)
    assert [count.mismatches for count in instant.mismatches] == [0, 0, 0, 0]
    assert all(count.audited > 50 for count in instant.mismatches)
    slow = report(threshold_deq(threshold=0.5 / 0.1, rate=0.9), noise, images)
    rates = [count.rate for count in slow.mismatches]
    assert rates[0] > rates[-1] > 0


def test_srs_predictions_come_from_the_solver_with_fewer_steps():
    settings = ConvergenceSettings(0.25, Broyden(max_steps=20, tolerance=1e-3), copies=10, batch_size=16, seed=7)
    sampling = settings.serialized(2)
    assert sampling.proposal == Broyden(max_steps=2, tolerance=0.0, iterate="last")
    assert (sampling.n0, sampling.n, sampling.batch_size) == (10, 10, 16)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_noise_is_never_that_of_a_certification(seed):
    """A certificate needs noise that nobody looked at when the solver steps were chosen."""
    settings = dataclasses.replace(SETTINGS, seed=seed)
    assert settings.stream_seed > 2**32  # the seeds that people give are small
    measured, certified = (
        next(noisy_batches(IMAGES[0], Stream(each, 0), Purpose.ESTIMATION, sigma=0.5, count=8, batch_size=8))
        for each in (settings.stream_seed, seed)
    )
    assert not torch.equal(measured, certified)


def test_the_seed_decides_and_the_order_of_images_does_not(threshold_deq):
    classifier = threshold_deq(threshold=1.0, rate=0.8)
    torch.manual_seed(1)
    first = report(classifier)
    state = torch.get_rng_state()
    assert report(classifier) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert report(classifier, dataclasses.replace(SETTINGS, seed=1)) != first
    turned = convergence_report(classifier, IMAGES.flip(0), INDICES.flip(0), SETTINGS)
    assert turned.mismatches == first.mismatches
    assert turned.warm == pytest.approx(first.warm, rel=1e-5)


def test_measuring_leaves_the_network_as_it_was():
    classifier = Tanh()
    before = classifier.matrix.detach().clone()
    report(classifier)
    assert torch.equal(classifier.matrix, before)
    assert classifier.matrix.grad is None
    assert not classifier.training


def test_a_network_in_training_mode_is_refused_for_curves_alone_too():
    with pytest.raises(SettingError, match=r"^classifier = "):
        report(Tanh().train(), dataclasses.replace(SETTINGS, mismatch_steps=()))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": math.inf}, "sigma"),
        ({"mismatch_steps": (0, 1)}, "mismatch_steps"),
        ({"mismatch_steps": (2, 2)}, "mismatch_steps"),
        ({"mismatch_steps": (31,)}, "mismatch_steps"),
        ({"copies": 0}, "copies"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        ConvergenceSettings(**settings)


def test_rates_and_their_intervals():
    count = MismatchCount(steps=1, mismatches=5, audited=40)
    assert count.rate == 0.125
    low, high = count.interval(alpha=0.1)
    assert beta.cdf(low, 5, 36) == pytest.approx(0.05)
    assert beta.sf(high, 6, 35) == pytest.approx(0.05)
    assert count.interval()[0] < low < 0.125 < high < count.interval()[1]


def test_without_any_audited_sample_nothing_is_known():
    count = MismatchCount(steps=1, mismatches=0, audited=0)
    assert math.isnan(count.rate)
    assert count.interval() == (0.0, 1.0)
