from __future__ import annotations

import errno
import math
import os
import subprocess
import sys

import pytest

from deqcert.errors import LedgerError
from deqcert.runs import Ledger, read_ledger, votes_digest
from deqcert.runs import ledger as module
from deqcert.runs.lines import START, seal

IDENTITY = {"sampling": {"sigma": 0.5, "n": 100}, "classifier": {"digest": "abc"}, "device": "cpu"}


def write_sealed(path, records):
    content, digest = b"", START
    for record in records:
        line, digest = seal(record, digest)
        content += line
    path.write_bytes(content)


def read(directory, identity=IDENTITY):
    ledger = Ledger(directory, identity)
    ledger.refresh()
    return ledger.votes


def opened(directory, rank=0, identity=IDENTITY):
    """Open a file of a ledger for a moment."""
    with Ledger(directory, identity).open(rank):
        pass


@pytest.fixture
def written(tmp_path, make_votes):
    """A ledger of images 0 to 4 and what is in it."""
    votes = [make_votes(index) for index in range(5)]
    with Ledger(tmp_path, IDENTITY).open(0) as ledger:
        for each in votes:
            ledger.append(each)
            assert list(ledger.votes)[-1] == each.index
    return tmp_path / "votes.rank0.jsonl", votes


def test_round_trip_of_all_ranks(tmp_path, make_votes):
    directory = tmp_path / "deep" / "er"
    ledger = Ledger(directory, IDENTITY)
    with ledger.claim():
        assert ledger.refresh() == []
    expected = {}
    for rank in (0, 1, 12):
        with Ledger(directory, IDENTITY).open(rank) as writer:
            for index in (rank, rank + 100):
                expected[index] = make_votes(index, seconds=float(rank))
                writer.append(expected[index])
    assert {entry.index: entry for entry in ledger.refresh()} == ledger.votes == expected
    assert ledger.refresh() == []


def test_only_files_that_have_grown_are_read(tmp_path, make_votes, monkeypatch):
    """Ten thousand ranks look for news of each other: most files have none."""
    for rank in range(3):
        with Ledger(tmp_path, IDENTITY).open(rank) as writer:
            writer.append(make_votes(rank))
    ledger, read = Ledger(tmp_path, IDENTITY), []
    original = module.lines_from
    monkeypatch.setattr(module, "lines_from", lambda path, first: read.append(path.name) or original(path, first))
    ledger.refresh()
    assert read == [f"votes.rank{rank}.jsonl" for rank in range(3)]
    read.clear()
    assert ledger.refresh() == read == []
    path = tmp_path / "votes.rank1.jsonl"
    before = path.read_bytes()
    with Ledger(tmp_path, IDENTITY).open(1) as writer:
        writer.append(make_votes(7))
    read.clear()
    whole = path.read_bytes()
    for size in (len(before) + 1, len(whole) - 1):  # a line that its writer is about to end
        path.write_bytes(whole[:size])
        assert ledger.refresh() == []
    path.write_bytes(whole)
    assert ledger.refresh() == [make_votes(7)]
    assert read == ["votes.rank1.jsonl"] * 3
    path.rename(tmp_path / "elsewhere")
    path.symlink_to("elsewhere")
    with pytest.raises(LedgerError, match=r"votes\.rank1\.jsonl: cannot be opened"):
        ledger.refresh()


def test_a_residual_of_nan_survives(tmp_path, make_votes):
    votes = make_votes(audited=None, mismatches=0, nfe_audit=0, residual=math.nan)
    with Ledger(tmp_path, IDENTITY).open(0) as ledger:
        ledger.append(votes)
    (found,) = read(tmp_path).values()
    assert math.isnan(found.residual)
    assert found._replace(residual=0.0) == votes._replace(residual=0.0)


def test_a_reopened_ledger_is_continued(written, make_votes):
    path, votes = written
    with Ledger(path.parent, IDENTITY).open(0) as ledger:
        ledger.append(make_votes(5))
    assert list(read(path.parent).values()) == [*votes, make_votes(5)]
    assert path.read_text().count("identity") == 1


