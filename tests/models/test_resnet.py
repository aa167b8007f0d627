import pytest
import torch
import torch.nn.functional as F
from sampling_runs import SMALL, smoothed, votes_of
from torchvision.models import resnet50

from deqcert.errors import SettingError
from deqcert.models import CifarResNet, ResNet50
from deqcert.smoothing import Standard

MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(-1, 1, 1)
STD = torch.tensor([0.2023, 0.1994, 0.2010]).view(-1, 1, 1)


def by_hand(weights, x):
    """A CIFAR residual network of depth 8, from its weights."""

    def bn(name, y):
        running = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        return F.batch_norm(y, *running, weights[f"{name}.weight"], weights[f"{name}.bias"])

    y = F.relu(bn("bn1", F.conv2d((x - MEAN) / STD, weights["conv1.weight"], padding=1)))
    for stage in (1, 2, 3):
        block, stride = f"layer{stage}.0", 1 if stage == 1 else 2
        out = F.relu(bn(f"{block}.bn1", F.conv2d(y, weights[f"{block}.conv1.weight"], padding=1, stride=stride)))
        out = bn(f"{block}.bn2", F.conv2d(out, weights[f"{block}.conv2.weight"], padding=1))
        if stage > 1:
            y = bn(f"{block}.downsample.1", F.conv2d(y, weights[f"{block}.downsample.0.weight"], stride=2))
        y = F.relu(out + y)
    return F.linear(F.avg_pool2d(y, 8).flatten(1), weights["fc.weight"], weights["fc.bias"])


def test_the_small_one_is_the_published_arithmetic():
    torch.manual_seed(0)
    network = CifarResNet(depth=8).eval()
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.copy_(0.5 + torch.rand_like(buffer))
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(network(x), by_hand(network.state_dict(), x), rtol=1e-4, atol=1e-5)


def test_resnet_110_has_the_published_size():
    assert sum(parameter.numel() for parameter in CifarResNet().parameters()) == 1_730_714


def test_resnet_50_is_torchvision_s_behind_a_normalisation():
    network, plain = ResNet50().eval(), resnet50(weights=None).eval()
    plain.load_state_dict(network.state_dict())
    x = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(network(x), plain((x - mean) / std))


def test_it_is_certified_by_standard_smoothing():
    torch.manual_seed(0)
    network = CifarResNet(depth=8, num_classes=3, image_channels=1, image_size=8, mean=(0.3,), std=(0.4,)).eval()
    votes = votes_of(Standard(**SMALL), smoothed(network), torch.rand(1, 8, 8))
    assert sum(votes.estimation) == 50
    assert votes.nfe_fast == 60


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"depth": 9}, "depth"),
        ({"depth": 2}, "depth"),
        ({"num_classes": 1}, "num_classes"),
        ({"image_size": 30}, "image_size"),
        ({"mean": (0.5,)}, "mean"),
        ({"std": (0.0, 1.0, 1.0)}, "std"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        CifarResNet(**settings)


@pytest.mark.parametrize(
    ("settings", "field"), [({"num_classes": 1}, "num_classes"), ({"image_size": 8}, "image_size")]
)
def test_bad_settings_of_the_large_one_are_refused_by_name(settings, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        ResNet50(**settings)
