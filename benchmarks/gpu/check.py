"""Stage check: does a GPU compute what the CPU computes, and in how much memory?"""

from __future__ import annotations

import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext

import certification_speed as speed
import torch
from stage import REPOSITORY, Part, Result, Setting, Stage
from torch import Tensor

from deqcert.checkpoints import load_network
from deqcert.data import CIFAR10, Digits
from deqcert.data.images import to_unit_interval
from deqcert.models import DEQ, MDEQ
from deqcert.smoothing import Execution, SmoothedClassifier, SolvedClassifier
from deqcert.solvers import Anderson

SIGMA = 0.5
SOLVER = Anderson(max_steps=30, tolerance=1e-3)
DIGITS = {
    "channels": (8, 16),
    "head_channels": (4, 8),
    "final_channels": 64,
    "image_channels": 1,
    "image_size": 8,
    "mean": (0.305,),
    "std": (0.376,),
    "expansion": 3,
}
PREDICTIONS, MEMORY, TESTS = "predictions on the GPU that differ from the CPU's", "peak memory", "tests marked gpu"


def run_tests(setting: Setting, result: Result) -> bool:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--show-capture=no", "-p", "no:cacheprovider"]
    command += ["tests/solvers/test_restriction.py"] if setting.smoke else ["tests/smoothing", "tests/solvers"]
    passed = False
    try:
        limit = max(setting.left() - 10, 30)
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=limit)
        passed = done.returncode == 0
        said = (done.stdout.strip().splitlines() or ["nothing"])[-1]
        (setting.out / "tests.txt").write_text((done.stdout + done.stderr).replace(f"{REPOSITORY}/", ""))
    except subprocess.TimeoutExpired:
        said = f"not done after {limit:.0f} s"
    result.table(TESTS, ["command", "outcome"])
    result.row(TESTS, "pytest -m gpu", said)
    return passed


def networks(setting: Setting) -> dict[str, tuple[DEQ, Tensor]]:
    """Return the shipped SMALL and digits networks with twenty images of each data set."""
    digits = Digits().load_split("test")
    chosen = {"digits": (DIGITS, "digits_mdeq_tiny", digits)}
    if not setting.smoke:
        cifar10 = CIFAR10(root=setting.data).load_split("test")
        chosen["SMALL"] = ({}, "cifar10_mdeq_small_cpu_consistency", cifar10)
    found = {}
    for name, (architecture, checkpoint, images) in chosen.items():
        network = MDEQ(dropout=0.0, solver=SOLVER, **architecture)  # type: ignore[arg-type]
        load_network(REPOSITORY / "checkpoints" / checkpoint / "model.ckpt", network)
        count = 3 if setting.smoke else 20
        chosen_images = [images[i * (len(images) // count)][0] for i in range(count)]
        found[name] = network, torch.stack([to_unit_interval(image) for image in chosen_images])
    return found


def compare_predictions(setting: Setting, result: Result) -> bool:
    """Label the same noisy samples, drawn on the CPU, by the CPU and in each way that a GPU has."""
    count = 4 if setting.smoke else 100
    ways = ["float32", "TF32", "bfloat16", "compiled"]
    result.table(PREDICTIONS, ["network", "samples", *ways])
    for name, (network, images) in networks(setting).items():
        noise = torch.randn(count * len(images), *images.shape[1:], generator=torch.Generator().manual_seed(0))
        x = images.repeat(count, 1, 1, 1) + SIGMA * noise
        expected = labels(network, images[0], x, "float32", "cpu", count)
        differing = []
        for way in ways:
            if setting.smoke and way == "compiled":
                differing.append("not tried")
                continue
            differing.append(str(int((labels(network, images[0], x, way, setting.device, count) != expected).sum())))
        result.row(PREDICTIONS, name, len(x), *differing)
    return True


def labels(network: DEQ, image: Tensor, x: Tensor, way: str, device: str, width: int) -> Tensor:
    """Return the labels of noisy samples ``x`` on the CPU, computed on ``device`` in one of the ways."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = way == "TF32"
    cast: AbstractContextManager[object] = (
        torch.autocast(device, torch.bfloat16) if way == "bfloat16" else nullcontext()
    )
    try:
        with cast:
            execution = Execution(compile=way == "compiled")
            g = SmoothedClassifier(SolvedClassifier(network.to(device), SOLVER), SIGMA)
            return g.engine(image.to(device), execution, width).predict(x.to(device)).classes.cpu()
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        network.to("cpu")


def measure_memory(setting: Setting, result: Result) -> bool:
    """Take votes at chain width 400; the published code needs 1.5 GB."""
    width = 8 if setting.smoke else 400
    result.table(MEMORY, ["network", "SRS-3A, MiB", "standard-30A, MiB", "published, MiB"])
    for model in ("tiny",) if setting.smoke else ("small", "large"):
        speed.prepare(speed.settings(model, setting.device))
        cells = []
        for strategy, solver in ((speed.CHAIN, speed.CONVERGED), (speed.FULL, speed.ALL_STEPS)):
            speed.note_memory()
            cells.append(speed.peak_megabytes(speed.replace(strategy, n=width, n0=1, batch_size=width), solver))
        result.row(MEMORY, model.upper(), *(f"{cell:.0f}" for cell in cells), "1500")
    return True


CHECK = Stage(
    "check",
    (Part("tests", 30, run_tests), Part("predictions", 90, compare_predictions), Part("memory", 10, measure_memory)),
    "Labels of the same noisy samples, drawn on the CPU, by the 30-step Anderson DEQ solved to 1e-3, σ = 0.5; and the "
    "growth of memory while one image is voted on at chain width 400.",
)
