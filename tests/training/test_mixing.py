import math

import pytest
import torch
from certification_runs import shipped_network

from deqcert.data import Digits
from deqcert.errors import SettingError, TrainingError
from deqcert.models.mixing import LearnedMixer
from deqcert.solvers import Anderson, LearnedMixing, Picard
from deqcert.training.mixing import train_mixing
from deqcert.training.starts import compute_start

SOLVER = Anderson(max_steps=40, tolerance=1e-4)


@pytest.fixture(scope="module")
def batches():
    images, _, _ = Digits().load_split("train").__getitems__(list(range(192)))
    return list((images.float() / 255).split(64))


def mixing_network(start="zero", steps=3):
    net = shipped_network(start)
    net.mixing = LearnedMixer(steps)
    return net


def distance(net, x, solver):
    z = net.solve(x, SOLVER)[1].value
    few = net.solve(x, solver, anchored=True)[1].value
    return float(((few - z) ** 2).sum(dim=1).div((z**2).sum(dim=1)).mean().sqrt())


def test_learned_steps_come_closer_than_plain_ones_and_the_network_is_left_alone(batches):
    torch.manual_seed(0)
    net = mixing_network("mean")
    compute_start(net, batches, sigma=0.25, solver=SOLVER, steps=5)
    frozen = {name: t.clone() for name, t in net.state_dict().items() if not name.startswith("mixing.")}
    report = train_mixing(net, batches, sigma=0.25, solver=SOLVER, steps=60)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in frozen.items())
    assert all(parameter.grad is None for name, parameter in net.named_parameters() if "mixing" not in name)
    assert report.images == 60 * 64
    assert len(report.plain) == len(report.anderson) == len(report.learned) == 3
    assert report.learned[1] < 0.95 * min(report.plain[1], report.anderson[1])
    assert report.learned[2] < 0.85 * min(report.plain[2], report.anderson[2])
    x = torch.cat(batches) + 0.25 * torch.randn(192, 1, 8, 8)
    for shown, solver in ((report.learned, LearnedMixing(max_steps=3)), (report.plain, Picard(max_steps=3))):
        assert shown[2] == pytest.approx(distance(net, x, solver), rel=0.2)


def test_what_cannot_be_trained_is_refused(batches):
    with pytest.raises(SettingError, match=r"model\.network\.mixing_steps = 0: must be >= 1"):
        train_mixing(shipped_network(), batches, 0.1, SOLVER, steps=1)
    with pytest.raises(SettingError, match=r"model\.network\.start = 'mean': must be computed first"):
        train_mixing(mixing_network("mean"), batches, 0.1, SOLVER, steps=1)
    with pytest.raises(SettingError, match=r"^mixing_batches = 0"):
        train_mixing(mixing_network(), batches, 0.1, SOLVER, steps=0)
    with pytest.raises(SettingError, match=r"^sigma = 0"):
        train_mixing(mixing_network(), batches, 0, SOLVER, steps=1)
    spoilt = mixing_network()
    spoilt.mixing.predictors[0][-1].bias.data.fill_(math.nan)
    with pytest.raises(TrainingError, match="the learned mixing is not finite"):
        train_mixing(spoilt, batches, 0.1, SOLVER, steps=1)