def test_each_line_is_on_disk_before_append_returns(tmp_path, make_votes, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), real(fd)))
    with Ledger(tmp_path, IDENTITY).open(0) as ledger:
        ledger.append(make_votes())
        assert synced[-1] == (tmp_path / "votes.rank0.jsonl").stat().st_size
        assert len(synced) == 3  # identity, directory, votes


def test_a_file_cut_at_any_byte_of_its_last_two_lines_holds_a_prefix(written, make_votes):
    path, votes = written
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    for size in range(len(content) - len(lines[-1]) - len(lines[-2]), len(content) + 1):
        path.write_bytes(content[:size])
        whole = content[:size].count(b"\n") - 1
        assert list(read(path.parent).values()) == votes[:whole]
        with Ledger(path.parent, IDENTITY).open(0) as ledger:
            assert path.read_bytes() == b"".join(lines[: whole + 1])
            ledger.append(make_votes(9))
        assert list(read(path.parent).values()) == [*votes[:whole], make_votes(9)]


def test_a_torn_identity_is_written_again(tmp_path, make_votes):
    opened(tmp_path)
    path = tmp_path / "votes.rank0.jsonl"
    identity = path.read_bytes()
    for size in range(len(identity)):
        path.write_bytes(identity[:size])
        assert read(tmp_path) == {}
        with Ledger(tmp_path, IDENTITY).open(0) as ledger:
            ledger.append(make_votes())
        assert path.read_bytes().startswith(identity)
        assert list(read(path.parent).values()) == [make_votes()]


def test_votes_of_another_run_are_refused_and_the_differences_named(written):
    path, _ = written
    other = {
        "sampling": {"sigma": 0.25, "n": 100, "new": 1},
        "classifier": {"digest": "xyz"},
        "device": "cpu",
    }
    before = path.read_bytes()
    with pytest.raises(LedgerError) as caught:
        read(path.parent, other)
    message = str(caught.value)
    for part in (
        "sampling.sigma = 0.5 there, 0.25 here",
        "sampling.new",
        "classifier.digest",
        str(path.parent),
    ):
        assert part in message
    assert "sampling.n =" not in message
    assert "device" not in message
    assert path.read_bytes() == before


@pytest.mark.parametrize("torn", [b"", b'{"index": 3, "lab'])
def test_a_run_that_ended_before_its_first_votes_makes_room(tmp_path, make_votes, torn):
    for rank in (0, 1):
        opened(tmp_path, rank, IDENTITY | {"device": "cuda"})
    with (tmp_path / "votes.rank1.jsonl").open("ab") as file:
        file.write(torn)
    ledger = Ledger(tmp_path, IDENTITY)
    with ledger.claim():
        assert ledger.refresh() == []
        with ledger.open(0):
            ledger.append(make_votes(7))
    assert list(read(tmp_path)) == [7]
    assert read_ledger(tmp_path).identity == IDENTITY


def test_a_single_vote_or_a_damaged_identity_stays(written, make_votes):
    path, _ = written
    first, second, *_ = path.read_bytes().splitlines(keepends=True)
    for content, message in ((first + second, "another run"), (first.replace(b"0.5", b"0.6"), "line 1: damaged")):
        path.write_bytes(content)
        ledger = Ledger(path.parent, IDENTITY | {"device": "cuda"})
        with pytest.raises(LedgerError, match=message), ledger.claim():
            ledger.refresh()
        assert path.read_bytes() == content


def test_an_identity_is_compared_as_json(tmp_path):
    opened(tmp_path, identity={"radii": (1, 2)})
    assert read(tmp_path, {"radii": [1, 2]}) == {}


