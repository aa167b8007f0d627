import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deqcert.errors import DataError
from deqcert.report import read_runs
from deqcert.runs import TsvRow, read_tsv, write_tsv
from deqcert.runs.tsv import _clock, _rounded_down, _seconds

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"


@pytest.fixture
def table(tmp_path):
    def write(body, header=HEADER):
        path = tmp_path / "table.tsv"
        path.write_text(header + body)
        return path

    return write


def test_the_file_is_the_field_s_format_sorted_by_index(tmp_path, make_certificate):
    certificates = [
        make_certificate(20, 0.123456789),
        make_certificate(0, 0.25, label=1),
        make_certificate(5, 0.0, prediction=-1),
    ]
    write_tsv(tmp_path / "t.tsv", certificates, {0: 1.79, 5: 3725.0, 20: 0.0000004})
    assert (tmp_path / "t.tsv").read_text() == (
        HEADER + "0\t1\t3\t0.250000\t0\t0:00:01.790000\n"
        "5\t3\t-1\t0.000000\t0\t1:02:05.000000\n"
        "20\t3\t3\t0.123456\t1\t0:00:00.000000\n"
    )


def test_unsound_certificates_are_marked_in_a_seventh_column(tmp_path, make_certificate):
    path = tmp_path / "t.tsv"
    write_tsv(path, [make_certificate(0, sound=False), make_certificate(1)], {0: 1.0, 1: 1.0})
    assert path.read_text().startswith(HEADER.strip() + "\tsound\n0\t3\t3\t0.500000\t1\t0:00:01.000000\t0\n")
    assert [row.sound for row in read_tsv(path)] == [False, True]


@given(st.floats(0, 100))
def test_the_printed_radius_never_exceeds_the_certified_one(radius):
    printed = float(_rounded_down(radius))
    assert radius - 1.000001e-6 <= printed <= radius
    assert float(_rounded_down(printed)) == printed  # a file that is read and written again does not shrink


@given(st.floats(0, 86_399, allow_subnormal=False))
def test_the_clock_is_that_of_timedelta(seconds):
    usual = str(timedelta(seconds=seconds))
    # timedelta rounds the fraction, not the sum, and leaves out a fraction of zero
    assert _seconds(_clock(seconds)) == pytest.approx(_seconds(usual), abs=1.1e-6)
    assert re.fullmatch(r"\d+:\d\d:\d\d\.\d{6}", _clock(seconds))


def test_the_clock_counts_on_after_a_day_and_carries_rounding():
    assert _clock(100 * 3600 + 59.9999999) == "100:01:00.000000"


@given(
    st.dictionaries(
        st.integers(0, 10_000),
        st.tuples(st.integers(0, 9), st.integers(-1, 9), st.floats(0, 4), st.booleans(), st.floats(0, 1e5)),
        min_size=1,
        max_size=5,
    )
)
def test_what_is_written_can_be_read(tmp_path_factory, make_certificate, images):
    path = tmp_path_factory.mktemp("tsv") / "t.tsv"
    certificates = [
        make_certificate(index, radius if prediction >= 0 else 0.0, label=label, prediction=prediction, sound=sound)
        for index, (label, prediction, radius, sound, _) in images.items()
    ]
    write_tsv(path, certificates, {index: image[-1] for index, image in images.items()})
    rows = read_tsv(path)
    assert [row.index for row in rows] == sorted(images)
    for certificate in certificates:
        row = rows[sorted(images).index(certificate.index)]
        assert (row.label, row.prediction) == (certificate.label, certificate.prediction)
        assert (row.correct, row.sound) == (certificate.correct, certificate.sound)
        assert row.radius == pytest.approx(certificate.radius, abs=1.000001e-6)
        assert row.seconds == pytest.approx(images[row.index][-1], abs=1e-6)


def test_published_tables_are_read(table):
    path = table("0\t3\t3\t0.53\t1\t0:00:09.2\n20\t5\t-1\t0.0\t0\t0:01:00\n40\t5\t6\t1.6\t0\t12.89\n")
    assert read_tsv(path) == [
        TsvRow(0, 3, 3, 0.53, True, 9.2),
        TsvRow(20, 5, -1, 0.0, False, 60.0),
        TsvRow(40, 5, 6, 1.6, False, 12.89),
    ]


def test_carriage_returns_are_line_ends(tmp_path):
    (tmp_path / "t.tsv").write_bytes((HEADER + "0\t3\t3\t0.5\t1\t1.0\n").replace("\n", "\r\n").encode())
    assert len(read_tsv(tmp_path / "t.tsv")) == 1


def test_a_last_line_without_end_that_is_whole_is_read(table):
    assert len(read_tsv(table("0\t3\t3\t0.5\t1\t1.0\n1\t3\t3\t0.5\t1\t0:00:01"))) == 2


