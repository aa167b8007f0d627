"""Whatever is done to the bytes of a ledger: it is refused, or what it says is what was written."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deqcert.errors import LedgerError
from deqcert.runs import Ledger, read_ledger
from deqcert.runs.lines import START, seal
from deqcert.statistics import CertificationRule, Votes, clopper_pearson_lower

IDENTITY = {"sampling": {"sigma": 0.5, "n": 100}, "classifier": {"digest": "abc"}, "device": "cpu"}
often = settings(max_examples=3000, suppress_health_check=[HealthCheck.function_scoped_fixture])
seldom = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])

# JSON, and what Python's parser takes for JSON.
scalars = st.none() | st.booleans() | st.integers() | st.integers(-3, 130) | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner), max_leaves=6
)


@pytest.fixture
def ledger(tmp_path, make_votes):
    """A file with votes, and what it says."""
    entries = [make_votes(index) for index in range(5)]
    with Ledger(tmp_path, IDENTITY).open(0) as writer:
        for entry in entries:
            writer.append(entry)
    path = tmp_path / "votes.rank0.jsonl"
    return path, path.read_bytes(), [entry.to_json() for entry in entries]


@st.composite
def edits(draw, size):
    """Some changes of a file: (place, bytes that go, bytes that come)."""
    place = st.integers(0, size)
    bits = st.binary(max_size=4) | st.sampled_from([b"\n", b"\x00", b"0", b"9", b"}", b"\n\n", b'"'])
    return draw(st.lists(st.tuples(place, st.integers(0, 600), bits), min_size=1, max_size=3))


def refreshed(ledger):
    """Return what a ledger says, and why it is refused."""
    try:
        return [entry.to_json() for entry in ledger.refresh()], ""
    except LedgerError as error:
        return [], str(error)


def check_edited(ledger, data):
    path, content, entries = ledger
    changed = content
    for place, gone, come in data.draw(edits(len(content))):
        changed = changed[:place] + come + changed[place + gone :]
    path.write_bytes(changed)
    found, refusal = refreshed(Ledger(path.parent, IDENTITY))
    assert found == entries[: len(found)]
    assert refusal == "" or "votes.rank0.jsonl" in refusal or "another run" in refusal


@seldom
@given(data=st.data())
def test_an_edited_file_is_refused_or_a_prefix(ledger, data):
    check_edited(ledger, data)


@pytest.mark.slow
@often
@given(data=st.data())
def test_an_edited_file_is_refused_or_a_prefix_many_times(ledger, data, record_property):
    check_edited(ledger, data)


FIELDS = Votes(10, 100, (1, 9, 0), (5, 80, 0), 20, 1, 330, 600, 0.1, 1.5, 0.5, 0.0, index=0, label=1).to_json()


def check_sealed(tmp_path, changes, whole):
    """Somebody who knows how lines are sealed may write anything."""
    record = {**FIELDS, **changes}
    try:
        lines = seal({"schema": 2, "identity": IDENTITY}, START)
        line, _ = seal(record if whole is None else {"a": whole}, lines[1])
    except ValueError:
        return  # not finite: no JSON
    (tmp_path / "votes.rank0.jsonl").write_bytes(lines[0] + line)
    reader = Ledger(tmp_path, IDENTITY)
    _, refusal = refreshed(reader)
    assert refusal == "" or "line 2: damaged" in refusal
    for votes in reader.votes.values():
        certificate = CertificationRule(alpha=0.01).certify(votes)
        # Never more than all noisy samples of the class, each believed.
        assert certificate.p_a_lower <= clopper_pearson_lower(votes.n_a, votes.n, 0.01)
        assert json.loads(json.dumps(votes.to_json(), allow_nan=False)) == json.loads(json.dumps(record))


@st.composite
def changed(draw):
    changes = draw(st.dictionaries(st.sampled_from(sorted(FIELDS)), values, min_size=0, max_size=2))
    return changes, draw(st.none() | values)


@seldom
@given(change=changed())
def test_sealed_nonsense_is_refused_or_consistent(tmp_path, change):
    check_sealed(tmp_path, *change)


@pytest.mark.slow
@often
@given(change=changed())
def test_sealed_nonsense_is_refused_or_consistent_many_times(tmp_path, change):
    check_sealed(tmp_path, *change)


@pytest.mark.parametrize("line", [b"", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"identity": 3}', b"null"])
def test_identities_that_are_none(tmp_path, line):
    (tmp_path / "votes.rank0.jsonl").write_bytes(line + b"\n")
    for attempt in (lambda: read_ledger(tmp_path), lambda: Ledger(tmp_path, IDENTITY).refresh()):
        with pytest.raises(LedgerError, match="line 1: damaged"):
            attempt()
