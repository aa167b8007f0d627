import dataclasses
import json
import math
from pathlib import Path

import pytest

from deqcert.errors import DataError
from deqcert.runs import read_tsv, summarize, votes_digest, write_results
from deqcert.runs.run import read_json
from deqcert.statistics import CertificationRule

RULE = CertificationRule(alpha=0.01, audit="exact")


def strict(path):
    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)


def test_the_file_has_settings_summary_and_every_field_of_every_image(tmp_path, make_votes):
    votes = [make_votes(20), make_votes(0)]
    settings = {"sampling": {"class": "Serialized"}, "checkpoint": "model.ckpt"}
    summary = write_results(tmp_path, votes, RULE, settings, radii=[0.0, 0.25])
    path = tmp_path / "certificates.json"
    document = strict(path)
    assert list(document) == ["settings", "summary", "examples", "sha256"]
    assert read_json(path) == document
    assert document["settings"].items() >= settings.items()
    assert document["settings"]["certificate"] == dataclasses.asdict(RULE)
    assert document["settings"]["votes_sha256"] == votes_digest(votes)
    assert list(document["settings"]["files"]) == ["certificates.tsv"]
    assert summary == summarize([RULE.certify(vote) for vote in votes], votes, [0.0, 0.25])
    assert document["summary"] == json.loads(json.dumps(summary._asdict()))
    first, second = document["examples"]
    assert (first["index"], second["index"]) == (0, 20)
    certificate = RULE.certify(votes[1])._asdict()
    assert certificate.pop("p_b_upper") is None
    assert first == json.loads(json.dumps({**certificate, "correct": True, "n_a": 95, **votes[1].to_json()}))
    assert [row.index for row in read_tsv(tmp_path / "certificates.tsv")] == [0, 20]


def test_the_file_says_what_two_sides_have_claimed(tmp_path, make_votes):
    standard_votes = make_votes(0)._replace(audited=None, mismatches=0, nfe_audit=0)
    rule = CertificationRule(0.01, sides="two", alpha_b=0.002)
    write_results(tmp_path, [standard_votes], rule, {}, radii=[0.0])
    document = strict(tmp_path / "certificates.json")
    assert document["settings"]["certificate"] == dataclasses.asdict(rule)
    (example,) = document["examples"]
    assert (example["p_a_lower"], example["p_b_upper"]) == rule.bounds(standard_votes)


def test_an_image_is_a_line(tmp_path, make_votes):
    write_results(tmp_path, [make_votes(i) for i in range(3)], RULE, {}, radii=[0.0])
    lines = (tmp_path / "certificates.json").read_text().splitlines()
    assert sum(line.startswith('{"prediction"') for line in lines) == 3


@pytest.mark.parametrize("residual", [math.nan, math.inf])
def test_what_is_not_a_number_is_null(tmp_path, make_votes, residual):
    votes = make_votes(residual=residual, audited=None, mismatches=0)
    write_results(tmp_path, [votes], RULE, {}, radii=[0.0])
    document = strict(tmp_path / "certificates.json")
    assert document["examples"][0]["residual"] is None
    assert document["summary"]["mean_residual"] is None
    assert document["summary"]["mismatch_rate"] is None


def test_settings_without_a_json_form_become_text(tmp_path, make_votes):
    settings = {"tolerance": math.inf, "folder": Path("runs"), "radii": (0.0, 0.5)}
    write_results(tmp_path, [make_votes()], RULE, settings, radii=[0.0])
    found = strict(tmp_path / "certificates.json")["settings"]
    assert found.items() >= {"tolerance": "Infinity", "folder": "runs", "radii": [0.0, 0.5]}.items()


@pytest.mark.parametrize("indices", [[], [1, 1]])
def test_no_image_or_one_twice_is_refused_before_anything_is_written(tmp_path, make_votes, indices):
    with pytest.raises(DataError):
        write_results(tmp_path, [make_votes(index) for index in indices], RULE, {}, radii=[0.0])
    assert not any(tmp_path.iterdir())
