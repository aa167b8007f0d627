"""``deqcert predict``: the class of image files by the smoothed classifier, and a certified radius on request."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from deqcert.checkpoints import read_checkpoint
from deqcert.cli.arguments import parse_with_settings
from deqcert.data import read_image
from deqcert.errors import DataError, require, require_count
from deqcert.seeding import Purpose
from deqcert.smoothing import Engine, SmoothedClassifier, SolvedClassifier, Standard, Stream
from deqcert.solvers import Anderson
from deqcert.statistics import ABSTAIN, CertificationRule, predict

_ABSTAINED, _UNREADABLE = 1, 2


def run_predict(args: Sequence[str]) -> int:
    """Print one line for each image file; arguments that the verb does not know configure the network.

    Returns:
        0 if every image got a class, 1 if g abstained from one, 2 if a file could not be used; the other files are
        classified all the same.
    """
    parsed, settings = parse_with_settings(_parser(), args)
    require_count("n", parsed.n, minimum=1)
    require_count("n0", parsed.n0, minimum=1)
    rule = CertificationRule(parsed.alpha)
    require(parsed.device == "cpu" or torch.cuda.is_available(), "device", parsed.device, "is not here; cpu is")
    solver = Anderson(max_steps=parsed.max_steps, tolerance=parsed.tolerance)
    sigma, network = parsed.sigma, None
    if settings:
        sigma, network = _configured(settings, parsed.ckpt_path, sigma)
    g = SmoothedClassifier.from_checkpoint(parsed.ckpt_path, sigma, solver, parsed.start, network)
    g.base.to(parsed.device)
    given = g.base.network if isinstance(g.base, SolvedClassifier) else g.base
    taken = getattr(given, "image_channels", 3), getattr(given, "image_size", None)
    sampling = Standard(n0=parsed.n0, n=parsed.n)
    engines: dict[torch.Size, Engine] = {}  # of images of one shape: to prepare one takes longer than to use it
    code = 0
    for position, path in enumerate(parsed.images):
        stream = Stream.fresh() if parsed.seed is None else Stream(parsed.seed, position)
        try:
            image = read_image(Path(path), path, *taken).to(parsed.device)
            engine = engines.get(image.shape) or engines.setdefault(image.shape, sampling.engine(g, image))
            if parsed.certify:
                certificate = rule.certify(sampling.group_votes(g, engine, image[None], [stream])[0])
                prediction = certificate.prediction
                proof = {"radius": certificate.radius, "p_a_lower": certificate.p_a_lower}
            else:
                prediction = predict(g.counts(engine, image, stream, Purpose.ESTIMATION, parsed.n), rule.alpha)
                proof = {}
        except DataError as error:
            print(f"deqcert: error: {error}", file=sys.stderr)
            code = _UNREADABLE
            continue
        known = None if prediction == ABSTAIN else prediction
        if parsed.json:
            record = {"file": path, "prediction": known, **proof, "alpha": rule.alpha, "sigma": g.sigma}
            print(json.dumps(record), flush=True)
        else:
            radius = [f"{proof['radius']:.4f}"] if proof else []
            print(path, "abstain" if known is None else known, *radius, sep="\t", flush=True)
        code = max(code, _ABSTAINED if known is None else 0)
    return code


def _configured(settings: Sequence[str], ckpt_path: str, sigma: float | None) -> tuple[float | None, nn.Module]:
    """Return sigma, that of training in the configuration if nothing else states one, and the configured network."""
    from deqcert.cli.instantiation import ANYWHERE, instantiate  # Lightning takes seconds

    built = instantiate(["certify", *settings, *ANYWHERE])
    trained = read_checkpoint(ckpt_path).get("hyper_parameters", {})
    if sigma is None and "sigma" not in trained:
        sigma = built.stated("model.sigma")
    return sigma, built.model.network


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deqcert predict",
        description="Classify image files by the smoothed classifier of a checkpoint: file and class, or abstain, on "
        "one line each, and the certified l2 radius with --certify. A class is wrong (not that of the smoothed "
        "classifier) with probability at most alpha. Ends with code 0 if every image got a class, 1 if one did not, 2 "
        "if a file could not be used.",
        epilog="A checkpoint that does not state its network (a state dict, or one of a network of your own) needs the "
        "configuration of the model, --config FILE; other options of deqcert certify for the model are taken too.",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option("images", metavar="IMAGE", nargs="+", help="image files, of the size that the network takes")
    option("--ckpt_path", required=True, metavar="CHECKPOINT", help="checkpoint, state dict or safetensors")
    option("--certify", action="store_true", help="certify a radius too")
    option("--json", action="store_true", help="one JSON object per line")
    option("--sigma", type=float, help="noise in pixels of [0, 1]; default: that of training")
    option("--n", type=int, default=1000, help="noisy samples per image (%(default)s)")
    option("--n0", type=int, default=100, help="noisy samples that select the class, with --certify (%(default)s)")
    option("--alpha", type=float, default=0.001, help="error probability of each line (%(default)s)")
    option("--max_steps", type=int, default=30, help="Anderson steps of a DEQ (%(default)s)")
    option("--tolerance", type=float, default=1e-3, help="relative residual at which they stop (%(default)s)")
    option("--start", choices=["zero", "anchor"], default="zero", help="where they start (%(default)s)")
    option("--seed", type=int, help="repeatable noise, which an adversary could know; default: fresh noise")
    option("--device", choices=["cpu", "cuda"], default="cpu", help="(%(default)s)")
    return parser
