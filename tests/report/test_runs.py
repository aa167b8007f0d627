import pytest

from deqcert.errors import DataError, LedgerError, SettingError
from deqcert.report import common_images, read_runs, report_radii
from deqcert.runs import Ledger, read_ledger, read_tsv, write_results, write_tsv
from deqcert.runs.results import sealed
from deqcert.statistics import CertificationRule

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"


@pytest.fixture
def make_table(tmp_path):
    def make(body, name="table.tsv"):
        (tmp_path / name).write_text(HEADER + body)
        return tmp_path / name

    return make


def test_a_finished_run_has_the_certificates_of_its_votes(make_run):
    (run,) = read_runs(make_run(), "name")
    assert (run.name, run.alpha, run.sigma, run.sound) == ("name", 0.001, 0.5, True)
    assert [example.index for example in run.examples] == [0, 10, 20, 30, 40]
    assert run.examples == tuple(CertificationRule(audit="exact").certify(vote) for vote in run.votes)
    assert run.seconds[10] == 1.5
    assert run.summary([0.0]).nfe_total == (330 + 600) / 110


def test_the_names_of_the_classes_are_read(make_run):
    assert read_runs(make_run(), "name")[0].classes == ()
    (run,) = read_runs(make_run("named", classes=["ant", "bee"]), "name")
    assert run.classes == ("ant", "bee")


def test_another_alpha_certifies_again(make_run):
    (run,) = read_runs(make_run(), "name", alpha=0.1)
    assert run.alpha == 0.1
    assert run.examples == tuple(CertificationRule(alpha=0.1, audit="exact").certify(vote) for vote in run.votes)


@pytest.mark.parametrize("alpha", [0, 0.0, 1.0, -0.1])
def test_an_alpha_that_is_no_probability_is_refused(make_run, alpha):
    with pytest.raises(SettingError, match="alpha = "):
        read_runs(make_run(), "name", alpha=alpha)


def test_rules_of_audit_make_runs_of_their_own(make_run):
    joint, exact, published = read_runs(make_run(), "name", audits=["joint", "exact", "published"])
    assert (joint.name, exact.name, published.name) == ("name joint", "name exact", "name published")
    assert (joint.sound, exact.sound, published.sound) == (True, True, False)
    assert published.examples[0].radius > exact.examples[0].radius
    for run in (joint, exact, published):
        rule = CertificationRule(audit=run.name.removeprefix("name "))
        assert run.examples == tuple(map(rule.certify, run.votes))


@pytest.fixture
def make_standard_run(make_run, make_votes):
    """A run of votes of their own, near ties among them."""

    def make(name="standard", rule=None):
        counts = [(2, 3, 0, 95), (20, 20, 20, 40), (45, 5, 0, 50), (10, 25, 5, 60)]
        standard = {"audited": None, "mismatches": 0, "nfe_audit": 0}
        votes = [make_votes(10 * i, estimation=each, **standard) for i, each in enumerate(counts)]
        directory = make_run(name, votes=votes)
        if rule is not None:
            write_results(directory, votes, rule, read_ledger(directory).identity, radii=[0.0])
        return directory

    return make


def test_votes_of_a_run_may_be_certified_on_two_sides(make_standard_run):
    (one,) = read_runs(make_standard_run(), "name", sides="one")
    (two,) = read_runs(make_standard_run("two"), "name", sides="two")
    assert (one.name, two.name) == ("name", "name two-sided")  # the name says where a table is not as published
    assert one.examples == tuple(map(CertificationRule().certify, one.votes))
    assert two.examples == tuple(map(CertificationRule(sides="two").certify, two.votes))
    assert two.examples[3].radius > one.examples[3].radius
    assert two.sound


def test_sides_go_with_another_alpha_and_with_rules_of_audit(make_standard_run, make_run, make_votes):
    (two,) = read_runs(make_standard_run(), "name", alpha=0.1, sides="two")
    assert two.examples == tuple(map(CertificationRule(alpha=0.1, sides="two").certify, two.votes))
    asked = {"escalations": 20, "escalated": (10, 3, 0, 7), "escalated_from": (0, 1, 0, 19)}
    of_all = {"audited": 30, "audited_as": (0, 1, 0, 30), "mistaken": (1, 0, 0, 0)}
    escalated = make_run(votes=[make_votes(0, estimation=(2, 3, 0, 90), **asked, **of_all)])
    (run,) = read_runs(escalated, "name", audits=["joint"], sides="two")
    assert run.name == "name two-sided joint"
    assert run.examples == tuple(map(CertificationRule(sides="two").certify, run.votes))
    with pytest.raises(SettingError, match=r"^audit = 'exact'"):
        read_runs(escalated, "name", audits=["joint", "exact"], sides="two")
    of_a = make_run(votes=[make_votes(1, estimation=(2, 3, 0, 90), **asked)])
    with pytest.raises(DataError, match=r"audited_as = .*: expected an audit of all classes"):
        read_runs(of_a, "name", audits=["joint"], sides="two")


