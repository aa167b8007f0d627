"""What makes two classifiers the same one: everything that a constructor can have kept."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from certification_runs import ShippedModule
from lightning.pytorch import LightningModule
from sampling_runs import shipped_network
from torch import nn

from deqcert.data import Digits
from deqcert.lightning.identity import classifier_digest, run_identity
from deqcert.lightning.methods import Smoothed
from deqcert.models import MDEQ
from deqcert.smoothing import Serialized, Smoothing
from deqcert.solvers import Anderson, Picard
from deqcert.statistics import CertificationRule


class Margin(nn.Module):
    """Weights alone do not say where its boundary is."""

    def __init__(self, **attributes):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.margin = 0.05
        self.inner = nn.Identity()
        for name, value in attributes.items():
            setattr(self, name, value)


def digest(**attributes):
    torch.manual_seed(0)
    return classifier_digest(Margin(**attributes))


@dataclasses.dataclass
class Settings:
    depth: int
    inner: object = None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.05, 0.6),
        (1, 1.0),
        (1, True),
        ("a", b"a"),
        (None, 0),
        ([1, 2], [2, 1]),
        ([1, 2], (1, 2)),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (torch.zeros(2), torch.ones(2)),
        (torch.zeros(2), torch.zeros(1, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (np.zeros(2), np.ones(2)),
        (np.float32(1), np.float32(2)),
        (Anderson(max_steps=3), Anderson(max_steps=4)),
        (Anderson(max_steps=3), Picard(max_steps=3)),
        (Settings(1, {"a": [torch.zeros(2)]}), Settings(1, {"a": [torch.ones(2)]})),
        (torch.float32, torch.float64),
        (Margin, Settings),
    ],
    ids=str,
)
def test_attributes_are_part_of_a_classifier(one, other):
    assert digest(margin=one) == digest(margin=copy.deepcopy(one))
    assert digest(margin=one) != digest(margin=other)
    torch.manual_seed(0)
    parts = Margin(), Margin()
    parts[0].inner.deep, parts[1].inner.deep = one, other
    parts[1].load_state_dict(parts[0].state_dict())
    assert classifier_digest(parts[0]) != classifier_digest(parts[1])


def test_where_something_is_in_memory_is_no_part_of_a_classifier():
    assert digest(margin=object()) == digest(margin=object())
    assert digest(margin={"b": 1, "a": 2}) == digest(margin={"a": 2, "b": 1})
    assert digest(margin=lambda: 0) == digest(margin=lambda: 1)  # code is not compared: docs/resume.md says so


def test_our_settings_may_move_to_another_module_and_foreign_ones_may_not():
    """A ledger is resumed after its classes have moved within the package."""

    def kept(module):
        return digest(margin=type("Anderson", (Anderson,), {"__module__": module})(max_steps=3))

    assert kept("deqcert.elsewhere") == kept("deqcert.solvers.anderson") == digest(margin=Anderson(max_steps=3))
    assert len({kept("deqcert.elsewhere"), kept("a"), kept("b")}) == 3


def test_the_identity_of_a_run_names_our_classes_without_their_modules():
    data = Digits(max_examples=1)
    data.setup("predict")
    method = Smoothed(Smoothing(), Serialized(), 3, CertificationRule())
    identity = run_identity(method.settings(), ShippedModule(), data.certification_set(), "32-true")
    assert json.loads(json.dumps(identity)) == identity
    names = [identity["smoothing"]["class"], identity["smoothing"]["solver"]["class"], identity["sampling"]["class"]]
    names += [identity["sampling"]["audit"]["class"], identity["classifier"]["class"]]
    assert names == ["Smoothing", "Anderson", "Serialized", "AdaptiveAudit", "MDEQ"]
    assert (identity["seed"], identity["image"], identity["device"]) == (3, [1, 8, 8], "cpu")


def test_use_does_not_change_a_network():
    network = shipped_network()
    before = classifier_digest(network)
    network(torch.rand(2, 1, 8, 8))
    network.for_inference()
    assert classifier_digest(network) == before == classifier_digest(shipped_network())


def test_settings_of_a_network_that_its_weights_do_not_show():
    torch.manual_seed(0)
    network, other = MDEQ().eval(), MDEQ(num_groups=4).eval()
    other.load_state_dict(network.state_dict())
    assert classifier_digest(network) != classifier_digest(other)


def test_what_lightning_keeps_of_a_run_is_no_part_of_a_classifier():
    class Module(LightningModule):
        pass

    module = Module()
    before = classifier_digest(module)
    module._current_fx_name = "predict_step"
    assert classifier_digest(module) == before
    module.margin = 0.6
    assert classifier_digest(module) != before
