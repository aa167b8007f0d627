import pytest
import torch

from deqcert.errors import SettingError
from deqcert.models import MDEQ, AnchoredClassifier, CompiledDEQ
from deqcert.models.mixing import LearnedMixer
from deqcert.solvers import LearnedMixing, Picard

SETTINGS = {"channels": (8, 16), "head_channels": (4, 8), "final_channels": 16, "image_channels": 1, "expansion": 2}


def network(mixing_steps=0):
    torch.manual_seed(0)
    net = MDEQ(**SETTINGS, image_size=8, mean=(0.3,), std=(0.4,), mixing_steps=mixing_steps).eval()
    if net.mixing is not None:
        for parameter in net.mixing.parameters():
            parameter.data = 0.1 * torch.randn_like(parameter)
    return net


def random_gram(rows, pairs):
    gaps = torch.randn(rows, pairs, 20, dtype=torch.float64)
    return gaps @ gaps.mT, torch.rand(rows, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("pairs", [1, 2, 4])
def test_weights_sum_to_one_and_do_not_depend_on_the_scale(pairs):
    mixer = network(4).mixer
    gram, size = random_gram(6, pairs)
    weights, damping = mixer(gram, size)
    assert weights.shape == (6, pairs)
    assert damping.shape == (6,)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(6))
    for before, after in zip((weights, damping), mixer(1e-6 * gram, 1e-6 * size), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert damping.unique().numel() == 6
    if pairs > 1:
        assert weights[:, -1].unique().numel() == 6


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf, 0.0])
def test_rows_without_a_usable_history_take_the_plain_step(spoilt):
    mixer = network(3).mixer
    gram, size = random_gram(4, 3)
    expected = mixer(gram, size)
    gram[1, 2, 2] = spoilt
    size[2] = spoilt
    weights, damping = mixer(gram, size)
    for row in (1, 2):
        assert weights[row].tolist() == [0, 0, 1]
        assert damping[row] == 1
    for given, before in zip((weights, damping), expected, strict=True):
        torch.testing.assert_close(given[[0, 3]], before[[0, 3]])


def test_autocast_does_not_round_the_weights():
    mixer = network(2).mixer
    gram, size = random_gram(4, 2)
    expected = mixer(gram, size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = mixer(gram, size)
    assert all(torch.equal(one, other) for one, other in zip(given, expected, strict=True))


def test_the_form_for_inference_mixes_the_same():
    net, x = network(3), torch.rand(5, 1, 8, 8)
    solver = LearnedMixing(max_steps=3)
    expected, given = (AnchoredClassifier(each, solver)(x) for each in (net, net.for_inference()))
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(given.argmax(dim=1), expected.argmax(dim=1))
    assert not torch.allclose(AnchoredClassifier(net, Picard(max_steps=3))(x), expected, rtol=1e-3)


def test_the_compiled_form_has_the_same_mixer():
    net = network(3)
    assert CompiledDEQ(net).mixer is net.mixer


def test_mixing_is_part_of_the_checkpoint():
    plain, mixing = network(), network(2)
    assert mixing.state_dict().keys() > plain.state_dict().keys()
    assert all(name.startswith("mixing.") for name in mixing.state_dict().keys() - plain.state_dict().keys())
    assert (plain.mixer, mixing.mixer.steps) == (None, 2)
    again = MDEQ(**SETTINGS, image_size=8, mean=(0.3,), std=(0.4,), mixing_steps=2).eval()
    again.load_state_dict(mixing.state_dict())
    x, solver = torch.rand(2, 1, 8, 8), LearnedMixing(max_steps=2)
    assert torch.equal(again.solve(x, solver)[0], mixing.solve(x, solver)[0])


def test_errors_name_the_setting():
    x = torch.rand(1, 1, 8, 8)
    with pytest.raises(SettingError, match=r"solver = 'LearnedMixing': .*model\.network\.mixing_steps"):
        network().solve(x, LearnedMixing(max_steps=1))
    with pytest.raises(SettingError, match=r"solver\.max_steps = 3: must be at most 2"):
        network(2).solve(x, LearnedMixing(max_steps=3))
    for build in (LearnedMixer, lambda steps: MDEQ(mixing_steps=steps)):
        with pytest.raises(SettingError, match=r"^mixing_steps = -1"):
            build(-1)
