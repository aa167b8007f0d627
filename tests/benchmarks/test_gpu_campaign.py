"""The GPU campaign, at the size of a test, so that no second of a GPU is spent on a slip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
CAMPAIGN = ROOT / "benchmarks" / "gpu" / "campaign.py"
STAGES = ["check", "speed", "train-small", "train-large", "train-resnet110", "certify"]
MORE = ["train-small-0.25", "train-small-1.0", "train-small-smoothadv", "train-small-catrs", "imagenet", "train-tiny"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """All stages and the filing of their results, in a process of its own."""
    out = tmp_path_factory.mktemp("smoke")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(CAMPAIGN), "--smoke", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=out)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


@pytest.fixture
def campaign(monkeypatch):
    """The modules beside the script, taken out again afterwards: their names are short."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(CAMPAIGN.parent))
    import campaign

    yield campaign
    for name in set(sys.modules) - before:
        if "benchmarks" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def result(smoke, stage):
    return json.loads((smoke / stage / "result.json").read_text())


@pytest.mark.slow
def test_every_stage_finishes_and_sends_home_little(smoke):
    for stage in STAGES + MORE:
        content = result(smoke, stage)
        assert content["finished"], stage
        assert all(table["rows"] for table in content["tables"].values()), stage
        files = [smoke / stage / name for name in content["files"]]
        assert len(files) <= 8
        assert all(file.stat().st_size <= 16 * 2**20 for file in files)


@pytest.mark.slow
def test_the_pages_say_what_is_finished(smoke):
    listed = (smoke / "README.md").read_text()
    for stage in STAGES + MORE:
        assert f"| {stage} | finished |" in listed
    tables = (smoke / "performance.md").read_text()
    assert all(f"### {stage}\n" in tables for stage in STAGES + MORE)


@pytest.mark.slow
def test_a_stage_goes_on_where_it_ended(smoke):
    content = result(smoke, "train-large")
    rows = content["tables"]["training"]["rows"]
    assert [row[0] for row in rows] == ["1", "2"]
    assert len(content["runs"]) == 2
    assert content["state"]["epochs"] == pytest.approx(sum(float(row[2]) for row in rows), rel=1e-3)


@pytest.mark.slow
def test_imagenet_is_timed_by_every_strategy(smoke):
    tables = result(smoke, "imagenet")["tables"]
    sweep, eager, compiled = tables.values()
    assert [row[0] for row in sweep["rows"]] == ["2", "4"]
    for table in (eager, compiled):
        names, each, whole = zip(*(row[:3] for row in table["rows"]), strict=True)
        assert names == ("standard-14B", "SRS-1B", "SRS-3B", "anchored-3B")
        full, *audited, anchored = (float(seconds) / 1000 for seconds in each)
        expected = [10_100 * full, *(10_100 * part + 400 * full for part in audited), 10_100 * anchored]
        assert [float(seconds) for seconds in whole] == pytest.approx(expected, rel=5e-3)


@pytest.mark.slow
def test_weights_come_home_in_16_bits_and_are_certified_by_the_later_stage(smoke):
    parts = [torch.load(path, weights_only=True) for path in sorted((smoke / "train-small").glob("weights.*.pt"))]
    weights = {name: tensor for part in parts for name, tensor in part.items()}
    assert {tensor.dtype for tensor in weights.values() if tensor.dim() > 1} == {torch.float16}
    rows = result(smoke, "certify")["tables"]["certified accuracy, %"]["rows"]
    ours = [row for row in rows if not row[0].startswith("published")]
    assert [row[0].split("-")[0] for row in ours] == ["SMALL"] * 3 + ["LARGE"] * 3 + ["ResNet"]
    assert all(row[1] == "2" for row in ours)


def test_what_cannot_be_run_is_refused_before_any_work(campaign, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    for arguments, said in (
        (["--stage", "check"], "--out = None"),
        (["--stage", "check", "--out", "x"], "--data = None: must be root of CIFAR-10"),
        (["--stage", "train-tiny", *data], "--tiny = None: must be root of Tiny-ImageNet"),
        (["--stage", "imagenet", *data, "--network", "no.ckpt"], "--network = 'no.ckpt': must be a checkpoint"),
        (["--stage", "imagenet", "--out", str(tmp_path / "out")], "--stage = 'imagenet': needs a GPU"),
        (["--stage", "check", *data, "--seconds", "5"], "--seconds = 5.0: must be at least 90: what stage check needs"),
        (["--stage", "check", *data], "--stage = 'check': needs a GPU"),
        (["--stage", "dance", *data], "--stage = 'dance': must be next or one of check, speed"),
    ):
        assert campaign.main(arguments) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"commit": "abc"}, "commit = abc: must be "),
        ({"stage": "dance"}, "stage = 'dance': must be one of"),
        ({"files": ["gone.txt"]}, "gone.txt: is missing"),
        ({"files": ["../../secret"]}, "secret: is missing"),
        (None, "is not the result of a stage"),
    ],
    ids=["commit", "stage", "file", "path", "damaged"],
)
def test_results_that_do_not_fit_are_not_filed(campaign, smoke, tmp_path, capsys, change, said):
    content = result(smoke, "check") | {"commit": campaign.head(), "smoke": False} | (change or {})
    text = json.dumps(content) if change is not None else "{"
    (tmp_path / "result.json").write_text(text)
    (tmp_path / "tests.txt").write_text("")
    before = subprocess.run(["git", "status", "--short"], cwd=ROOT, capture_output=True, text=True).stdout
    assert campaign.main(["--adopt", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert subprocess.run(["git", "status", "--short"], cwd=ROOT, capture_output=True, text=True).stdout == before


@pytest.mark.slow
def test_results_of_a_test_are_not_filed_into_the_repository(campaign, smoke, tmp_path, capsys):
    content = result(smoke, "check") | {"commit": campaign.head(), "files": []}
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert campaign.main(["--adopt", str(tmp_path)]) == 2
    assert "smoke = True" in capsys.readouterr().err
