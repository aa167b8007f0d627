"""The scripts in examples/: they run from any directory, do what they say, and convert to notebooks."""

from __future__ import annotations

import ast
import logging
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.fixture
def run(tmp_path, monkeypatch) -> Callable[[str], dict[str, Any]]:
    """Run an example in an empty working directory and return what it has defined."""
    monkeypatch.chdir(tmp_path)

    def run(name: str) -> dict[str, Any]:
        (path,) = [path for path in EXAMPLES if path.stem == name]
        with torch.random.fork_rng():
            found = runpy.run_path(str(path), run_name="__main__")
        assert not list(tmp_path.iterdir())  # nothing is left behind
        return found

    return run


def test_own_deq(run):
    found = run("own_deq")
    assert len(found["certificates"]) == 20
    assert all(each.sound for each in found["certificates"])
    assert len(found["correct"]) >= 14
    assert max(each.radius for each in found["correct"]) > found["SIGMA"]


def test_plain_classifier(run):
    found = run("plain_classifier")
    right = [each.radius for label, each in found["certified"] if each.prediction == label]
    assert len(right) >= 3
    assert max(right) > found["SIGMA"]


def test_torchdeq_model(run):
    found = run("torchdeq_model")
    assert found["solution"].converged.float().mean() > 0.9
    right = [each.radius for label, each in found["certified"] if each.prediction == label]
    assert len(right) >= 3
    assert max(right) > found["SIGMA"]


def test_image_folder(run):
    found = run("image_folder")
    assert {each.label for each in found["certificates"]} == {0, 1}
    assert found["correct"] >= 0.8 * len(found["certificates"])
    assert max(each.radius for each in found["certificates"]) > found["SIGMA"]


def test_prediction_service(run, caplog):
    with caplog.at_level(logging.INFO, "prediction_service"):
        found = run("prediction_service")
        found["service"].answer(found["zero"])
    assert [status for status, _ in found["replies"]] == [200, 200, 200, 200, 400]
    replies = [reply["class"] for _, reply in found["replies"][:4]]
    assert replies[:2] == [0, 1]
    assert replies[2] in (2, None)
    assert replies[3] in (3, None)
    assert found["replies"][0][1]["radius"] > 0.3
    streams = [record.getMessage().split(")")[0] for record in caplog.records if "Stream(" in record.getMessage()]
    assert len(streams) == len(set(streams)) == 6  # fresh noise for each answer, of one image too


def cells(path: Path) -> list[tuple[str, str]]:
    """Split a script of the percent format into the kind and the text of its cells."""
    found: list[tuple[str, list[str]]] = []
    for line in path.read_text().splitlines():
        if line.startswith("# %%"):
            assert line in ("# %%", "# %% [markdown]")
            found.append(("markdown" if line.endswith("]") else "code", []))
        elif line or found:
            found[-1][1].append(line)
    return [(kind, "\n".join(lines).strip()) for kind, lines in found]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_cells_stand_by_themselves(path):
    kinds = [kind for kind, _ in cells(path)]
    assert kinds[:2] == ["markdown", "code"]
    assert kinds.count("code") >= 4
    for kind, text in cells(path):
        assert text
        if kind == "code":
            ast.parse(text)
        else:
            assert all(line.startswith("#") for line in text.splitlines())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_jupytext_makes_a_notebook_of_it(path):
    jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed")
    notebook = jupytext.read(path)
    assert [cell.cell_type for cell in notebook.cells] == [kind for kind, _ in cells(path)]
    assert all(
        cell.source.strip() == text
        for cell, (kind, text) in zip(notebook.cells, cells(path), strict=True)
        if kind == "code"
    )