def test_a_run_with_two_sides_is_read_as_it_is_and_on_one_side(make_standard_run):
    rule = {"alpha": 0.01, "sides": "two", "alpha_b": 0.002}
    directory = make_standard_run(rule=CertificationRule(**rule))
    for sides in (None, "two"):
        (two,) = read_runs(directory, "name", sides=sides)
        assert two.name == "name"
        assert two.examples == tuple(map(CertificationRule(**rule).certify, two.votes))
    (one,) = read_runs(directory, "name", sides="one")
    assert one.name == "name one-sided"
    assert one.examples == tuple(map(CertificationRule(alpha=0.01).certify, one.votes))


def test_rules_of_audit_leave_votes_without_one_alone(make_run, make_votes):
    standard = make_run(votes=[make_votes(0, audited=None, mismatches=0, nfe_audit=0)])
    (run,) = read_runs(standard, "name", audits=["exact", "published"])
    assert run.name == "name"
    assert run.sound


def test_an_unsound_run_stays_unsound(make_run):
    assert not read_runs(make_run(audit="published"), "name")[0].sound


def test_a_table_is_a_run(make_table):
    (run,) = read_runs(make_table("5\t3\t3\t0.5\t1\t2.0\n0\t3\t-1\t0\t0\t4.0\n"), "cohen")
    assert [example.index for example in run.examples] == [0, 5]
    assert (run.votes, run.alpha, run.sigma) == (None, None, None)
    assert run.summary([0.0]).seconds_per_image == 3.0
    assert read_runs(make_table("5\t3\t3\t0.5\t1\t2.0\n"), "cohen", alpha=0.01)[0].alpha == 0.01


def test_alpha_of_a_table_is_a_probability(make_table):
    with pytest.raises(SettingError, match="alpha = 2"):
        read_runs(make_table("5\t3\t3\t0.5\t1\t2.0\n"), "cohen", alpha=2)


def test_what_is_written_as_a_table_is_the_same_run(make_run, tmp_path):
    (run,) = read_runs(make_run(), "name")
    write_tsv(tmp_path / "t.tsv", run.examples, run.seconds)
    assert [row.prediction for row in read_tsv(tmp_path / "t.tsv")] == [each.prediction for each in run.examples]


def test_an_unfinished_run_has_the_images_so_far(tmp_path, make_votes):
    directory = tmp_path / "running"
    identity = {"smoothing": {"sigma": 0.25, "noise": "float32"}, "image": [1, 8, 8]}
    ledger = Ledger(directory, identity)
    with ledger.claim(), ledger.open(0):
        for index in (7, 3):
            ledger.append(make_votes(index, sigma=0.25))
    (directory / "certify.yaml").write_text(
        "certificate: {alpha: 0.01, alpha_audit: null, audit: exact, radii: null}\n"
    )
    with pytest.warns(UserWarning, match="running: has not finished; these are the 2 images so far"):
        (run,) = read_runs(directory, "running")
    assert [example.index for example in run.examples] == [3, 7]
    assert (run.alpha, run.sigma) == (0.01, 0.25)


def test_an_unfinished_run_without_its_configuration_is_refused(tmp_path, make_votes):
    ledger = Ledger(tmp_path, {"smoothing": {}})
    with ledger.claim(), ledger.open(0):
        ledger.append(make_votes(0))
    with pytest.raises(DataError, match=r"certify\.yaml: cannot be read"):
        read_runs(tmp_path, "run")
    (tmp_path / "certify.yaml").write_text("[")
    with pytest.raises(DataError, match=r"certify\.yaml: cannot be read"):
        read_runs(tmp_path, "run")


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(LedgerError, match="holds no ledger"):
        read_runs(tmp_path, "run")


