from __future__ import annotations

import json
import math
import os

import pytest

from deqcert.certification import Ledger
from deqcert.errors import LedgerError

IDENTITY = {"smoothing": {"sigma": 0.5, "n": 100}, "classifier": {"digest": "abc"}, "device": "cpu"}


@pytest.fixture
def written(tmp_path, make_votes):
    """A ledger of images 0 to 4 and what is in it."""
    votes = [make_votes(index) for index in range(5)]
    with Ledger(tmp_path, IDENTITY).open(0) as ledger:
        for each in votes:
            ledger.append(each)
    return tmp_path / "votes.rank0.jsonl", votes


def test_round_trip_of_all_ranks(tmp_path, make_votes):
    ledger = Ledger(tmp_path / "deep" / "er", IDENTITY)
    assert ledger.read() == {}
    expected = {}
    for rank in (0, 1, 12):
        with Ledger(tmp_path / "deep" / "er", IDENTITY).open(rank) as writer:
            for index in (rank, rank + 100):
                expected[index] = make_votes(index, seconds=float(rank))
                writer.append(expected[index])
    assert ledger.read() == expected


def test_a_residual_of_nan_survives(tmp_path, make_votes):
    votes = make_votes(audited=None, mismatches=0, nfe_audit=0, residual=math.nan)
    with Ledger(tmp_path, IDENTITY).open(0) as ledger:
        ledger.append(votes)
    (found,) = ledger.read().values()
    assert math.isnan(found.residual)
    assert found._replace(residual=0.0) == votes._replace(residual=0.0)


def test_a_reopened_ledger_is_continued(written, make_votes):
    path, votes = written
    with Ledger(path.parent, IDENTITY).open(0) as ledger:
        ledger.append(make_votes(5))
    assert list(ledger.read().values()) == [*votes, make_votes(5)]
    assert path.read_text().count("identity") == 1


def test_each_line_is_on_disk_before_append_returns(tmp_path, make_votes, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), real(fd)))
    with Ledger(tmp_path, IDENTITY).open(0) as ledger:
        ledger.append(make_votes())
        assert synced[-1] == (tmp_path / "votes.rank0.jsonl").stat().st_size
        assert len(synced) == 2


def test_a_file_cut_at_any_byte_of_its_last_two_lines_holds_a_prefix(written, make_votes):
    path, votes = written
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    for size in range(len(content) - len(lines[-1]) - len(lines[-2]), len(content) + 1):
        path.write_bytes(content[:size])
        whole = content[:size].count(b"\n") - 1
        assert list(Ledger(path.parent, IDENTITY).read().values()) == votes[:whole]
        with Ledger(path.parent, IDENTITY).open(0) as ledger:
            assert path.read_bytes() == b"".join(lines[: whole + 1])
            ledger.append(make_votes(9))
        assert list(ledger.read().values()) == [*votes[:whole], make_votes(9)]


def test_a_torn_identity_is_written_again(tmp_path, make_votes):
    with Ledger(tmp_path, IDENTITY).open(0):
        pass
    path = tmp_path / "votes.rank0.jsonl"
    identity = path.read_bytes()
    for size in range(len(identity)):
        path.write_bytes(identity[:size])
        assert Ledger(tmp_path, IDENTITY).read() == {}
        with Ledger(tmp_path, IDENTITY).open(0) as ledger:
            ledger.append(make_votes())
        assert path.read_bytes().startswith(identity)
        assert list(ledger.read().values()) == [make_votes()]


def test_votes_of_another_run_are_refused_and_the_differences_named(written):
    path, _ = written
    other = {
        "smoothing": {"sigma": 0.25, "n": 100, "new": 1},
        "classifier": {"digest": "xyz"},
        "device": "cpu",
    }
    before = path.read_bytes()
    with pytest.raises(LedgerError) as caught:
        Ledger(path.parent, other).read()
    message = str(caught.value)
    for part in (
        "smoothing.sigma = 0.5 there, 0.25 here",
        "smoothing.new",
        "classifier.digest",
        str(path.parent),
    ):
        assert part in message
    assert "smoothing.n =" not in message
    assert "device" not in message
    assert path.read_bytes() == before


def test_an_identity_is_compared_as_json(tmp_path):
    with Ledger(tmp_path, {"radii": (1, 2)}).open(0):
        pass
    assert Ledger(tmp_path, {"radii": [1, 2]}).read() == {}


@pytest.mark.parametrize(
    "garbage",
    [b"\x00\xff\xfe", b"not json", b"[]", b"3", b"{}", b"", b'{"index": 3}', b'{"identity": {}}'],
)
@pytest.mark.parametrize("line", [2, 4])
def test_garbage_between_lines_is_named_by_file_and_line(written, garbage, line):
    path, _ = written
    lines = path.read_bytes().splitlines()
    lines.insert(line - 1, garbage)
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(LedgerError, match=rf"votes\.rank0\.jsonl, line {line}: damaged"):
        Ledger(path.parent, IDENTITY).read()


@pytest.mark.parametrize("garbage", [b"not json", b"{}", b"[]", b"\x00\xff", b'{"index": 3}', b'{"identity": 3}'])
def test_garbage_in_place_of_the_identity_is_refused(written, garbage):
    path, _ = written
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([garbage, *lines[1:]]) + b"\n")
    with pytest.raises(LedgerError):
        Ledger(path.parent, IDENTITY).read()


@pytest.mark.parametrize("field", ["index", "estimation", "residual", "mismatches"])
def test_votes_that_lack_a_field_or_contradict_themselves_are_damage(written, field, make_votes):
    path, _ = written
    record = make_votes(7).to_json()
    for broken in (record | {field: "?"}, {key: value for key, value in record.items() if key != field}):
        lines = path.read_bytes().splitlines()[:2]
        path.write_bytes(b"\n".join([*lines, json.dumps(broken).encode()]) + b"\n")
        with pytest.raises(LedgerError, match="line 3: damaged"):
            Ledger(path.parent, IDENTITY).read()


def test_conflicting_duplicates_are_refused_and_equal_ones_are_fine(written, make_votes):
    path, votes = written
    with Ledger(path.parent, IDENTITY).open(1) as ledger:
        ledger.append(make_votes(2, seconds=99.0))
    assert [each._replace(seconds=1.5) for each in ledger.read().values()] == votes
    with Ledger(path.parent, IDENTITY).open(1) as ledger:
        ledger.append(make_votes(3, mismatches=2))
    with pytest.raises(LedgerError, match=r"votes\.rank1\.jsonl: image 3 has other votes"):
        ledger.read()


def test_a_second_writer_is_refused(tmp_path, make_votes):
    with Ledger(tmp_path, IDENTITY).open(0) as first:
        with pytest.raises(LedgerError, match="another run is writing"):
            Ledger(tmp_path, IDENTITY).open(0)
        with Ledger(tmp_path, IDENTITY).open(1):
            first.append(make_votes())
    with Ledger(tmp_path, IDENTITY).open(0):
        pass


def test_a_ledger_must_be_open_to_be_written(tmp_path, make_votes):
    with Ledger(tmp_path, IDENTITY).open(0) as ledger:
        pass
    with pytest.raises(AssertionError):
        ledger.append(make_votes())


def test_a_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(LedgerError, match="ledger_dir"):
            Ledger(path, IDENTITY)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(LedgerError, match="must be writable"):
            Ledger(tmp_path, IDENTITY)
    finally:
        tmp_path.chmod(0o700)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path):
    (tmp_path / "votes.rank0.jsonl").mkdir()
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(tmp_path, IDENTITY).open(0)
