"""A DEQ made of a function f(z, x) from elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deqcert.errors import SettingError
from deqcert.implicit import Unrolled
from deqcert.lightning.identity import classifier_digest
from deqcert.models import FunctionDEQ
from deqcert.smoothing import Serialized, SmoothedClassifier, Standard, Stream
from deqcert.solvers import Anderson, Picard

SHAPES = [[2, 3, 3], [4]]
CONVERGED = Anderson(max_steps=60, tolerance=1e-6)


class Encoder(nn.Module):
    """Two injections, as a tuple or as a list."""

    def __init__(self, kind: type = tuple) -> None:
        super().__init__()
        self.kind, self.fine, self.coarse = kind, nn.Conv2d(1, 2, 1), nn.Linear(9, 4)

    def forward(self, x):
        return self.kind([self.fine(x), self.coarse(x.flatten(1))])


class Function(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine, self.across = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(18, 4)

    def forward(self, z, x):
        fine, coarse = z
        mean = coarse.mean(dim=1).view(-1, 1, 1, 1)
        return torch.tanh(self.fine(fine) / 2 + x[0] + mean / 2), torch.tanh(self.across(fine.flatten(1)) / 2 + x[1])


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(22, 3)

    def forward(self, z):
        return 5 * self.linear(torch.cat([each.flatten(1) for each in z], dim=1))


def build(kind: type = tuple) -> FunctionDEQ:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FunctionDEQ(Encoder(kind), Function(), Decoder(), SHAPES, CONVERGED).eval()


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 3, 3, generator=torch.Generator().manual_seed(1))


def test_the_solution_is_a_fixed_point_of_the_function():
    network, x = build(), images(5)
    _, solution = network.solve(x, CONVERGED)
    assert solution.converged.all()
    states = network.states_of(solution.value)
    assert [tuple(state.shape) for state in states] == [(5, 2, 3, 3), (5, 4)]
    with torch.no_grad():
        following = network.function(states, network.encoder(x))
    for state, after in zip(states, following, strict=True):
        torch.testing.assert_close(after, state, atol=1e-5, rtol=0)
        assert state.abs().max() > 0.1  # not the start


@pytest.mark.parametrize("kind", [tuple, list])
def test_rows_leave_the_batch_with_their_injections(kind):
    network, x = build(kind), images(16)
    x[:12] *= 30  # saturated: solved at once
    solver = Picard(max_steps=60, tolerance=1e-5)
    together, solution = network.solve(x, solver)
    assert solution.evaluations < len(x) * solution.steps.max()  # some rows left
    alone = torch.cat([network.solve(row[None], solver)[0] for row in x])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_a_single_state_is_a_tensor_and_keeps_its_shape():
    class Half(nn.Module):
        def forward(self, z, x):
            assert z.shape == x.shape == (4, 1, 3, 3)
            return z / 2 + x

    network = FunctionDEQ(nn.Identity(), Half(), nn.Flatten(), [[1, 3, 3]], Picard(max_steps=40)).eval()
    x = images(4)
    torch.testing.assert_close(network(x), 2 * x.flatten(1))


def test_training_reaches_every_part():
    network = build().train()
    injection = network.inject(images(4))
    start = network.initial_state(injection)
    solved = Unrolled(steps=5).fixed_point(lambda z: network.cell(z, injection), start, network.solver)
    network.head(solved.value).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_state_keeps_the_precision_of_the_parameters_under_autocast():
    network = build()
    with torch.autocast("cpu", torch.bfloat16):
        injection = network.inject(images(2))
        assert injection[0].dtype is torch.bfloat16
        assert network.initial_state(injection).dtype is torch.float32


def test_it_is_certified_by_both_strategies():
    g = SmoothedClassifier(build(), sigma=0.25)
    x = images(1)[0]
    for sampling in (Standard(n=400), Serialized(n=400, proposal=Anderson(max_steps=2))):
        certificate = g.certify(x, sampling=sampling, stream=Stream(0, 0))
        assert certificate.sound
        assert certificate.radius > 0
        assert certificate.prediction == int(g.base(x[None]).argmax())


@pytest.mark.parametrize("shapes", [[], [[]], [[4], [0, 2]]])
def test_shapes_that_are_none(shapes):
    with pytest.raises(SettingError, match="shapes"):
        FunctionDEQ(nn.Identity(), nn.Identity(), nn.Identity(), shapes)


def test_states_of_another_shape_are_named():
    class Flat(nn.Module):
        def forward(self, z, x):
            return z.flatten(1) + x.flatten(1)

    network = FunctionDEQ(nn.Identity(), Flat(), nn.Flatten(), [[1, 3, 3]]).eval()
    with pytest.raises(SettingError, match=r"shapes = \(\(1, 3, 3\),\).*must be \(\(9,\),\)"):
        network(images(2))


class TestTorchdeq:
    """The adapter of docs/bring_your_own.md around a model of torchdeq with weight normalization."""

    @pytest.fixture
    def build(self):
        norm = pytest.importorskip("torchdeq.norm", reason="torchdeq is not installed")

        class Adapted(FunctionDEQ):
            def __init__(self) -> None:
                super().__init__(Encoder(), Function(), Decoder(), SHAPES, CONVERGED)
                norm.apply_norm(self.function, "weight_norm")
                self.register_load_state_dict_post_hook(lambda module, _: norm.reset_norm(module.function))

            def inject(self, x):
                norm.reset_norm(self.function)
                return super().inject(x)

        def build(seed: int) -> FunctionDEQ:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                return Adapted().eval()

        return build

    def test_it_finds_the_fixed_point_that_torchdeq_finds(self, build):
        torchdeq = pytest.importorskip("torchdeq")
        network, x = build(0), images(5)
        with torch.no_grad():
            injection = network.inject(x)
            start = network.states_of(network.initial_state(injection))
            deq = torchdeq.get_deq(f_solver="anderson", f_max_iter=100, f_tol=1e-6, f_stop_mode="rel").eval()
            theirs, _ = deq(lambda *z: network.function(z, injection), start)
        _, solution = network.solve(x, CONVERGED)
        for ours, state in zip(network.states_of(solution.value), theirs[-1], strict=True):
            torch.testing.assert_close(ours, state, atol=1e-4, rtol=0)

    def test_loaded_weights_take_effect_and_are_the_same_classifier(self, build):
        saved, other = build(0), build(1)
        assert classifier_digest(saved) != classifier_digest(other)
        other.load_state_dict(saved.state_dict())
        assert classifier_digest(saved) == classifier_digest(other)
        assert torch.equal(saved(images(3)), other(images(3)))
        assert classifier_digest(saved) == classifier_digest(other)

    def test_the_optimizer_takes_effect(self, build):
        network = build(0)
        before = network(images(3))
        with torch.no_grad():
            network.function.fine.weight_g.mul_(2)
        assert not torch.allclose(before, network(images(3)))

    def test_without_the_normalization_it_is_the_same_function(self, build):
        norm = pytest.importorskip("torchdeq.norm")
        network = build(0)
        before = network(images(3))
        norm.remove_norm(network.function)
        assert "function.fine.weight" in network.state_dict()
        torch.testing.assert_close(network(images(3)), before)

    def test_it_is_certified(self, build):
        g = SmoothedClassifier(build(0), sigma=0.25)
        sampling = Serialized(n=400, proposal=Anderson(max_steps=2))
        certificate = g.certify(images(1)[0], sampling=sampling, stream=Stream(0, 0))
        assert certificate.sound
        assert certificate.radius > 0