def reseal(path, change):
    """Forge a report by the rules of the file itself."""
    content = path.read_bytes()
    body = change(content[: content.rfind(b',\n"sha256":')].decode()).encode()
    path.write_bytes(sealed(body))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"prediction": 3', '"prediction": 2', "image 0: prediction = 2, but it is 3"),
        ('"radius": ', '"radius": 1', "image 0: radius = 1"),
        ('"n": 100', '"n": 90', "image 0: n = 90, but it is 100"),
        ('"n0": 10', '"n_zero": 10', "image 0: n0 = None"),
        ('"alpha": 0.001', '"alpha": 0', "alpha = 0"),
        ('"alpha"', '"beta"', "settings cannot be used"),
    ],
)
def test_a_forged_report_is_refused(make_run, old, new, complaint):
    directory = make_run()
    reseal(directory / "certificates.json", lambda text: text.replace(old, new, 1))
    with pytest.raises((DataError, SettingError), match=complaint):
        read_runs(directory, "run")


@pytest.mark.parametrize(
    ("identity", "fields", "complaint"),
    [
        ({}, {"sigma": 1.0}, "image 0: sigma = 1.0, but the run has 0.5"),
        ({}, {"noise_error": 0.1}, "image 0: noise_error = 0.1, but the run has 0.0"),
        ({"smoothing": {"sigma": 0.5, "noise": "pink"}}, {}, "settings cannot be used .*noise"),
        ({"image": None}, {}, "settings cannot be used"),
    ],
)
def test_votes_that_are_not_of_the_run_are_refused(tmp_path, make_votes, identity, fields, complaint):
    identity = {"smoothing": {"sigma": 0.5, "noise": "float32"}, "image": [1, 8, 8]} | identity
    ledger = Ledger(tmp_path, identity)
    with ledger.claim(), ledger.open(0):
        ledger.append(make_votes(0, **fields))
    write_results(tmp_path, [make_votes(0, **fields)], CertificationRule(), identity, radii=[0.0])
    with pytest.raises(DataError, match=complaint):
        read_runs(tmp_path, "run")


def test_a_changed_or_damaged_report_is_refused(make_run):
    path = make_run() / "certificates.json"
    content = path.read_bytes()
    for damage in (content.replace(b"0.5", b"0.6", 1), content[:-20], b"", b"\xff\x00", b"{}"):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"certificates\.json: "):
            read_runs(path.parent, "run")


def test_common_images_are_those_of_all(make_run, make_table):
    table = make_table("20\t3\t3\t0.5\t1\t2.0\n10\t3\t3\t0.5\t1\t2.0\n15\t3\t3\t0.5\t1\t2.0\n")
    ours, theirs = common_images(read_runs(make_run(), "ours") + read_runs(table, "theirs"))
    assert [example.index for example in ours.examples] == [vote.index for vote in ours.votes] == [10, 20]
    assert [example.index for example in theirs.examples] == [10, 20]
    assert ours.summary([0.0]).examples == 2


def test_runs_of_other_images_or_labels_have_nothing_in_common(make_run, make_table):
    ours = read_runs(make_run(), "ours")
    with pytest.raises(DataError, match="no image is common to ours, theirs"):
        common_images(ours + read_runs(make_table("5\t3\t3\t0.5\t1\t2.0\n"), "theirs"))
    with pytest.raises(DataError, match="image 20 has label 3 in ours, but 4 in theirs"):
        common_images(ours + read_runs(make_table("20\t4\t4\t0.5\t1\t2.0\n"), "theirs"))


def test_radii_are_those_of_the_image_with_the_most_noisy_samples(make_run, make_votes):
    stopped = {"audited": None, "mismatches": 0, "nfe_audit": 0, "anytime": True, "alpha_share": 0.5}
    votes = [make_votes(0, n=10, estimation=(0, 0, 0, 9), **stopped), make_votes(1, **stopped)]
    assert report_radii(read_runs(make_run(votes=votes), "name")) == report_radii(read_runs(make_run("other"), "name"))


def test_radii_are_those_of_the_run_that_reaches_farthest(make_run, make_table):
    ours = read_runs(make_run(), "ours")
    assert report_radii(ours) == (0.0, 0.25, 0.5, 0.75)
    far = make_table("5\t3\t3\t5.1\t1\t2.0\n")
    assert report_radii(ours + read_runs(far, "far")) == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    none = make_table("5\t3\t-1\t0\t0\t2.0\n", "none.tsv")
    assert report_radii(read_runs(none, "none")) == (0.0,)


def test_a_run_without_its_ledger_is_refused(make_run):
    directory = make_run()
    (directory / "votes.rank0.jsonl").unlink()
    with pytest.raises(LedgerError, match="holds no ledger"):
        read_runs(directory, "run")
