import pytest
import torch
from certification_runs import shipped_network

from deqcert.data import Digits
from deqcert.errors import SettingError, TrainingError
from deqcert.solvers import Anderson
from deqcert.training.starts import compute_start

SOLVER = Anderson(max_steps=40, tolerance=1e-4)


@pytest.fixture(scope="module")
def batches():
    images, _, _ = Digits().load_split("train").__getitems__(list(range(192)))
    return list((images.float() / 255).split(64))


def relative_distance(net, x):
    with torch.no_grad():
        injection = net.inject(x)
        z = SOLVER.solve(lambda z: net.cell(z, injection), net.initial_state(injection)).value
        return float(((net.anchor(injection) - z) ** 2).sum(dim=1).div((z**2).sum(dim=1)).mean().sqrt())


def test_the_mean_start_is_the_mean_fixed_point(batches):
    net = shipped_network("mean")
    report = compute_start(net, batches, sigma=1e-12, solver=SOLVER, steps=3)
    with torch.no_grad():
        injection = net.inject(torch.cat(batches))
        z = SOLVER.solve(lambda z: net.cell(z, injection), net.initial_state(injection)).value
    torch.testing.assert_close(net.anchor(injection)[0], z.mean(dim=0), rtol=1e-3, atol=1e-3)
    assert report.images == 192
    assert net.start_sigma == 1e-12


def test_a_learned_start_is_nearer_than_the_mean_and_the_network_is_left_alone(batches):
    mean, learned = shipped_network("mean"), shipped_network("learned")
    frozen = {name: t.clone() for name, t in learned.state_dict().items() if not name.startswith("start.")}
    torch.manual_seed(1)
    compute_start(mean, batches, sigma=0.25, solver=SOLVER, steps=10)
    torch.manual_seed(1)
    report = compute_start(learned, batches, sigma=0.25, solver=SOLVER, steps=60)
    x = torch.cat(batches) + 0.25 * torch.randn(192, 1, 8, 8)
    assert relative_distance(learned, x) < 0.9 * relative_distance(mean, x)
    assert report.error == pytest.approx(relative_distance(learned, x), rel=0.2)
    assert report.images == 60 * 64
    assert all(torch.equal(learned.state_dict()[name], tensor) for name, tensor in frozen.items())
    assert learned.start_sigma == 0.25


def test_images_are_used_again_when_they_end(batches):
    assert compute_start(shipped_network("mean"), batches[:1], 0.1, SOLVER, steps=5).images == 320


def test_what_cannot_be_computed_is_refused(batches):
    with pytest.raises(SettingError, match=r"model\.network\.start = 'zero': must be mean or learned"):
        compute_start(shipped_network(), batches, 0.1, SOLVER, steps=1)
    with pytest.raises(SettingError, match="steps"):
        compute_start(shipped_network("mean"), batches, 0.1, SOLVER, steps=0)
    with pytest.raises(TrainingError, match="a fixed point is not finite"):
        compute_start(shipped_network("mean"), [torch.full((2, 1, 8, 8), torch.nan)], 0.1, SOLVER, steps=1)
