import json
import math
from pathlib import Path

import pytest

from deqcert.errors import DataError
from deqcert.report import summarize, write_json
from deqcert.report.json_report import read_json


def strict(path):
    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)


def test_the_file_has_settings_summary_and_every_field_of_every_image(tmp_path, make_certificate, make_votes):
    path = tmp_path / "certificates.json"
    certificates, votes = (
        [make_certificate(20), make_certificate(0, sound=False)],
        [make_votes(0), make_votes(20)],
    )
    settings = {"sigma": 0.5, "smoothing": {"class_path": "Serialized"}, "checkpoint": "sha256:00"}
    write_json(path, certificates, votes, settings, radii=[0.0, 0.25])
    report = strict(path)
    assert list(report) == ["settings", "summary", "examples", "sha256"]
    assert read_json(path) == report
    assert report["settings"] == settings
    expected = summarize(certificates, votes, [0.0, 0.25])._asdict()
    assert report["summary"] == {
        key: list(value) if isinstance(value, tuple) else value for key, value in expected.items()
    }
    assert [example["index"] for example in report["examples"]] == [0, 20]
    assert report["examples"][0] == {
        "index": 0,
        "label": 3,
        "prediction": 3,
        "correct": True,
        "radius": 0.5,
        "p_a_lower": 0.75,
        "sound": False,
        "n_a": 95,
        "n0": 10,
        "n": 100,
        "audited": 20,
        "mismatches": 1,
        "nfe_fast": 330,
        "nfe_audit": 600,
        "selection": [0, 0, 1, 9],
        "estimation": [2, 3, 0, 95],
        "residual": 1e-3,
        "seconds": 1.5,
        "sigma": 0.5,
        "noise_error": 0.0,
        "anytime": False,
    }


def test_an_image_is_a_line(tmp_path, make_certificate, make_votes):
    path = tmp_path / "c.json"
    write_json(path, [make_certificate(i) for i in range(3)], [make_votes(i) for i in range(3)], {}, radii=[0.0])
    assert sum(line.startswith('{"index"') for line in path.read_text().splitlines()) == 3


@pytest.mark.parametrize("residual", [math.nan, math.inf])
def test_what_is_not_a_number_is_null(tmp_path, make_certificate, make_votes, residual):
    path = tmp_path / "c.json"
    votes = make_votes(residual=residual, audited=None, mismatches=0)
    write_json(path, [make_certificate()], [votes], {}, radii=[0.0])
    report = strict(path)
    assert report["examples"][0]["residual"] is None
    assert report["summary"]["mean_residual"] is None
    assert report["summary"]["mismatch_rate"] is None


def test_settings_without_a_json_form_become_text(tmp_path, make_certificate, make_votes):
    path = tmp_path / "c.json"
    settings = {"tolerance": math.inf, "folder": Path("runs"), "radii": (0.0, 0.5)}
    write_json(path, [make_certificate()], [make_votes()], settings, radii=[0.0])
    assert strict(path)["settings"] == {"tolerance": "Infinity", "folder": "runs", "radii": [0.0, 0.5]}


def test_votes_of_other_images_are_refused_before_anything_is_written(tmp_path, make_certificate, make_votes):
    with pytest.raises(DataError, match="same images"):
        write_json(tmp_path / "c.json", [make_certificate(0)], [make_votes(1)], {}, radii=[0.0])
    assert not any(tmp_path.iterdir())
