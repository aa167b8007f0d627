"""The posterior over weights: its moments, its samples, its files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deqcert.checkpoints import save_checkpoint
from deqcert.errors import CheckpointError, SettingError
from deqcert.uncertainty import WeightPosterior


class Small(nn.Module):
    """Three weights in two tensors."""

    def __init__(self, weights=(0.0, 0.0, 0.0)):
        super().__init__()
        self.first = nn.Parameter(torch.tensor([weights[:2]]))
        self.second = nn.Parameter(torch.tensor(weights[2]))
        self.register_buffer("unrelated", torch.zeros(5))

    def flat(self):
        return [*self.first.flatten().tolist(), self.second.item()]


def snapshots(count, spread=1.0):
    """Correlated weights far from zero, shape (count, 3)."""
    generator = np.random.default_rng(0)
    mixing = np.array([[1.0, 0.9, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.1]])
    return (100 + spread * generator.standard_normal((count, 3)) @ mixing).astype(np.float32)


def collected(weights, rank=20):
    posterior = WeightPosterior(rank)
    for row in weights.tolist():
        posterior.collect(Small(row))
    return posterior


def deviations(weights, rank):
    """Deviations of the last snapshots from the mean of those up to each, as in the paper, in float64."""
    weights = weights.astype(np.float64)
    means = np.cumsum(weights, axis=0) / np.arange(1, len(weights) + 1)[:, None]
    return (weights - means)[-rank:]


def draws(posterior, count):
    generator, module = torch.Generator().manual_seed(1), Small()
    found = []
    for _ in range(count):
        posterior.sample(module, generator)
        found.append(module.flat())
    return np.array(found)


@pytest.mark.parametrize(("count", "rank"), [(2, 2), (7, 3), (7, 20), (40, 5)])
@pytest.mark.parametrize("spread", [1.0, 1e-2])
def test_moments_are_those_of_numpy(count, rank, spread):
    weights = snapshots(count, spread)
    state = collected(weights, rank).state_dict()
    exact = weights.astype(np.float64)
    np.testing.assert_allclose(state["mean"], exact.mean(axis=0), rtol=1e-6)
    # 1e-2 beside 100: the mean of squares minus the squared mean would have no right digit in float32.
    np.testing.assert_allclose(state["squares"] / count, exact.var(axis=0), rtol=0.05)
    np.testing.assert_allclose(state["deviations"], deviations(weights, rank), atol=3e-5)
    assert state["deviations"].shape == (min(count, rank), 3)


@pytest.mark.parametrize("rank", [3, 20])
def test_samples_have_the_mean_and_the_covariance_of_the_paper(rank):
    weights = snapshots(12)
    found = draws(collected(weights, rank), 4000)
    columns = deviations(weights, rank)
    covariance = (np.diag(weights.var(axis=0)) + columns.T @ columns / (len(columns) - 1)) / 2
    deviation = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - weights.mean(axis=0)), 5 * deviation / 4000**0.5)
    # The standard error of a covariance is at most sqrt(2 / n) of the product of the standard deviations.
    error = np.abs(np.cov(found.T, bias=True) - covariance) / np.outer(deviation, deviation)
    assert error.max() < 5 * (2 / 4000) ** 0.5


def test_the_scale_is_that_of_the_deviation_from_the_mean():
    posterior = collected(snapshots(5))
    mean, once, twice = Small(), Small(), Small()
    for module, scale in ((mean, 0.0), (once, 1.0), (twice, 2.0)):
        posterior.sample(module, torch.Generator().manual_seed(3), scale)
    np.testing.assert_allclose(mean.flat(), snapshots(5).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(
        np.subtract(twice.flat(), mean.flat()), 2 * np.subtract(once.flat(), mean.flat()), rtol=1e-3
    )


def test_sampling_changes_parameters_in_place_and_nothing_else():
    module = Small()
    parameters, versions = list(module.parameters()), [each._version for each in module.parameters()]
    collected(snapshots(3)).sample(module)
    assert [id(each) for each in module.parameters()] == [id(each) for each in parameters]
    assert all(each._version > version for each, version in zip(parameters, versions, strict=True))  # caches look at it
    assert module.unrelated.tolist() == [0] * 5


def test_a_file_has_everything_and_more_can_be_collected(tmp_path):
    weights = snapshots(6)
    path = tmp_path / "new" / "posterior.ckpt"
    collected(weights[:4], rank=3).save(path)
    torch.load(path, weights_only=True)
    loaded = WeightPosterior.load(path)
    for row in weights[4:].tolist():
        loaded.collect(Small(row))
    expected = collected(weights, rank=3).state_dict()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]) if isinstance(value, torch.Tensor) else value == expected[name]


def test_a_posterior_without_snapshots_can_be_saved(tmp_path):
    WeightPosterior().save(tmp_path / "empty.ckpt")
    assert WeightPosterior.load(tmp_path / "empty.ckpt").snapshots == 0


@pytest.mark.parametrize("rank", [1, 0, -1, 2.0, True])
def test_a_rank_below_two_is_refused(rank):
    with pytest.raises(SettingError, match=r"^rank = .*: must be an integer >= 2"):
        WeightPosterior(rank)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_snapshots_have_no_covariance(count):
    posterior = collected(snapshots(count))
    module = Small()
    with pytest.raises(SettingError, match=rf"^snapshots = {count}: must be >= 2"):
        posterior.sample(module)
    assert module.flat() == [0, 0, 0]


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_a_scale_out_of_range_is_refused(scale):
    with pytest.raises(SettingError, match=r"^scale = "):
        collected(snapshots(3)).sample(Small(), scale=scale)


def test_another_module_is_refused_and_nothing_is_lost():
    posterior, other = collected(snapshots(3)), nn.Linear(2, 3)
    message = r"^module = 'Linear': must have parameters of the names and shapes that were collected"
    for act in (posterior.collect, posterior.sample):
        with pytest.raises(SettingError, match=message):
            act(other)
    assert posterior.snapshots == 3
    with pytest.raises(SettingError, match=r"^module = 'Flatten': must have parameters"):
        WeightPosterior().collect(nn.Flatten())


def test_weights_that_are_not_finite_are_refused():
    posterior = collected(snapshots(3))
    with pytest.raises(SettingError, match=r"^module = 'Small': must have finite weights"):
        posterior.collect(Small([0.0, float("nan"), 0.0]))
    assert posterior.snapshots == 3


def _without_a_column(state):
    state["deviations"] = state["deviations"][1:]


def _not_finite(state):
    state["mean"][0] = torch.nan


def _of_another_size(state):
    state["squares"] = state["squares"][:2]


def _without_a_mean(state):
    del state["mean"]


def _with_rank_one(state):
    state["rank"] = 1


@pytest.mark.parametrize("damage", [_without_a_column, _not_finite, _of_another_size, _without_a_mean, _with_rank_one])
def test_a_damaged_state_is_refused(damage, tmp_path):
    state = collected(snapshots(3)).state_dict()
    damage(state)
    save_checkpoint(state, tmp_path / "posterior.ckpt")
    with pytest.raises(CheckpointError, match=r"^path = '.*posterior.ckpt': not the state of a WeightPosterior"):
        WeightPosterior.load(tmp_path / "posterior.ckpt")


def test_a_file_that_is_not_there_or_something_else_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="must be an existing checkpoint file"):
        WeightPosterior.load(tmp_path / "none.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="not the state of a WeightPosterior"):
        WeightPosterior.load(tmp_path / "list.ckpt")
