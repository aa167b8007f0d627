"""Checkpoints carry what names and shapes of weights do not show, and another setting is refused by its name."""

from __future__ import annotations

import inspect

import pytest
import torch
from lightning.pytorch import Trainer

from deqcert.checkpoints.architecture import network_of
from deqcert.errors import CheckpointError
from deqcert.models import MDEQ, CifarResNet, ResNet50
from deqcert.monotone import LBEN, IBPMonDEQ, MonDEQ
from deqcert.training import DEQClassifier

NOT_ARCHITECTURE = {"self", "solver", "dropout"}

MONOTONE = {
    "units": 20,
    "num_classes": 5,
    "image_channels": (3, {"mean": (0.5,) * 3, "std": (0.5,) * 3}),
    "image_size": 64,
    "mean": (0.5,),
    "std": (0.5,),
    "splitting": "forward_backward",
    "alpha": 0.5,
}

# One other value for every setting; numbers of channels change together with what must fit them.
OTHERS = {
    MDEQ: {
        "channels": (8, 16, 16),
        "head_channels": (7, 14, 7),
        "final_channels": 100,
        "num_classes": 5,
        "image_channels": (1, {"mean": (0.5,), "std": (0.5,)}),
        "image_size": 64,
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
        "downsample_times": 1,
        "expansion": 3,
        "num_groups": 4,
        "post_fusion_affine": True,
        "start": "mean",
    },
    CifarResNet: {
        "depth": 8,
        "num_classes": 5,
        "image_channels": (1, {"mean": (0.5,), "std": (0.5,)}),
        "image_size": 64,
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
    },
    IBPMonDEQ: {
        "units": 40,
        "m": 0.3,
        "num_classes": 5,
        "image_channels": (3, {"mean": (0.5,) * 3, "std": (0.5,) * 3}),
        "image_size": 16,
        "mean": (0.5,),
        "std": (0.5,),
    },
    MonDEQ: {"m": 0.5} | MONOTONE,
    LBEN: {"gamma": float("inf"), "epsilon": 0.1} | MONOTONE,
    ResNet50: {"num_classes": 10, "image_size": 64, "mean": (0, 0, 0), "std": (1, 1, 1)},
}
CASES = [(kind, name) for kind, settings in OTHERS.items() for name in settings]


def shapes(network):
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("kind", OTHERS)
def test_every_setting_is_stated(kind):
    with torch.device("meta"):
        stated = kind().architecture
    assert stated.keys() == inspect.signature(kind).parameters.keys() - NOT_ARCHITECTURE == OTHERS[kind].keys()
    for name, value in stated.items():
        default = inspect.signature(kind).parameters[name].default
        assert value == (list(default) if isinstance(default, tuple) else default)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_what_weights_do_not_show_is_known(kind, name):
    value = OTHERS[kind][name]
    value, rest = value if name == "image_channels" else (value, {})
    with torch.device("meta"):
        usual, other = kind(), kind(**{name: value}, **rest)
    assert (shapes(usual) == shapes(other)) == (name in kind.UNSEEN)
    assert usual.architecture[name] != other.architecture[name]


def classifier(weights=None, **settings):
    torch.manual_seed(0)
    defaults = {"channels": (8, 16), "head_channels": (2, 4), "final_channels": 16, "image_channels": 1}
    defaults |= {"image_size": 8, "mean": (0.3,), "std": (0.37,), "expansion": 1}
    return DEQClassifier(MDEQ(**(defaults | settings)), weights=weights)


def saved(module):
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    return checkpoint


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"mean": (0.0,)}, r"mean = \[0\.0\], must be \[0\.3\]"),
        ({"std": (1.0,)}, r"std = \[1\.0\], must be \[0\.37\]"),
        ({"image_size": 16}, "image_size = 16, must be 8"),
        ({"num_groups": 4}, "num_groups = 4, must be 8"),
        ({"start": "mean"}, "start = 'mean', must be 'zero'"),
    ],
)
def test_another_setting_is_refused_by_its_name(settings, complaint):
    other = classifier(**settings)
    with pytest.raises(CheckpointError, match=rf"^ckpt_path: .*model\.network\.init_args\.{complaint}$"):
        other.on_load_checkpoint(saved(classifier()))


def test_the_same_settings_and_those_that_a_checkpoint_does_not_state_are_accepted(tmp_path):
    checkpoint = saved(classifier(dropout=0.1))
    torch.save(checkpoint | {"pytorch-lightning_version": "2.6.6"}, tmp_path / "model.ckpt")
    assert DEQClassifier.load_from_checkpoint(tmp_path / "model.ckpt", network=classifier().network)
    del checkpoint["architecture"]["settings"]["num_groups"]
    classifier(num_groups=4).on_load_checkpoint(checkpoint)


def test_the_network_can_be_built_from_the_checkpoint_alone():
    source = classifier(num_groups=4, start="mean").network.eval()
    kind, settings = network_of(saved(DEQClassifier(source))["architecture"])
    built = kind(**settings).eval()
    built.load_state_dict(source.state_dict())
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(built(x), source(x))
    assert built.architecture == source.architecture


@pytest.mark.parametrize("stated", [None, {"network": "torch.nn.Linear", "settings": {}}])
def test_only_networks_of_deqcert_are_built(stated):
    assert network_of(stated) is None


def test_another_class_is_refused_by_its_name():
    other = DEQClassifier(CifarResNet(depth=8))
    with pytest.raises(CheckpointError, match=r"model\.network is CifarResNet, must be MDEQ$"):
        other.on_load_checkpoint(saved(classifier()))


def test_a_retired_setting_may_be_stated_where_it_was_not_used():
    checkpoint = saved(classifier())
    settings = checkpoint["architecture"]["settings"]
    settings["mixing_steps"] = 0
    classifier().on_load_checkpoint(checkpoint)
    assert network_of(checkpoint["architecture"])[1].keys() == settings.keys() - {"mixing_steps"}
    settings["mixing_steps"] = 2
    with pytest.raises(CheckpointError, match=r"mixing_steps = 2 is not a setting of MDEQ in this version of deqcert$"):
        classifier().on_load_checkpoint(checkpoint)


def test_weights_of_a_retired_part_are_refused_by_their_names():
    weights = classifier().state_dict() | {"network.mixing.predictors.0.2.bias": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"unexpected network\.mixing\.predictors"):
        classifier().on_load_checkpoint({"state_dict": weights})


def test_training_may_start_from_weights_for_other_images_but_not_of_another_start(tmp_path):
    torch.save(saved(classifier()) | {"pytorch-lightning_version": "2.6.6"}, tmp_path / "model.ckpt")
    settings = {"weights": str(tmp_path / "model.ckpt")}
    other = classifier(image_size=16, mean=(0.0,), **settings)
    other.trainer = Trainer(accelerator="cpu", logger=False)
    other.setup("fit")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in classifier().state_dict().items())
    anchored = classifier(start="mean", **settings)
    anchored.trainer = other.trainer
    with pytest.raises(CheckpointError, match=r"^model\.weights: .*start = 'mean', must be 'zero'$"):
        anchored.setup("fit")


def test_a_network_that_does_not_state_its_settings_is_saved_without(threshold_deq):
    module = DEQClassifier(threshold_deq())
    checkpoint = saved(module)
    assert "architecture" not in checkpoint
    module.on_load_checkpoint(checkpoint)
