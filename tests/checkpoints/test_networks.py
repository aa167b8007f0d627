"""Networks out of checkpoints, shipped and hostile ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deqcert.checkpoints import load_network, network_weights, read_checkpoint, save_checkpoint
from deqcert.errors import CheckpointError
from deqcert.models import MDEQ, CifarResNet
from deqcert.monotone import MonotoneDEQ

SHIPPED = sorted((Path(__file__).parents[2] / "checkpoints").glob("*/model.ckpt"))
TINY = {"channels": [8, 16], "head_channels": [2, 4], "final_channels": 16, "image_size": 8, "expansion": 1}


def checkpoint(settings=TINY, **more):
    network = MDEQ(**TINY)
    weights = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    return {"state_dict": weights, "architecture": {"network": "MDEQ", "settings": settings}} | more


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_shipped_checkpoints_say_what_network_they_hold(path):
    network, sigma = load_network(path)
    assert sigma == (0.0 if isinstance(network, MonotoneDEQ) else 0.5)
    assert not network.training
    weights = network_weights(read_checkpoint(path)["state_dict"])
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    x = torch.rand(2, network.image_channels, network.image_size, network.image_size)
    assert network(x).shape == (2, network.num_classes)


@pytest.fixture
def load(tmp_path):
    """Loads the network of a checkpoint with this content."""

    def load(content, network=None):
        save_checkpoint(content, tmp_path / "c.ckpt")
        return load_network(tmp_path / "c.ckpt", network)

    return load


def test_a_given_network_takes_the_weights_and_leaves_training_mode(load):
    content = checkpoint(hyper_parameters={"sigma": 0.25})
    network = MDEQ(**TINY, dropout=0.1).train()
    assert load(content, network) == (network, 0.25)
    assert not network.training
    assert all(
        torch.equal(network.state_dict()[name.removeprefix("network.")], w) for name, w in content["state_dict"].items()
    )
    assert load(checkpoint()).sigma is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"architecture": None}, "states no network of deqcert"),
        ({"architecture": {"network": "torch.nn.Linear", "settings": {}}}, "states no network of deqcert"),
        ({"architecture": {"network": "MDEQ", "settings": {"channels": "large"}}}, "cannot be built"),
        ({"architecture": {"network": "MDEQ", "settings": TINY | {"num_groups": 3}}}, "num_groups = 3"),
        ({"architecture": {"network": "MDEQ", "settings": TINY | {"final_channels": 10**9}}}, "another architecture"),
        ({"state_dict": {"network.w": torch.ones(1), "other": torch.ones(1)}}, "other is not a weight of a network"),
        ({"state_dict": {"other": torch.ones(1)}}, "missing .*; unexpected other; deqcert convert FILE --to"),
    ],
)
def test_what_cannot_be_built_is_refused_before_it_takes_memory(load, change, complaint):
    with pytest.raises(CheckpointError, match=f"^ckpt_path: .*{complaint}"):
        load(checkpoint() | change)


def test_another_network_and_weights_that_are_not_finite_are_refused(load):
    with pytest.raises(CheckpointError, match=r"model\.network is CifarResNet, must be MDEQ"):
        load(checkpoint(), CifarResNet(depth=8))
    spoilt = checkpoint()
    spoilt["state_dict"]["network.mdeq_head.classifier.bias"][0] = torch.nan
    with pytest.raises(CheckpointError, match="must be finite"):
        load(spoilt)


def test_lightning_is_not_needed():
    code = f"import sys; from deqcert.checkpoints import load_network; load_network({str(SHIPPED[-1])!r}); "
    assert (
        subprocess.run([sys.executable, "-c", code + "sys.exit('lightning' in sys.modules)"], check=False).returncode
        == 0
    )
