"""``deqcert convert``: weights of public checkpoints to ours, and ours to safetensors."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from deqcert.checkpoints import network_weights
from deqcert.checkpoints.architecture import architecture_differences, architecture_of
from deqcert.checkpoints.files import demand_usable_weights, printable
from deqcert.cli.arguments import CONFIG, demand_free, parse_with_settings, values_of
from deqcert.cli.instantiation import ANYWHERE, instantiate
from deqcert.errors import require
from deqcert.files import file_digest
from deqcert.interchange import SAFETENSORS, convert_weights, read_weights, write_checkpoint, write_safetensors
from deqcert.names import checkpoint_path

_SHOWN = 5


def run_convert(args: Sequence[str]) -> int:
    """Convert one file, print what became of everything in it, and return 0.

    ``args`` are the arguments after the verb; those that it does not know go to the configuration of the model.
    """
    parsed, model_args = parse_with_settings(_parser(), args)
    source, target = Path(checkpoint_path(parsed.source, "source")), Path(parsed.to)
    demand_free(target, source, parsed.overwrite)
    if target.suffix == SAFETENSORS:
        require(not model_args, "arguments", " ".join(model_args), "are not needed to write safetensors")
        lines = _export(source, target)
    else:
        lines = _import(source, target, model_args)
    print("\n".join(lines))
    for name, path in (("source", source), ("target", target)):
        print(f"sha256 of {name} {file_digest(path)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deqcert convert",
        description="Convert weights of the public DEQ and SRS repositories, of Cohen et al., of torchvision, or "
        "safetensors into a checkpoint; or a checkpoint of ours into safetensors. The architecture is that of the "
        "model in --config.",
        epilog="deqcert convert cifar_ls.pth.tar --to large.ckpt --config configs/cifar10/mdeq_large.yaml; "
        "deqcert convert large.ckpt --to large.safetensors",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="file of torch.save or .safetensors; no code in it is run")
    parser.add_argument("--to", metavar="TARGET", required=True, help="file to write: a checkpoint, or .safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace TARGET if it exists")
    return parser


def _import(source: Path, target: Path, model_args: Sequence[str]) -> list[str]:
    named = any(values_of(model_args, *CONFIG))
    require(named, "config", None, "must name the configuration of the model, e.g. configs/cifar10/mdeq_large.yaml")
    found = read_weights(source)
    module = instantiate(["certify", *model_args, *ANYWHERE]).model
    conversion = convert_weights(found.tensors, module.network, str(source))
    sigma = module.sigma
    write_checkpoint(target, conversion.weights, sigma, architecture_of(module.network))
    lines = [f"{source}: {conversion.form}; {len(conversion.weights)} tensors written to {target}"]
    lines += _by_reason("left out", conversion.ignored | found.beside)
    lines += _by_reason("put in", conversion.supplied)
    if found.sigma is not None and found.sigma != sigma:
        lines.append(f"warning: the file says sigma = {found.sigma}, the configuration {sigma}, which was written")
    otherwise = "warning: the file says otherwise, what is configured was written: "
    lines += [otherwise + each for each in architecture_differences(module.network, found.architecture)]
    if found.architecture is None and conversion.on_trust is None:
        network = type(module.network).__name__
        lines.append(f"taken on trust: all settings of {network} that names and shapes of its weights do not show")
    elif found.architecture is None:
        shown = ", ".join(f"{name} = {value}" for name, value in (conversion.on_trust or {}).items())
        advice = "to set it: --model.network.init_args.NAME=VALUE (no normalization: mean 0, std 1)"
        lines.append(f"taken on trust, since the file does not show it: {shown}; {advice}")
    command = shlex.join(["deqcert", "certify", *model_args, "--ckpt_path", str(target)])
    return [*lines, f"trained at sigma = {sigma} (model.sigma)", f"next, with a smoothing: {command}"]


def _by_reason(verb: str, reasons: Mapping[str, str]) -> list[str]:
    """Say what became of names, one line for all that have the same reason."""
    names: dict[str, list[str]] = {}
    for name, reason in sorted(reasons.items()):
        names.setdefault(reason, []).append(printable(name))
    lines = []
    for reason, some in names.items():
        more = f" and {len(some) - _SHOWN} more" if len(some) > _SHOWN else ""
        lines.append(f"{verb} {', '.join(some[:_SHOWN])}{more}: {reason}")
    return lines


def _export(source: Path, target: Path) -> list[str]:
    found = read_weights(source)
    weights = network_weights(found.tensors, str(source))
    demand_usable_weights(weights, weights, str(source))
    write_safetensors(target, weights, found.sigma, file_digest(source), found.architecture)
    return [f"{source}: our own names; {len(weights)} tensors written to {target}"]
