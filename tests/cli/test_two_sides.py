"""Two-sided certificates, escalation and few looks, from the command line to the tables."""

from __future__ import annotations

import pytest
from command_lines import certify_command

from deqcert.cli import main
from deqcert.runs import read_run
from deqcert.statistics import CertificationRule

pytestmark = pytest.mark.filterwarnings("ignore")  # jsonargparse and lightning warn of each other


@pytest.fixture(scope="module")
def two_sided(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "two"
    more = ["--sampling.escalation=0.1", "--certificate.sides=two", "--certificate.alpha_b=0.0002"]
    assert main(certify_command(directory, *more, "--certificate.audit=joint")) == 0
    return directory


def test_a_two_sided_run_follows_from_its_votes(two_sided, capsys):
    run = read_run(two_sided)
    assert run.rule == CertificationRule(0.001, sides="two", alpha_b=0.0002)
    assert [votes.escalations for votes in run.votes] == [10] * 12
    assert all(example["p_b_upper"] is not None for example in run.examples.values())
    assert main(["verify", str(two_sided)]) == 0
    assert "12 images follow from their votes" in capsys.readouterr().out


def test_a_report_says_which_sides_and_certifies_again_by_others(two_sided, capsys):
    assert main(["report", str(two_sided), "--radii", "0"]) == 0
    own = capsys.readouterr().out
    assert main(["report", str(two_sided), "--radii", "0", "--sides", "two"]) == 0
    assert capsys.readouterr().out == own
    assert main(["report", str(two_sided), "--radii", "0", "--sides", "one"]) == 0
    one = capsys.readouterr().out
    assert "one-sided" in one
    assert one != own


def test_a_one_sided_run_is_reported_with_two_sides_on_demand(tmp_path, capsys):
    directory = tmp_path / "one"
    looks = ["--sampling=Standard", "--sampling.stopping.looks=[40, 100]", "--sampling.batch_size=20"]
    assert main(certify_command(directory, *looks, images=6)) == 0
    run = read_run(directory)
    assert not any("p_b_upper" in example for example in run.examples.values())
    assert {(votes.n, votes.anytime, votes.alpha_share) for votes in run.votes} <= {(40, True, 0.5), (100, True, 0.5)}
    assert main(["verify", str(directory)]) == 0
    capsys.readouterr()
    assert main(["report", str(directory), "--radii", "0"]) == 0
    own = capsys.readouterr().out
    assert "two-sided" not in own
    assert main(["report", str(directory), "--radii", "0", "--sides", "two"]) == 0
    two = capsys.readouterr().out
    assert "two-sided" in two
    certificates = [CertificationRule(0.001, sides="two").certify(votes) for votes in run.votes]
    acr = sum(each.radius for each in certificates if each.correct) / len(certificates)
    assert f"{acr:.3f}" in two


@pytest.mark.parametrize(
    ("more", "field"),
    [
        (["--certificate.sides=two", "--certificate.alpha_b=0.001"], "alpha_b"),
        (["--certificate.alpha_b=0.0001"], "alpha_b"),
        (["--certificate.alpha_audit=0.0001", "--certificate.audit=joint"], "alpha_audit"),
        (["--sampling.escalation=1"], "escalation"),
        (["--sampling=Standard", "--sampling.stopping.looks=[40, 90]"], "looks"),
        (["--sampling=Standard", "--sampling.stopping.looks=[100, 40]"], "looks"),
        (["--sampling=Standard", "--sampling.stopping.shares=[0.5, 0.5]"], "shares"),
    ],
)
def test_bad_settings_are_refused_by_name(tmp_path, capsys, more, field):
    assert main(certify_command(tmp_path, *more)) != 0
    assert f"{field} = " in capsys.readouterr().err
