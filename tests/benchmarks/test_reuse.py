"""The benchmarks of reuse, at the size of a test."""

from __future__ import annotations

import importlib
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deqcert.checkpoints import load_network
from deqcert.errors import DataError
from deqcert.uncertainty import WeightPosterior

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    """Import a benchmark, and take it out again afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    found = []

    def load(name):
        found.append(name)
        return importlib.import_module(name)

    yield load
    for name in found:
        del sys.modules[name]


def write_images(root, count):
    """Write smooth images of 48 x 48 pixels, one of each class."""
    generator = np.random.default_rng(0)
    for number in range(count):
        folder = root / "val" / f"n{number:02d}"
        folder.mkdir(parents=True)
        pixels = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 48)).save(folder / "image.png")


def rows(printed, columns):
    """The rows of the table with so many columns, by their first cell, without head and rule."""
    tables = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("|")]
    return [cells for cells in tables if len(cells) == columns and not cells[-1].startswith("---")][1:]


def test_uncertainty(script, tmp_path, capsys):
    network, posterior = load_network("deqcert:digits_mdeq_tiny").network, WeightPosterior()
    torch.manual_seed(0)
    for _ in range(3):
        with torch.no_grad():
            for weight in network.parameters():
                weight.mul_(1 + 0.01 * torch.randn(weight.shape))
        posterior.collect(network)
    posterior.save(tmp_path / "posterior.ckpt")
    sizes = ["--images=40", "--batch-norm-images=64", "--samples=3", "--steps", "1", "8", "--audit=10"]
    figure = tmp_path / "figure.png"
    script("uncertainty").main([f"--posterior={tmp_path / 'posterior.ckpt'}", f"--figure={figure}", *sizes])
    assert figure.stat().st_size > 0
    printed = capsys.readouterr().out
    arms = rows(printed, 9)
    nfe, accuracy, distance = ({cells[0]: float(cells[column]) for cells in arms} for column in (1, 2, 8))
    assert list(nfe)[:5] == ["trained weights", "mean weights", "cold", "reuse, last", "reuse, mean"]
    assert distance["cold"] == 0
    assert distance["reuse, last"] < 0.5
    assert distance["reuse, last, k = 8"] < 0.5 < distance["cold, k = 1"]
    assert nfe["cold, k = 1"] == 1
    assert accuracy["cold"] > 50
    # A full solve of the mean weights comes before.
    assert nfe["reuse, last, k = 1"] == pytest.approx(1 + nfe["mean weights"] / 3, abs=0.01)
    audited = rows(printed, 4)
    assert [cells[0] for cells in audited] == [f"reuse, {start}, k = {k}" for start in ("last", "mean") for k in (1, 8)]
    for name, cost, *intervals in audited:
        assert float(cost) > nfe[name]
        for interval in intervals:
            low, high, true = (float(each.strip("()")) for each in interval.replace(" to ", " ").split())
            assert low <= true <= high


def test_streams(script, tmp_path, capsys):
    write_images(tmp_path, 2)
    checkpoint = ROOT / "checkpoints" / "cifar10_mdeq_small_cpu" / "model.ckpt"
    sizes = ["--images=2", "--frames=3", "--pixels=4", "--short-side=40", "--residuals=1e-2"]
    script("streams").main([f"--data={tmp_path}", f"--network={checkpoint}", *sizes])
    printed = capsys.readouterr().out
    assert printed.startswith("Evaluations per frame; 0 of 60 solves missed the tolerance.")
    assert printed.count(" | cold | previous | first | mean | nearest |") == 2
    found = rows(printed, 8)
    assert [cells[0] for cells in found] == ["Anderson", "Broyden"]
    for cells in found:
        cold, previous = (float(cell.split()[0]) for cell in cells[3:5])
        assert previous < cold
        assert cells[4] == f"{previous:.2f} ({100 * previous / cold:.0f} %)"
    (other,) = rows(printed, 6)
    assert all(0 <= float(cell.split()[0]) <= 100 for cell in other[1:])


def test_windows_move_by_so_many_pixels_and_never_come_back(script):
    streams = script("streams")
    image = torch.arange(3 * 8 * 11).view(3, 8, 11)
    seen = streams.windows(image, size=4, frames=12, pixels=2)
    places = [divmod(int(window[0, 0, 0]), 11) for window in seen]
    assert places[:6] == [(0, 0), (0, 2), (0, 4), (0, 6), (2, 6), (2, 4)]
    assert len(set(places)) == 12
    assert all(abs(a - c) + abs(b - d) == 2 for (a, b), (c, d) in pairwise(places))
    with pytest.raises(DataError, match=r"^an image of 11 x 8 pixels has no 13 windows of 4 pixels, 2 apart"):
        streams.windows(image, size=4, frames=13, pixels=2)


def test_images_that_are_not_there_are_refused(script, tmp_path):
    write_images(tmp_path, 1)
    with pytest.raises(DataError, match="has no 2 images of a split val"):
        script("streams").read_images(tmp_path, 2, 40)
