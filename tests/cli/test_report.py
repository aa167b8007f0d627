import subprocess
import sys

import pytest

from deqcert.cli import main

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
ROWS = "0\t3\t3\t0.53\t1\t0:00:09.2\n20\t5\t-1\t0.0\t0\t0:01:00\n40\t5\t6\t1.6\t0\t12.89\n"


@pytest.fixture
def write(tmp_path):
    def write(content, name="sigma_0.50"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def test_a_published_log_is_reported(write, capsys):
    assert main(["report", write(HEADER + ROWS), "--radii", "0", "0.5", "--per_class"]) == 0
    out = capsys.readouterr().out
    assert "sigma_0.50 33.3 33.3 0.177" in out
    assert "sigma_0.50 by true class" in out


def test_a_table_gets_lower_bounds_once_its_alpha_is_known(write, capsys):
    assert main(["report", write(HEADER + ROWS)]) == 0
    assert "Lower bounds" not in capsys.readouterr().out
    assert main(["report", write(HEADER + ROWS), "--alpha", "0.001"]) == 0
    assert "Lower bounds" in capsys.readouterr().out


def test_warnings_come_before_the_tables(write, capsys):
    assert main(["report", write((HEADER + ROWS).replace("\n", "\tfurther\n"))]) == 0
    assert capsys.readouterr().out.startswith("warning: ")


def test_names_can_be_given_and_are_needed_where_they_are_equal(write, tmp_path, capsys):
    first = write(HEADER + ROWS)
    (tmp_path / "other").mkdir()
    second = write(HEADER + ROWS, "other/sigma_0.50")
    assert main(["report", f"ResNet={first}", second, "--common", "--compare"]) == 0
    assert "ACR of sigma_0.50 minus ACR of ResNet: +0.0000" in capsys.readouterr().out
    assert main(["report", first, second]) == 0
    assert "\nother/sigma_0.50 " in capsys.readouterr().out
    assert main(["report", f"a={first}", f"a={second}"]) == 2
    assert "must have a name of its own" in capsys.readouterr().err


def test_a_name_may_hold_an_equals_sign(write, tmp_path, capsys):
    path = write(HEADER + ROWS)
    assert main(["report", f"SRS sigma=0.5={path}"]) == 0
    assert "\nSRS sigma=0.5 33.3" in capsys.readouterr().out
    (tmp_path / "a=b").mkdir()
    equals = write(HEADER + ROWS, "a=b/log")
    assert main(["report", equals, f"x=y={equals}"]) == 0
    out = capsys.readouterr().out
    assert "\nlog " in out
    assert "\nx=y " in out
    assert main(["report", "SRS sigma=0.5=nothing"]) == 2
    assert "error: nothing: cannot be read" in capsys.readouterr().err


def test_long_names_are_printed_whole(write, capsys):
    path = write(HEADER + ROWS)
    name = "MDEQ-SMALL trained by consistency regularization on CIFAR-10, weight of the regularization "
    assert main(["report", f"{name}0.25={path}", f"{name}0.5={path}", f"{name}1={path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for weight in ("0.25", "0.5", "1"):
        assert sum(line.startswith(f"{name}{weight} ") for line in lines) == 1


def test_warnings_of_the_report_itself_are_printed(write, capsys):
    other = write(HEADER + ROWS.replace("0\t3\t3", "0\t4\t4"), "other")
    assert main(["report", write(HEADER + ROWS), other]) == 0
    warning = "warning: image 0 has label 3 in sigma_0.50, but 4 in other: not the same images"
    assert warning in capsys.readouterr().out


def test_files_are_written_where_asked(write, tmp_path, capsys):
    assert main(["report", write(HEADER + ROWS), "--out", str(tmp_path / "out")]) == 0
    assert "report.md" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*("report.md", "report.csv", "sigma_0.50.tsv", "accuracy.tex", "curves.png", "curves.pdf")}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", ", line 1: "),
        (b"\x00\xff\xfe", ": cannot be read: "),
        ("a\tb\n1\t2\n", ", line 1: "),
        (HEADER, ", line 2: "),
        (HEADER + ROWS + "0\t3\t3\t0.53\t1\t1.0\n", ", line 5: idx 0 "),
        (HEADER + "0\t3\t3\tnan\t1\t1.0\n", ", line 2: radius nan"),
        (HEADER + "0\t3\t-1\t0.5\t0\t1.0\n", ", line 2: an abstention (predict -1) "),
    ],
)
def test_a_bad_file_is_named_with_its_line(write, capsys, content, complaint):
    path = write(content)
    assert main(["report", path]) == 2
    assert f"deqcert: error: {path}{complaint}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--radii", "-1"], "radii"),
        (["--radii", "nan"], "radii"),
        (["--rho", "0"], "rho = 0.0"),
        (["--alpha", "1.5"], "alpha = 1.5"),
    ],
)
def test_a_bad_setting_is_named(write, capsys, options, complaint):
    assert main(["report", write(HEADER + ROWS), *options]) == 2
    assert complaint in capsys.readouterr().err


def test_a_missing_run_is_named(tmp_path, capsys):
    assert main(["report", str(tmp_path / "missing")]) == 2
    assert "missing: cannot be read" in capsys.readouterr().err


def test_a_reader_that_has_had_enough_is_no_error(write, tmp_path):
    command = [sys.executable, "-m", "deqcert", "report", write(HEADER + ROWS), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141
    assert (tmp_path / "out" / "report.md").read_text().startswith("#")