def test_a_byte_order_mark_and_blank_lines_do_not_matter(tmp_path):
    table = HEADER + "0\t3\t3\t0.5\t1\t1.0\n"
    for number, text in enumerate([f"\ufeff{table}", f"{table}\n", f"{table}\r\n \t\r\n\r\n", f"{table}  "]):
        (tmp_path / f"{number}.tsv").write_bytes(text.encode())
        assert read_tsv(tmp_path / f"{number}.tsv") == [TsvRow(0, 3, 3, 0.5, True, 1.0)]


def test_the_header_may_come_again(table):
    assert len(read_tsv(table(f"0\t3\t3\t0.5\t1\t1.0\n{HEADER}1\t3\t3\t0.5\t1\t1.0\n"))) == 2


def test_a_last_line_of_an_image_that_cannot_be_read_is_refused(table):
    with pytest.raises(DataError, match="line 3: correct 'yes' cannot be read"):
        read_tsv(table("0\t3\t3\t0.5\tTrue\t1.0\n1\t3\t3\t0.5\tyes\t1.0\n"))


def test_a_table_without_times_is_read_and_written_without(table, tmp_path):
    text = "idx\tlabel\tpredict\tradius\tcorrect\n0\t3\t3\t0.500000\t1\n1\t3\t4\t0.250000\t0\n"
    (run,) = read_runs(table(text, header=""), "published")
    assert [row.seconds for row in read_tsv(tmp_path / "table.tsv")] == [None, None]
    assert run.summary([0.25]).seconds_per_image is None
    assert run.summary([0.25]).certified_accuracy == (0.5,)
    write_tsv(tmp_path / "again.tsv", run.examples, run.seconds)
    assert (tmp_path / "again.tsv").read_text() == text


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("1\t3\t3\t0.5\t1", "expected 6 columns, found 5"),
        ("1\t3\t3\t0.5\t1\t1.0\t1", "expected 6 columns, found 7"),
        ("1", "expected 6 columns, found 1"),
        ("one\t3\t3\t0.5\t1\t1.0", "idx 'one' cannot be read"),
        ("1\t3\t3\t0.5\tyes\t1.0", "correct 'yes' cannot be read"),
        ("1\t3\t3\t0.5\t2\t1.0", "correct '2' cannot be read"),
        ("1.0\t3\t3\t0.5\t1\t1.0", "idx '1.0' cannot be read"),
        ("mean\t\t\t0.5\t0.9\t", "idx 'mean' cannot be read"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\tp_a", "expected 6 columns, found 7"),
        ("1\t3\t3\t0.5\t1\t0:61", "time '0:61' cannot be read"),
        ("1\t3\t3\tnan\t1\t1.0", "radius nan is not a finite number >= 0"),
        ("1\t3\t3\tinf\t1\t1.0", "radius inf is not"),
        ("1\t3\t3\t-0.5\t1\t1.0", "radius -0.5 is not"),
        ("1\t3\t-1\t0.5\t0\t1.0", "an abstention (predict -1) has the radius 0.5"),
        ("1\t3\t4\t0.5\t1\t1.0", "correct 1 contradicts label 3 and predict 4"),
        ("1\t3\t3\t0.5\t1\tnan", "time nan is not"),
        ("0\t3\t3\t0.5\t1\t1.0", "idx 0 comes twice"),
    ],
)
def test_a_bad_line_is_named(table, line, complaint):
    path = table(f"0\t3\t3\t0.5\t1\t1.0\n{line}\n2\t3\t3\t0.5\t1\t1.0\n")
    with pytest.raises(DataError, match=re.escape(f"{path}, line 3: {complaint}")):
        read_tsv(path)


@pytest.mark.parametrize("header", ["", "idx\tlabel\n", "idx label predict radius correct time\n"])
def test_other_columns_are_refused(table, header):
    with pytest.raises(DataError, match=r"line 1: expected the columns idx label predict radius correct, found"):
        read_tsv(table("", header))


def test_a_table_without_images_is_refused(table):
    with pytest.raises(DataError, match="line 2: expected an image, found none"):
        read_tsv(table(""))


def test_files_that_are_no_text_are_refused_by_line(tmp_path):
    (tmp_path / "binary").write_bytes(HEADER.encode() + b"0\t\xff\xfe\x00")
    with pytest.raises(DataError, match="binary: cannot be read: .*utf-8"):
        read_tsv(tmp_path / "binary")
    with pytest.raises(DataError, match=r"missing: cannot be read: No such file or directory$"):
        read_tsv(tmp_path / "missing")


def test_columns_are_found_by_name_and_others_ignored_with_a_warning(table):
    header = "time\tidx\tp_a\tlabel\tpredict\tradius\tcorrect\n"
    with pytest.warns(UserWarning, match=r"table\.tsv, line 1: columns ignored: p_a"):
        rows = read_tsv(table("25:00:02.5\t7\t0.9\t3\t3\t0.25\t1\n", header))
    assert rows == [TsvRow(7, 3, 3, 0.25, True, 25 * 3600 + 2.5)]


def test_a_column_that_comes_twice_is_refused(table):
    with pytest.raises(DataError, match="line 1: expected the columns"):
        read_tsv(table("", HEADER.strip() + "\ttime\n"))