@pytest.mark.parametrize(
    "garbage",
    [b"\x00\xff\xfe", b"not json", b"[]", b"3", b"{}", b"", b'{"index": 3}', b'{"schema": 2, "identity": {}}'],
)
@pytest.mark.parametrize("line", [2, 4])
def test_garbage_between_lines_is_named_by_file_and_line(written, garbage, line):
    path, _ = written
    lines = path.read_bytes().splitlines()
    lines.insert(line - 1, garbage)
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(LedgerError, match=rf"votes\.rank0\.jsonl, line {line}: damaged"):
        read(path.parent)


@pytest.mark.parametrize("garbage", [b"not json", b"{}", b"[]", b"\x00\xff", b'{"index": 3}', b'{"identity": 3}'])
def test_garbage_in_place_of_the_identity_is_refused(written, garbage):
    path, _ = written
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([garbage, *lines[1:]]) + b"\n")
    with pytest.raises(LedgerError):
        read(path.parent)


@pytest.mark.parametrize("field", ["index", "estimation", "residual", "mismatches"])
def test_sealed_votes_that_lack_a_field_or_contradict_themselves_are_damage(written, field, make_votes):
    path, _ = written
    record = make_votes(7).to_json()
    for broken in (record | {field: "?"}, {key: value for key, value in record.items() if key != field}):
        write_sealed(path, [{"schema": 2, "identity": IDENTITY}, broken])
        with pytest.raises(LedgerError, match=f"line 2: damaged .*{field}"):
            read(path.parent)


def test_conflicting_duplicates_are_refused_and_equal_ones_are_fine(written, make_votes):
    path, votes = written
    with Ledger(path.parent, IDENTITY).open(1) as ledger:
        ledger.append(make_votes(2, seconds=99.0))
    assert [each._replace(seconds=1.5) for each in read(path.parent).values()] == votes
    with Ledger(path.parent, IDENTITY).open(1) as ledger:
        ledger.append(make_votes(3, mismatches=2))
    with pytest.raises(LedgerError, match=r"votes\.rank1\.jsonl, line 3: .*image 3 has other votes"):
        read(path.parent)


# Seals.


def test_a_changed_digit_anywhere_is_damage(written):
    path, _ = written
    content = path.read_bytes()
    digits = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
    assert len(digits) > 300
    for place in digits:
        changed = bytearray(content)
        changed[place] = ord("3") if content[place] != ord("3") else ord("4")
        path.write_bytes(changed)
        with pytest.raises(LedgerError, match=r"votes\.rank0\.jsonl, line \d: damaged"):
            read(path.parent)


@pytest.mark.parametrize(
    "change", [lambda x: x[:2] + x[3:], lambda x: [*x[:2], x[3], x[2], *x[4:]], lambda x: x + x[2:3]]
)
def test_lost_swapped_and_repeated_lines_are_damage(written, change):
    path, _ = written
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(LedgerError, match="damaged"):
        read(path.parent)


def test_the_read_ledger(written, tmp_path_factory):
    path, _ = written
    assert read_ledger(path.parent).identity == IDENTITY
    with pytest.raises(LedgerError, match="holds no ledger"):
        read_ledger(tmp_path_factory.mktemp("empty"))
    for record, message in (({"index": 3}, "must be an object"), ({"schema": 2, "identity": 3}, "must be an object")):
        write_sealed(path, [record])
        with pytest.raises(LedgerError, match=message):
            read_ledger(path.parent)


def test_the_digest_of_votes_is_of_what_they_say(make_votes):
    votes = [make_votes(index) for index in range(3)]
    digest = votes_digest(votes)
    assert digest == votes_digest([each._replace(seconds=9.0) for each in reversed(votes)])
    assert digest != votes_digest([*votes[:2], votes[2]._replace(mismatches=2)])
    assert digest != votes_digest(votes[:2])


