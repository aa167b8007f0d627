"""Dense monotone networks on the digits, trained by deqcert fit and certified without noise: the table of the manual.

python benchmarks/lipschitz.py prints a row of docs/deterministic.md per network; the names of rows choose some of them.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import torch

from deqcert.checkpoints import load_network
from deqcert.cli import main as deqcert
from deqcert.data import Digits
from deqcert.monotone import MonDEQ
from deqcert.monotone.dense import DenseMonotoneDEQ
from deqcert.solvers import Anderson

CONFIGS = Path(__file__).parents[1] / "configs" / "digits"
RADII = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5)
EXACT = Anderson(max_steps=1000, tolerance=1e-10, ridge=0.0)
PLAIN = [
    "--model.objective=deqcert.training.Gaussian",
    "--trainer.max_epochs=30",
    "--model.optimizer.init_args.lr=1e-2",
]


def rows() -> dict[str, list[str]]:
    """The arguments of deqcert fit for each row of the table."""
    found = {}
    for objective, arguments in (("cross-entropy", PLAIN), ("margin", [])):
        for gamma in (0.1, 0.2, 0.3, 0.4, 0.5, 0.8, 1.0, 2.0, 5.0, math.inf):
            if objective == "cross-entropy" or gamma in (0.3, 1.0, 5.0, math.inf):
                setting = f"--model.network.init_args.gamma={'.inf' if gamma == math.inf else gamma}"
                found[f"LBEN {gamma:g} {objective}"] = ["lben", setting, *arguments]
        found[f"monDEQ {objective}"] = ["mondeq", *arguments]
    return found


def train(name: str, config: str, arguments: list[str]) -> tuple[DenseMonotoneDEQ, float]:
    """Train in runs/lipschitz; return the network in float64 and the seconds it took."""
    folder = Path("runs", "lipschitz", name.replace(" ", "_"))
    started = time.perf_counter()
    quiet = ["--trainer.enable_progress_bar=false", f"--trainer.logger.init_args.save_dir={folder}"]
    with redirect_stdout(sys.stderr):
        if deqcert(["fit", f"--config={CONFIGS / f'{config}.yaml'}", *arguments, *quiet]) != 0:
            raise SystemExit(f"{name} did not train")
    newest = max(folder.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
    network = load_network(newest).network
    assert isinstance(network, DenseMonotoneDEQ)
    return network.double(), time.perf_counter() - started


@torch.no_grad()
def measure(network: DenseMonotoneDEQ, images: torch.Tensor, labels: torch.Tensor) -> tuple[list[str], list[str]]:
    """Certify with the constants of pairs, and with the one constant of the literature."""
    bounded = network.bounded_logits(images, EXACT)
    classes = bounded.logits.argmax(dim=1, keepdim=True)
    gaps = bounded.logits.gather(1, classes) - bounded.logits - bounded.errors
    right = classes[:, 0] == labels

    def certified(constants: torch.Tensor) -> list[str]:
        radii = (gaps / constants[classes[:, 0]]).scatter(1, classes, math.inf).amin(dim=1).clamp_min(0) * right
        accuracy = [f"{100 * (radii >= radius).double().mean():.1f}" for radius in RADII[1:]]
        return [f"{100 * (radii > 0).double().mean():.1f}", *accuracy, f"{radii.mean():.3f}"]

    pairs = network.lipschitz_constants()
    u, readout, weight = network.input_matrix(), network.decoder.weight, network.weight()
    if isinstance(network, MonDEQ):
        single = torch.linalg.matrix_norm(u, 2) * torch.linalg.matrix_norm(readout, 2) / network.m
    else:
        single = torch.tensor(network.gamma)
    active = (network.solve(images, EXACT)[1].value > 0).double()[:, :, None]
    jacobians = readout @ torch.linalg.solve(torch.eye(len(u)) - active * weight, active * u)
    first, second = torch.combinations(torch.arange(len(readout)), 2).T
    slopes = (jacobians[:, first] - jacobians[:, second]).norm(dim=2)
    numbers = single, torch.linalg.matrix_norm(jacobians, 2).max(), pairs.max(), slopes.max()
    facts = [*(f"{number:.3g}" for number in numbers), f"{bounded.steps.double().mean():.0f}"]
    return facts + certified(pairs), certified(math.sqrt(2) * single * torch.ones_like(pairs))


def main() -> None:
    table = rows()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(table)}")
    names = parser.parse_args().rows or list(table)
    data = Digits().load_split("test")
    images = torch.stack([data[i][0] for i in range(len(data))]).double() / 255
    labels = torch.tensor([data[i][1] for i in range(len(data))])
    radii = " | ".join(f"{radius:g}" for radius in RADII)
    print(f"| network | seconds | L known | max ‖J‖ | max L_ij | max ‖J_i − J_j‖ | evaluations | {radii} | ACR |")
    print("| --- |" + " ---: |" * (len(RADII) + 7))
    for name in names:
        config, *arguments = table[name]
        network, seconds = train(name, config, arguments)
        ours, single = measure(network, images, labels)
        print("|", " | ".join([name, f"{seconds:.0f}", *ours]), "|", flush=True)
        if ours[0] != "inf":
            print("|", " | ".join([f"{name}, L known", *[""] * 6, *single]), "|", flush=True)


if __name__ == "__main__":
    main()
