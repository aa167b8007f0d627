import pytest
import torch

from deqcert.errors import SettingError
from deqcert.models import MDEQ
from deqcert.models.starts import LearnedStart, MeanStart
from deqcert.solvers import Anderson

SHAPES = ((8, 8, 8), (16, 4, 4))


def network(start="zero"):
    torch.manual_seed(0)
    settings = {"channels": (8, 16), "head_channels": (4, 8), "final_channels": 16, "image_channels": 1, "expansion": 2}
    net = MDEQ(**settings, image_size=8, mean=(0.3,), std=(0.4,), start=start).eval()
    if net.start is not None:
        for parameter in (*net.start.parameters(), *net.start.buffers()):
            parameter.data = torch.randn_like(parameter)
    return net


@pytest.mark.parametrize("kind", ["zero", "mean", "learned"])
def test_the_anchor_is_a_function_of_each_image_by_itself(kind):
    net, x = network(kind), torch.rand(4, 1, 8, 8)
    together = net.anchor(net.inject(x))
    alone = torch.cat([net.anchor(net.inject(each[None])) for each in x])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=3e-5)  # kernels round by the batch they are for
    assert together.shape == net.initial_state(net.inject(x)).shape
    assert bool((together[0] == together[1]).all()) == (kind != "learned")
    assert bool((together == 0).all()) == (kind == "zero")


@pytest.mark.parametrize("kind", ["zero", "mean", "learned"])
def test_the_form_for_inference_starts_from_the_same(kind):
    net, x = network(kind), torch.rand(3, 1, 8, 8)
    expected, given = (each.solve(x, Anderson(max_steps=2), "anchor")[0] for each in (net, net.for_inference()))
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-4)
    if kind != "zero":
        cold = net.solve(x, Anderson(max_steps=2))[0]
        assert not torch.allclose(cold, expected, rtol=1e-2)


def test_a_learned_start_begins_as_the_mean():
    torch.manual_seed(0)
    learned, mean = LearnedStart(SHAPES), MeanStart(SHAPES)
    branches = [torch.randn(shape) for shape in SHAPES]
    for start in (learned, mean):
        start.set_mean(branches)
    features = torch.randn(3, 8, 8, 8)
    for one, other, branch in zip(learned(features), mean(features), branches, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(other, branch.expand_as(other))


def test_the_start_is_part_of_the_checkpoint():
    assert not [name for name in network().state_dict() if name.startswith("start.")]
    names = {name for name in network("mean").state_dict() if name.startswith("start.")}
    assert names == {"start.sigma", "start.branch0", "start.branch1"}
    assert names < {name for name in network("learned").state_dict() if name.startswith("start.")}


def test_a_network_tells_its_start():
    assert (network().start_kind, network().start_sigma) == ("zero", None)
    net = MDEQ(start="mean")
    assert (net.start_kind, net.start_sigma) == ("mean", 0.0)
    with pytest.raises(SettingError, match=r"^start = 'random': must be one of zero, mean, learned"):
        MDEQ(start="random")
