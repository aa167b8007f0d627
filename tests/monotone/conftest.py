from __future__ import annotations

import math

import pytest
import torch

from deqcert.data import Digits
from deqcert.monotone import LBEN, MonDEQ

NETWORKS = {
    "mondeq": lambda **settings: MonDEQ(**settings),
    "mondeq_weak": lambda **settings: MonDEQ(**{"m": 0.1} | settings),
    "lben": lambda **settings: LBEN(**settings),
    "lben_small_gamma": lambda **settings: LBEN(**{"gamma": 0.2} | settings),
    "lben_free": lambda **settings: LBEN(**{"gamma": math.inf, "epsilon": 0.5} | settings),
}


@pytest.fixture(params=NETWORKS)
def build(request):
    """Builds a random network in float64, with a metric that is not a multiple of the identity where it has one."""

    def build(seed=0, **settings):
        torch.manual_seed(seed)
        network = NETWORKS[request.param](**settings).double().eval()
        if isinstance(network, LBEN):
            network.psi.data = torch.randn_like(network.psi) / 2
        return network

    return build


@pytest.fixture(scope="session")
def digits():
    """The 500 test digits in [0, 1], float64, and their labels."""
    data = Digits().load_split("test")
    images, labels = zip(*((data[i][0], data[i][1]) for i in range(len(data))), strict=True)
    return torch.stack(images).double() / 255, torch.tensor(labels)
