import subprocess
import sys

import pytest

import deqcert.report


def test_importing_the_report_imports_neither_torch_nor_matplotlib():
    heavy = "{'torch', 'lightning', 'pytorch_lightning', 'torchmetrics', 'matplotlib', 'pandas'}"
    code = f"import deqcert.report, sys; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", deqcert.report.__all__)
def test_everything_announced_exists_and_is_described(name):
    assert getattr(deqcert.report, name).__doc__
