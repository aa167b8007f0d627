"""``deqcert predict`` on image files, by the shipped digits checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import CHECKPOINT
from PIL import Image
from sklearn.datasets import load_digits

from deqcert.cli import main
from deqcert.data.images import to_unit_interval
from deqcert.smoothing import SmoothedClassifier, Standard, Stream
from deqcert.solvers import Anderson
from deqcert.statistics import CertificationRule

DIGITS = [0, 1, 3]  # also their classes
LEVELS = (load_digits().images[DIGITS] * 15.9375).round().astype(np.uint8)
FEW = ["--n=40", "--n0=10", "--max_steps=4", "--alpha=0.01", "--sigma=0.25"]
NOISE = ["--sigma=3", "--n=4"]  # so much that nothing can be told


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three digits as image files in the working directory."""
    monkeypatch.chdir(tmp_path)
    names = ["zero.png", "one.png", "three.png"]
    for name, levels in zip(names, LEVELS, strict=True):
        Image.fromarray(levels).save(name)
    return names


@pytest.fixture
def predict(capsys):
    def predict(*arguments, code=0):
        """Return the lines on the standard output, and the errors."""
        assert main(["predict", *arguments, f"--ckpt_path={CHECKPOINT}"]) == code
        captured = capsys.readouterr()
        return captured.out.splitlines(), captured.err

    return predict


def test_a_line_per_file(files, predict):
    lines, errors = predict(*files, *FEW)
    assert [line.split("\t") for line in lines] == [["zero.png", "0"], ["one.png", "1"], ["three.png", "3"]]
    assert errors == ""


def test_an_abstention(files, predict):
    lines, _ = predict(files[0], *FEW, *NOISE, code=1)
    assert lines == ["zero.png\tabstain"]
    lines, _ = predict(files[0], *FEW, *NOISE, "--certify", "--json", code=1)
    found = json.loads(lines[0])
    assert found["prediction"] is None
    assert found["radius"] == 0


@pytest.mark.parametrize("kind", ["missing", "damaged", "another size"])
def test_a_file_that_cannot_be_used_does_not_stop_the_others(files, predict, kind):
    bad = f"{kind}.png"
    if kind == "damaged":
        Path(bad).write_bytes(Path(files[0]).read_bytes()[:60])
    if kind == "another size":
        Image.fromarray(np.zeros((9, 8), dtype=np.uint8)).save(bad)
    lines, errors = predict(files[0], bad, files[1], *FEW, code=2)
    assert [line.split("\t")[0] for line in lines] == ["zero.png", "one.png"]
    assert errors.startswith("deqcert: error: ")
    assert bad in errors


def test_json(files, predict):
    lines, _ = predict(*files[:2], *FEW, "--json")
    assert [json.loads(line) for line in lines] == [
        {"file": name, "prediction": digit, "alpha": 0.01, "sigma": 0.25}
        for name, digit in zip(files[:2], DIGITS, strict=False)
    ]


def test_a_radius_is_that_of_the_library(files, predict):
    lines, _ = predict(*files[:2], *FEW, "--certify", "--seed=5", "--json")
    g = SmoothedClassifier.from_checkpoint(CHECKPOINT, sigma=0.25, solver=Anderson(max_steps=4, tolerance=1e-3))
    for position, line in enumerate(lines):
        image = to_unit_interval(torch.from_numpy(LEVELS[position])[None])
        sampling, rule = Standard(n0=10, n=40), CertificationRule(alpha=0.01)
        certificate = g.certify(image, sampling=sampling, rule=rule, stream=Stream(5, position))
        found = json.loads(line)
        assert certificate.radius > 0
        assert all(found[name] == getattr(certificate, name) for name in ("prediction", "radius", "p_a_lower"))
    table, _ = predict(files[0], *FEW, "--certify", "--seed=5")
    assert table[0].split("\t") == ["zero.png", "0", f"{json.loads(lines[0])['radius']:.4f}"]


@pytest.fixture
def noise(monkeypatch):
    """The streams of the noisy samples that are classified, as they come."""
    drawn = []
    genuine = SmoothedClassifier.noisy

    def recorded(self, image, stream, *arguments, **settings):
        drawn.append(stream)
        return genuine(self, image, stream, *arguments, **settings)

    monkeypatch.setattr(SmoothedClassifier, "noisy", recorded)
    return drawn


def test_noise_is_fresh_unless_there_is_a_seed(files, predict, noise):
    check = Stream(0, 0)  # draws what f is tried on before it is trusted

    def streams(*arguments):
        noise.clear()
        lines, _ = predict(files[0], files[0], *FEW, "--certify", *arguments)
        used = [each for each in noise if each != check]
        return lines, set(used)

    seeded = streams("--seed=7")
    assert seeded == streams("--seed=7")
    assert seeded[1] == {Stream(7, 0), Stream(7, 1)}
    first, second = streams()[1], streams()[1]
    assert len(first) == len(second) == 2
    assert not first & second


def test_a_checkpoint_that_is_missing(files, capsys):
    assert main(["predict", files[0], "--ckpt_path=missing.ckpt"]) == 2
    assert "ckpt_path" in capsys.readouterr().err


@pytest.mark.parametrize(
    "bad",
    ["--n=0", "--n0=0", "--alpha=1", "--sigma=0", "--max_steps=0", "--tolerance=-1", "--start=anchor", "--seed=-1"],
)
def test_a_bad_setting_is_named(files, predict, bad):
    lines, errors = predict(files[0], *FEW, bad, code=2)
    assert lines == []
    assert f"deqcert: error: {bad[2:].partition('=')[0]} = " in errors
