"""What the package says about itself, once; what its build needs. The wheel itself is built by .ci/wheel."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml
from command_lines import ROOT

from deqcert.version import __version__

tomllib = pytest.importorskip("tomllib", reason="part of Python from 3.11 on")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_is_stated_once(project):
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "deqcert.version.__version__"}
    stated = re.compile(rf"""version\S*\s*[=:]\s*["']?{re.escape(__version__)}""")
    tracked = subprocess.run(
        ["git", "ls-files", "*.py", "*.toml", "*.cff", "*.yml"], cwd=ROOT, capture_output=True, text=True
    )
    if tracked.returncode:
        pytest.skip("not a clone")
    files = [name for name in tracked.stdout.split() if stated.search((ROOT / name).read_text())]
    assert files == ["CITATION.cff", "deqcert/version.py"]  # a citation needs one of its own


def test_the_citation_is_that_of_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


def test_the_wheel_has_every_package(project):
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "deqcert").rglob("__init__.py")}
    mapped = project["tool"]["setuptools"]["package-dir"]
    assert set(project["tool"]["setuptools"]["packages"]) == packages | set(mapped)
    assert all((ROOT / folder).is_dir() for folder in mapped.values())


def test_the_classifiers_are_those_of_the_supported_versions(project):
    names = [name.rpartition(" ")[2] for name in project["project"]["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert names == ["3.10", "3.11", "3.12", "3.13"]
    assert project["project"]["requires-python"] == f">={names[0]}"


def test_names_take_no_time(tmp_path):
    """The file of a configuration is found without torch, e.g. by deqcert verify --ckpt_path."""
    code = "import sys; from deqcert.names import config_path; config_path('deqcert:certify/srs_3a'); "
    subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], check=True)
