"""MDEQ-SMALL at 224 × 224: what holds for digits must hold for states of 188 160 numbers, too."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from certification_runs import ledger_votes, trainer
from lightning.pytorch import LightningModule
from PIL import Image
from sampling_runs import measurement
from scipy_solves import broyden_by_scipy
from torchvision.transforms.v2.functional import center_crop

from deqcert.data import ImageDataModule, TensorImages
from deqcert.lightning import CertifiedRadius
from deqcert.models import MDEQ
from deqcert.smoothing import Engine, Execution, Serialized, Smoothing, SolvedClassifier, Standard, Stream
from deqcert.solvers import Anderson, Broyden
from deqcert.statistics import FixedAudit

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT.parent / "shared" / "data" / "imagenet_sample_256.tar"
BROYDEN = Broyden(max_steps=4)


def configured(**changed):
    config = yaml.safe_load((ROOT / "configs" / "imagenet" / "mdeq_small.yaml").read_text())
    settings = config["model"]["network"]["init_args"]
    settings.pop("solver")
    return MDEQ(**settings | changed).eval()


@pytest.fixture(scope="module")
def network():
    """The network of the configuration with random weights, which tell noisy samples apart."""
    torch.manual_seed(0)
    network = configured()
    # The published initialization is so small that all logits are those of the bias.
    for part in (network.stem, network.mdeq_head):
        for weight in part.parameters():
            if weight.dim() == 4:
                torch.nn.init.kaiming_normal_(weight)
    torch.nn.init.normal_(network.mdeq_head.classifier.weight, std=0.5)
    with torch.no_grad():  # what the logits of all inputs have in common would decide every prediction
        logits, _ = network.solve(torch.randn(4, 3, 224, 224) + 0.5, BROYDEN)
        network.mdeq_head.classifier.bias -= logits.mean(dim=0)
    return network


@pytest.fixture(scope="module")
def images():
    """Two images, uint8: real ones where they are at hand."""
    if not SAMPLE.is_file():
        return torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with tarfile.open(SAMPLE) as archive:
        members = [member for member in archive if member.isfile()][:2]
        opened = [Image.open(archive.extractfile(member)).convert("RGB") for member in members]
    arrays = [torch.from_numpy(np.array(each)).permute(2, 0, 1) for each in opened]
    return torch.stack([center_crop(each, [224, 224]) for each in arrays])


def test_the_state_has_the_published_size(network, images):
    with torch.no_grad():
        injection = network.inject(images / 255)
    assert network.initial_state(injection).shape == (2, 188_160)


@pytest.mark.parametrize("solver", [BROYDEN, Anderson(max_steps=3)], ids=["4B", "3A"])
def test_predictions_depend_on_nothing_but_the_sample(network, images, solver):
    generator = torch.Generator().manual_seed(1)
    x = images.repeat(4, 1, 1, 1) / 255 + torch.randn(8, 3, 224, 224, generator=generator)
    base = SolvedClassifier(network.for_inference(), solver)
    found = {rows: Engine(base, Execution(rows=rows), images[0] / 255, 8).predict(x) for rows in (1, 3, 8)}
    assert len(set(found[8].classes.tolist())) > 1
    for each in found.values():
        assert each.classes.tolist() == found[8].classes.tolist()
        torch.testing.assert_close(each.residual, found[8].residual, rtol=1e-3, atol=0)


class Module(LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def predict_step(self, batch, batch_idx):
        return self.network(batch[0])


class Two(ImageDataModule):
    num_classes, image_size, channels = 1000, 224, 3

    def __init__(self, images):
        super().__init__()
        self.images = images

    def load_split(self, split):
        return TensorImages(self.images, torch.arange(2), tuple(map(str, range(1000))), "two")


@pytest.mark.parametrize("kind", ["standard", "serialized"])
def test_two_processes_have_the_votes_of_one(tmp_path, network, images, kind):
    sizes = {"n0": 2, "n": 8, "batch_size": 4}
    sampling = Standard(**sizes) if kind == "standard" else Serialized(**sizes, warmup_steps=3, audit=FixedAudit(8))
    smoothing = Smoothing(sigma=1.0, solver=Broyden(max_steps=2))
    for devices in (1, 2):
        rule = CertifiedRadius(alpha=0.4)
        run = trainer(devices, callbacks=[rule])
        run.certify(Module(network), Two(images), smoothing, sampling, ledger_dir=str(tmp_path / str(devices)))
    one, two = (
        [measurement(each, "residual") for _, each in sorted(ledger_votes(tmp_path / name).items())] for name in "12"
    )
    assert one == two
    assert len(one) == 2
    g = smoothing.of(network)
    alone = sampling.votes(g, images[1] / 255, Stream(0, 1))
    assert measurement(alone._replace(index=1, label=1), "residual") == one[1]


@pytest.mark.parametrize("k", [3, 8])
def test_broyden_takes_the_steps_of_scipy_on_a_crop(network, images, k):
    precise = configured(image_size=32)
    precise.load_state_dict(network.state_dict())
    precise.double()
    crop = images[:1, :, 96:128, 96:128].double() / 255
    _, solution = precise.solve(crop, Broyden(max_steps=k, iterate="last"))
    expected = broyden_by_scipy(precise, crop, k)
    assert solution.value.numel() == 3840
    np.testing.assert_allclose(solution.value.flatten().numpy(), expected, rtol=0, atol=1e-8 * np.abs(expected).max())