@pytest.mark.parametrize("first", [{}, {"schema": 1}, {"schema": 3}, {"schema": None}])
def test_a_ledger_of_another_schema_is_refused_with_what_to_do(tmp_path, make_votes, first):
    path = tmp_path / "votes.rank0.jsonl"
    write_sealed(path, [{**first, "identity": IDENTITY}, make_votes().to_json()])
    content = path.read_bytes()
    said = r"votes\.rank0\.jsonl: has ledger schema .*; finish the run with the version that began it, or use another"
    for attempt in (lambda: read_ledger(tmp_path), lambda: read(tmp_path), lambda: opened(tmp_path, identity={})):
        with pytest.raises(LedgerError, match=said):
            attempt()
    assert path.read_bytes() == content


# Locks and files.


def claimed(directory, identity=IDENTITY):
    """Claim a ledger for a moment."""
    with Ledger(directory, identity).claim():
        pass


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path):
    refused = pytest.raises(LedgerError, match=rf"another run is writing to it \(process {os.getpid()} on ")
    with Ledger(tmp_path, IDENTITY).claim(), refused:
        claimed(tmp_path)
    claimed(tmp_path)


def test_a_rank_that_outlives_its_run_keeps_the_next_one_out(tmp_path):
    with Ledger(tmp_path, IDENTITY).open(1), pytest.raises(LedgerError, match=r"votes\.rank1\.jsonl"):
        claimed(tmp_path)


def test_the_lock_dies_with_its_owner(tmp_path):
    script = (
        "import os, sys, time; from deqcert.runs import Ledger\n"
        "with Ledger(sys.argv[1], {}).claim(): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        with pytest.raises(LedgerError, match=f"process {owner.pid} on "), Ledger(tmp_path, {}).claim():
            pass
        owner.kill()
    with Ledger(tmp_path, {}).claim():
        pass


def test_links_and_pipes_are_refused(tmp_path):
    path = tmp_path / "votes.rank0.jsonl"
    target = tmp_path / "elsewhere"
    target.write_text("mine")
    path.symlink_to(target)
    for attempt in (lambda: opened(tmp_path), lambda: read(tmp_path)):
        with pytest.raises(LedgerError, match="cannot be opened"):
            attempt()
    assert target.read_text() == "mine"
    path.unlink()
    os.mkfifo(path)
    for attempt in (lambda: opened(tmp_path), lambda: read(tmp_path)):
        with pytest.raises(LedgerError, match="regular file"):
            attempt()


def test_a_full_disk_loses_nothing(written, make_votes, monkeypatch):
    path, votes = written
    real = os.write
    room = [30]

    def full(descriptor, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        size, room[0] = min(room[0], len(data)), 0
        return real(descriptor, data[:size])

    before = path.read_bytes()
    with Ledger(path.parent, IDENTITY).open(0) as ledger:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(LedgerError, match=r"votes\.rank0\.jsonl: cannot be written \(No space left"):
            ledger.append(make_votes(5))
        assert path.read_bytes() == before
        assert list(ledger.votes.values()) == votes
        monkeypatch.undo()
        ledger.append(make_votes(6))
    assert list(read(path.parent).values()) == [*votes, make_votes(6)]


def test_a_second_writer_is_refused(tmp_path, make_votes):
    with Ledger(tmp_path, IDENTITY).open(0) as first:
        with pytest.raises(LedgerError, match="another run is writing"):
            opened(tmp_path)
        with Ledger(tmp_path, IDENTITY).open(1):
            first.append(make_votes())
    opened(tmp_path)


def test_a_ledger_must_be_open_to_be_written(tmp_path, make_votes):
    with Ledger(tmp_path, IDENTITY).open(0) as ledger:
        pass
    with pytest.raises(AssertionError):
        ledger.append(make_votes())


def test_a_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(LedgerError, match="ledger_dir"), Ledger(path, IDENTITY).claim():
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(LedgerError, match="must be writable"), Ledger(tmp_path, IDENTITY).claim():
            pass
    finally:
        tmp_path.chmod(0o700)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path):
    (tmp_path / "votes.rank0.jsonl").mkdir()
    with pytest.raises(LedgerError, match="cannot be opened"):
        opened(tmp_path)
