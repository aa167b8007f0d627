"""A state dict and safetensors in the place of a checkpoint: read where only one reading is possible."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deqcert.checkpoints import load_network, network_weights, read_checkpoint, save_checkpoint
from deqcert.errors import CheckpointError, SettingError
from deqcert.interchange import write_safetensors
from deqcert.models import MDEQ
from deqcert.smoothing import SmoothedClassifier

TINY = {"channels": [8, 16], "head_channels": [2, 4], "final_channels": 16, "image_size": 8, "expansion": 1}
FORMS = {
    "names of the network": lambda weights: weights,
    "names with network.": lambda weights: {f"network.{name}": each for name, each in weights.items()},
    "among other things": lambda weights: {"state_dict": weights, "epoch": 3},
}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return MDEQ(**TINY)


def same(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(each, others[name]) for name, each in weights.items())


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("form", FORMS)
def test_weights_by_names_with_and_without_network(network, tmp_path, form, suffix):
    content, path = FORMS[form](network.state_dict()), tmp_path / f"w.{suffix}"
    if suffix == "pt":
        torch.save(content, path)
    elif form == "among other things":
        pytest.skip("safetensors hold tensors only")
    else:
        save_file(content, path)
    checkpoint = read_checkpoint(path)
    assert same(network_weights(checkpoint["state_dict"]), network.state_dict())
    loaded, sigma = load_network(path, MDEQ(**TINY))
    assert same(loaded.state_dict(), network.state_dict())
    assert sigma is None
    with pytest.raises(CheckpointError, match="states no network of deqcert"):
        load_network(path)
    with pytest.raises(SettingError, match=r"^sigma = None: must be given"):
        SmoothedClassifier.from_checkpoint(path, network=MDEQ(**TINY))
    assert SmoothedClassifier.from_checkpoint(path, sigma=0.25, network=MDEQ(**TINY)).sigma == 0.25


def test_safetensors_of_convert_say_what_network_they_hold(network, tmp_path):
    stated = {"network": "MDEQ", "settings": TINY}
    write_safetensors(tmp_path / "w.safetensors", network.state_dict(), 0.125, "", stated)
    loaded, sigma = load_network(tmp_path / "w.safetensors")
    assert same(loaded.state_dict(), network.state_dict())
    assert sigma == 0.125


class Wrapped(nn.Module):
    """A network whose own names begin like those of a checkpoint."""

    def __init__(self, **others):
        super().__init__()
        self.network = nn.Linear(2, 2)
        for name, module in others.items():
            setattr(self, name, module)


def test_a_network_that_has_a_network_is_never_taken_for_another(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(Wrapped().state_dict(), path)
    assert load_network(path, nn.Linear(2, 2)).network.weight.shape == (2, 2)  # the other reading, which fits
    with pytest.raises(
        CheckpointError, match=r"missing network\.bias; .*unexpected bias.*; deqcert convert FILE --to "
    ):
        load_network(path, Wrapped())
    torch.save({f"network.{name}": each for name, each in Wrapped().state_dict().items()}, path)
    load_network(path, Wrapped())
    torch.save(Wrapped(head=nn.Linear(2, 2)).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"head\.weight is not a weight of a network of ours; convert it first"):
        load_network(path, Wrapped(head=nn.Linear(2, 2)))


def test_expected_and_found_names_and_what_converts_them(network, tmp_path):
    torch.save({f"module.{name}": each for name, each in network.state_dict().items()}, tmp_path / "w.pt")
    shown = r"missing mdeq_cell\.blocks\.0.*unexpected module\.mdeq_cell.*; deqcert convert FILE --to TARGET\.ckpt"
    with pytest.raises(CheckpointError, match=shown):
        load_network(tmp_path / "w.pt", MDEQ(**TINY))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"model": {"w": torch.ones(1)}}, r"not a checkpoint .*no state_dict.*; deqcert convert FILE"),
        ({"w": torch.ones(1), "epoch": 3}, r"not a checkpoint .*no state_dict.*; deqcert convert FILE"),
        ({"w": torch.ones(1), 3: torch.ones(1)}, r"not a checkpoint .*no state_dict"),
        ({"w": torch.ones(1).to_sparse()}, r"network\.w must be a dense tensor"),
        ({"state_dict": {3: torch.ones(1)}}, "names in state_dict must be strings"),
        ({}, "no state_dict"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_what_is_no_state_dict(tmp_path, content, complaint):
    save_checkpoint(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=f"^ckpt_path = .*{complaint}"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "metadata", "complaint"),
    [
        (b"", None, "cannot be read as safetensors"),
        (b"<!doctype html>", None, "is a web page"),
        (None, {"sigma": "nan"}, "must have a finite sigma"),
        (None, {"architecture": '{"network": "os.system"}'}, "architecture must have"),
    ],
)
def test_safetensors_that_cannot_be_used(tmp_path, content, metadata, complaint):
    path = tmp_path / "w.safetensors"
    if content is None:
        save_file({"w": torch.ones(1)}, path, metadata)
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"^ckpt_path = .*w\.safetensors'.*{complaint}"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="must be an existing checkpoint file"):
        read_checkpoint(tmp_path / "missing.safetensors")
