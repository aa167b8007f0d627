"""Predictions under samples of the weights: reuse changes what they take, not what they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from deqcert.checkpoints import load_network
from deqcert.errors import SettingError
from deqcert.models import FunctionDEQ
from deqcert.reuse import FixedPointCache
from deqcert.solvers import Anderson
from deqcert.uncertainty import Predictive, WeightPosterior, predictive, weight_samples

TIGHT = Anderson(max_steps=100, tolerance=1e-4)


def network(dropout=0.0):
    deq = load_network("deqcert:digits_mdeq_tiny").network
    deq.dropout, deq.solver = dropout, TIGHT
    return deq


def posterior_of(module, spread=0.02):
    """What was collected of weights around those of the module, which keeps its own."""
    posterior, own = WeightPosterior(), {name: each.clone() for name, each in module.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        module.load_state_dict(own)
        with torch.no_grad():
            for weight in module.parameters():
                weight.mul_(1 + spread * torch.randn(weight.shape, generator=generator))
        posterior.collect(module)
    module.load_state_dict(own)
    return posterior


def images(count=6, seed=2):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def deq():
    return network()


@pytest.fixture(scope="module")
def samples(deq):
    batches = list(images(16, seed=3).split(8))
    return weight_samples(deq, posterior_of(deq), 4, batches, generator=torch.Generator().manual_seed(4))


def unchanged(module):
    expected = network().state_dict()
    return all(torch.equal(each, expected[name]) for name, each in module.state_dict().items())


@pytest.mark.parametrize("policy", ["previous", "first"])
def test_cold_and_reused_predictions_agree_at_a_tight_tolerance(deq, samples, policy):
    x = images()
    cold = predictive(deq, samples, x, TIGHT)
    cache = FixedPointCache(policy, across_weights=True)
    reused = predictive(deq, samples, x, TIGHT, cache, batch_size=4)
    assert cold.converged.all()
    assert reused.converged.all()
    assert (cold.by_sample.std(dim=0) > 2e-2).any(), "the samples differ, or nothing would be tested"
    torch.testing.assert_close(reused.by_sample, cold.by_sample, rtol=0, atol=2e-3)
    assert (reused.steps[0] == cold.steps[0]).all()
    assert reused.steps[1:].sum() < 0.9 * cold.steps[1:].sum()
    savings = cache.savings
    assert (savings.hits, savings.misses) == (3 * 6, 6)
    assert savings.nfe_hits + savings.nfe_misses == reused.steps.sum()
    assert unchanged(deq)


def test_each_sample_is_the_network_with_these_weights(deq, samples):
    x = images()
    found = predictive(deq, samples, x, TIGHT, batch_size=4)
    twin = network()
    for sample, probabilities, steps in zip(samples, found.by_sample, found.steps, strict=True):
        twin.load_state_dict(sample)
        logits, solution = twin.solve(x, TIGHT)
        torch.testing.assert_close(probabilities, logits.softmax(dim=1))
        assert torch.equal(steps, solution.steps)


def test_probabilities_are_the_mean_and_the_entropy_is_theirs():
    found = Predictive(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), torch.ones(2, 1), torch.ones(2, 1))
    assert found.probabilities.tolist() == [[0.5, 0.5]]
    assert found.entropy.item() == pytest.approx(0.6931, abs=1e-4)
    assert Predictive(torch.tensor([[[1.0, 0.0]]]), torch.ones(1, 1), torch.ones(1, 1)).entropy.tolist() == [0]


def test_batch_norms_are_those_of_torch_for_each_sample(deq, samples):
    batches = list(images(16, seed=3).split(8))
    twin = network()
    for sample in samples:
        twin.load_state_dict(sample)
        update_bn(batches, twin)
        compared = [name for name in sample if name.endswith(("running_mean", "running_var", "batches_tracked"))]
        assert len(compared) > 6
        for name in compared:
            torch.testing.assert_close(sample[name], twin.state_dict()[name], rtol=1e-3, atol=1e-4)
    statistics = [sample["mdeq_head.final.1.running_mean"] for sample in samples]
    assert not torch.allclose(statistics[0], statistics[1], rtol=1e-2)


def test_batch_norms_go_on_as_before(deq, samples):
    norms = [each for each in deq.modules() if isinstance(each, nn.BatchNorm2d)]
    assert norms
    assert {(each.momentum, each.training) for each in norms} == {(0.1, False)}
    assert unchanged(deq)


def test_dropout_takes_no_part():
    deq, batches = network(dropout=0.5), [images(8)]
    first, second = (
        weight_samples(deq, posterior_of(deq), 1, batches, generator=torch.Generator().manual_seed(4)) for _ in range(2)
    )
    assert all(torch.equal(each, second[0][name]) for name, each in first[0].items())


def test_the_mean_weights_are_the_sample_of_scale_zero(deq):
    posterior = posterior_of(deq)
    (mean,) = weight_samples(deq, posterior, 1, [images(8)], scale=0.0)
    flat = torch.cat([mean[name].flatten() for name, _ in deq.named_parameters()])
    torch.testing.assert_close(flat, posterior.state_dict()["mean"])


def test_a_network_without_batch_norms_needs_no_images():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.5))

        def forward(self, z, x):
            return self.rate * z + x

    deq = FunctionDEQ(nn.Flatten(), Half(), nn.Identity(), shapes=[[4]], solver=TIGHT).eval()
    samples = weight_samples(deq, posterior_of(deq), 3)
    found = predictive(deq, samples, torch.rand(2, 1, 2, 2))
    assert found.probabilities.shape == (2, 4)
    with pytest.raises(SettingError, match=r"^batches = 'none': must be training images"):
        weight_samples(network(), posterior_of(network()), 1)


def test_a_network_in_training_mode_is_refused(samples):
    deq = network().train()
    for act in (
        lambda: predictive(deq, samples, images()),
        lambda: weight_samples(deq, posterior_of(deq), 1, [images()]),
    ):
        with pytest.raises(SettingError, match=r"^network.training = True: must be False"):
            act()


def test_a_cache_for_one_network_is_refused_and_the_weights_come_back(samples):
    deq = network()
    with pytest.raises(SettingError, match="must have the weights that this cache began with"):
        predictive(deq, samples, images(), TIGHT, FixedPointCache())
    assert unchanged(deq)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": []}, r"^weights = 0: must be at least one sample"),
        ({"images": images()[:0]}, r"^images = \(0, 1, 8, 8\): must be at least one"),
        ({"batch_size": 0}, r"^batch_size = 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(deq, samples, settings, message):
    with pytest.raises(SettingError, match=message):
        predictive(deq, **({"weights": samples, "images": images()} | settings))


def test_no_sample_is_refused(deq):
    with pytest.raises(SettingError, match=r"^count = 0"):
        weight_samples(deq, posterior_of(deq), 0, [images()])
