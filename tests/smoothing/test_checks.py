"""What is no function of one image, and what is not the same function, is found before it votes."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from sampling_runs import measurement, shipped_network, smoothed, votes_of
from torch import nn

from deqcert.errors import SettingError
from deqcert.models import DEQ, MDEQ
from deqcert.smoothing import Execution, Serialized, Standard
from deqcert.smoothing.checks import logit_error
from deqcert.solvers import Anderson, Broyden, Picard

IMAGE = torch.full((1, 8, 8), 0.5)
SAMPLING = Standard(n0=10, n=60, batch_size=16)
SERIALIZED = Serialized(n0=10, n=60, batch_size=16, proposal=Picard(max_steps=1))
WAYS = {  # sampling and solver
    "standard-30A": (SAMPLING, Anderson(max_steps=30, tolerance=1e-3)),
    "standard-8B": (SAMPLING, Broyden(max_steps=8)),
    "SRS-1N": (SERIALIZED, Anderson(max_steps=30, tolerance=1e-3)),
}
each_way = pytest.mark.parametrize(("sampling", "solver"), WAYS.values(), ids=WAYS)


def prepared(network, sampling=SAMPLING, image=IMAGE, **settings):
    """Return the engine, which checks what is to vote."""
    return sampling.engine(smoothed(network, **settings), image)


# The faster form.


def with_twin(threshold_deq, network, twin):
    class Network(threshold_deq):
        def head(self, z):
            return network(z)

        def for_inference(self):
            other = threshold_deq()
            other.head = twin
            return other

    return Network()


def flipped(level):
    """Logits ``level`` + [t, -t, -2 level], and the same with the sign of t changed."""

    def head(z, sign=1.0):
        t = sign * (z - 1)
        return torch.cat([level + t, level - t, torch.full_like(z, -level)], dim=1)

    return head, lambda z: head(z, -1.0)


@pytest.mark.parametrize("level", [0.0, 1.0, 1e3, 1e5])
def test_a_faster_form_that_flips_labels_is_not_used_however_large_the_logits(threshold_deq, level):
    head, twin = flipped(level)
    with pytest.warns(UserWarning, match=r"Network\.for_inference\(\)"):
        given = votes_of(SAMPLING, smoothed(with_twin(threshold_deq, head, twin)), IMAGE)
    alone = votes_of(SAMPLING, smoothed(with_twin(threshold_deq, head, head)), IMAGE)
    assert measurement(given, "residual") == measurement(alone, "residual")
    assert min(alone.estimation[:2]) > 5


def test_a_faster_form_is_compared_on_samples_of_the_noise_that_votes(threshold_deq):
    """It is another function where the mean pixel is above 1/2 + 1/8: never at sigma = 0.1, often at sigma = 2."""

    def twin(z):
        moved = torch.where(z > 1.25, 3 - z, z)
        return torch.cat([moved, torch.ones_like(z)], dim=1)

    def head(z):
        return torch.cat([z, torch.ones_like(z)], dim=1)

    network = with_twin(threshold_deq, head, twin)
    for sigma, warned in ((0.1, False), (2.0, True)):
        with warnings.catch_warnings(record=True, action="always") as caught:
            prepared(network, sigma=sigma, solver=Picard(max_steps=60))
        assert any("not used" in str(each.message) for each in caught) == warned


def test_a_faster_form_that_is_not_finite_is_not_used(threshold_deq):
    class Network(threshold_deq):
        def for_inference(self):
            return threshold_deq(poison=-math.inf)

    with pytest.warns(UserWarning, match="not used"):
        prepared(Network())


@pytest.mark.parametrize("start", ["zero", "anchor"])
@each_way
def test_the_faster_form_of_a_shipped_network_is_used(sampling, solver, start):
    network = shipped_network("zero" if start == "zero" else "mean")
    if start == "anchor":
        network.start.sigma.fill_(0.5)
    engine = prepared(network, sampling, torch.rand(1, 8, 8), solver=solver, start=start)
    assert type(engine.base.network) is type(network.for_inference())


# Functions of one image.


class BatchNormalized(nn.Module):
    """Class 1 where the mean pixel exceeds that of the batch: alone every sample has class 0."""

    def forward(self, x):
        mean = x.flatten(1).mean(dim=1)
        return torch.stack([torch.zeros_like(mean), mean - mean.mean()], dim=1)


class Random(nn.Module):
    def forward(self, x):
        return torch.randn(len(x), 2)


class OneByOneOnly(nn.Module):
    """Loses the dimension of a batch of one."""

    def forward(self, x):
        return nn.functional.pad(x.flatten(1).mean(dim=1)[:, None], (0, 1)).squeeze(0)


@pytest.mark.parametrize("kind", [BatchNormalized, Random, OneByOneOnly])
def test_a_classifier_that_depends_on_the_batch_is_refused(kind):
    with pytest.raises(SettingError, match=rf"^classifier = '{kind.__name__}'"):
        prepared(kind().eval())


@each_way
@pytest.mark.parametrize("part", ["inject", "cell", "head"])
def test_a_deq_that_depends_on_the_batch_is_refused(sampling, solver, part, threshold_deq):
    def centered(self, *arguments):
        return getattr(threshold_deq, part)(self, *[each - each.mean(dim=0) for each in arguments])

    network = type("Centered", (threshold_deq,), {part: centered})()
    with pytest.raises(SettingError, match=r"^classifier = 'Centered'"):
        prepared(network, sampling, solver=solver)


class Keeping(DEQ):
    """Hands the injection from inject to cell through self, as a plain module may."""

    def __init__(self):
        super().__init__(Picard(max_steps=30))
        self.eval()

    def inject(self, x):
        self.kept = x.flatten(1).mean(dim=1, keepdim=True)
        return self.kept

    def initial_state(self, injection):
        return torch.zeros_like(injection)

    def cell(self, z, injection):
        return 0.5 * z + self.kept

    def head(self, z):
        return torch.cat([z, torch.ones_like(z)], dim=1)


class KeepingForHead(Keeping):
    def cell(self, z, injection):
        self.shift = injection
        return 0.5 * z + injection

    def head(self, z):
        return torch.cat([z + self.shift, torch.full_like(z, 1.5)], dim=1)


class KeepingForStart(Keeping):
    def initial_state(self, injection):
        return self.kept

    def cell(self, z, injection):
        return 0.5 * z + injection


@each_way
@pytest.mark.parametrize("kind", [Keeping, KeepingForHead])
def test_a_deq_that_keeps_state_on_itself_is_refused(sampling, solver, kind):
    with pytest.raises(SettingError, match=rf"^classifier = '{kind.__name__}'.* through self"):
        prepared(kind(), sampling, solver=solver)


def test_a_start_that_is_kept_is_found_where_the_solve_does_not_forget_it():
    with pytest.raises(SettingError, match=r"^classifier = 'KeepingForStart'"):
        prepared(KeepingForStart(), solver=Picard(max_steps=2))


@each_way
def test_networks_with_random_weights_pass(sampling, solver):
    torch.manual_seed(0)
    shape = {"channels": (8, 16), "head_channels": (4, 8), "image_channels": 1, "image_size": 8}
    prepared(MDEQ(**shape, mean=(0.3,), std=(0.4,)).eval(), sampling, solver=solver)


def test_explicit_classifiers_are_not_shared_between_threads():
    """What their forward keeps in attributes is theirs."""
    several = Standard(n0=5, n=20, execution=Execution(rows=4))
    assert prepared(nn.Flatten().eval(), several)._workers is None
    assert prepared(shipped_network(), several)._workers is not None


# The measure.


def test_logit_error_by_hand():
    expected = torch.tensor([[3.0, 1.0, -7.0], [0.0, 2.0, 0.0]])  # runners-up at 2 and 2
    assert logit_error(expected, expected + 5.0) < 1e-6  # a shift decides nothing
    for place, error in ((1, 1 / 4), (2, 1 / 12)):  # 1 of 2 + 2, and 1 of 10 + 2
        given = expected.clone()
        given[0, place] += 1
        assert logit_error(expected, given) == pytest.approx(error, rel=1e-4)
    assert logit_error(expected, expected[:, [1, 0, 2]]) >= 1 / 2
    assert logit_error(expected, expected[:, :2]) == math.inf


def test_logits_that_are_not_finite_are_compared_as_such():
    expected = torch.tensor([[3.0, 1.0], [math.nan, 0.0]])
    assert logit_error(expected, torch.tensor([[3.0, 1.0], [0.0, math.inf]])) == 0
    assert logit_error(expected, torch.tensor([[3.0, 1.0], [0.0, 1.0]])) == math.inf
    assert logit_error(torch.full((2, 3), math.nan), torch.full((2, 3), math.inf)) == 0


def test_rounding_of_large_logits_is_no_error():
    expected = 1e4 + torch.tensor([[0.0, 1e-3], [0.0, 2e-3]])
    assert logit_error(expected, expected + torch.tensor([[1e-3, 0.0], [0.0, 0.0]])) == 0
    assert logit_error(expected.double(), expected.double() + torch.tensor([[1e-3, 0.0], [0.0, 0.0]])) > 0.1


def test_the_probe_takes_the_solver_of_the_certificate(threshold_deq):
    """Differences that only its first steps show."""

    class Mixing(Anderson):
        def init(self, start, workspace):
            iteration = super().init(start, workspace)
            step = iteration.step
            iteration.step = lambda z, fz, residual: step(z, fz, residual).mean(dim=0, keepdim=True).expand_as(fz)
            return iteration

    with pytest.raises(SettingError, match=r"^classifier = "):
        prepared(threshold_deq(), solver=Mixing(max_steps=30))
