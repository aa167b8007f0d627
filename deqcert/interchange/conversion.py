"""From the weights of a file to those of a network: every name accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deqcert.checkpoints.architecture import architecture_of
from deqcert.checkpoints.files import demand_usable_weights, printable
from deqcert.errors import CheckpointError
from deqcert.interchange import mdeq_names
from deqcert.models import MDEQ, CifarResNet, ResNet50

_RESNETS = (CifarResNet, ResNet50)
_PUBLIC_MDEQ = "public MDEQ"
_COHEN = "Cohen et al., ResNet"
_IN_SEQUENCE = re.compile(r"^1\.(?:module\.|_orig_mod\.)*")
"""Cohen et al. certify ``Sequential(normalization, network)``, the network in a ``DataParallel``, compiled, or not."""

_AVERAGED = "n_averaged"
"""What ``torch.optim.swa_utils.AveragedModel`` counts beside the weights that it wraps."""

_NORMALIZATION = {"0.means": "mean", "0.sds": "std"}
"""Buffers of that normalization, where they were saved, and ours."""

_COUNTER = ".num_batches_tracked"


class Conversion(NamedTuple):
    """Weights of a network that were found in a file.

    Attributes:
        form: What the file was recognized as.
        weights: By the names of the network.
        ignored: What the file has besides them, by its names, with the reason why it is not needed.
        supplied: What the file lacks, by names like its own, with what was put in its place.
        on_trust: Settings of the network that the file does not show, with their values; None if it does not state any.
    """

    form: str
    weights: dict[str, Tensor]
    ignored: dict[str, str]
    supplied: dict[str, str]
    on_trust: dict[str, Any] | None


def convert_weights(given: Mapping[str, Tensor], network: nn.Module, shown: str) -> Conversion:
    """Find the weights of ``network`` in those of a file.

    Known are the public MDEQ (with or without weight normalization), the ResNets of Cohen et al. and of torchvision,
    and our own names; with or without what wrappers (``DataParallel``, ``torch.compile``, a LightningModule, …) put
    before every name.

    Args:
        given: Weights by their names in the file.
        network: The network that they are to fit.
        shown: The file, for the error.

    Raises:
        CheckpointError: The file is of another kind of network, or a name is missing, comes twice or is not accounted
            for, a shape or type differs, or a weight is not finite.
    """
    own = network.state_dict()
    given = _without_prefixes(given, network)
    ignored: dict[str, str] = {}
    supplied: dict[str, str] = {}
    form, rename = _recognize(given, network, shown)
    if form == _COHEN:
        given, ignored = _of_sequence(given, network, shown)
    names = {rename(name): name for name in own}
    if form == _PUBLIC_MDEQ:
        given, supplied = mdeq_names.with_weight_norms(given, names, shown)
    ignored |= _redundant(given, names, network)
    kept = {name: tensor for name, tensor in given.items() if name not in ignored}
    for name in names.keys() - kept.keys():
        if name.endswith(_COUNTER):  # unknown to torch before 0.4.1
            kept[name] = torch.zeros((), dtype=torch.int64)
            supplied[name] = "zero: a counter of batches, of use in training only"
    demand_usable_weights({name: own[ours] for name, ours in names.items()}, kept, shown)
    weights = {ours: kept[name].to(own[ours].dtype) for name, ours in names.items()}
    return Conversion(form, weights, ignored, supplied, _on_trust(network, ignored))


def _recognize(given: Mapping[str, Tensor], network: nn.Module, shown: str) -> tuple[str, Callable[[str], str]]:
    """Return what the weights are of and how it calls a weight of ours."""
    kind = type(network).__name__
    if any(mdeq_names.MARK.match(name) for name in given):
        if not isinstance(network, MDEQ):
            raise CheckpointError(f"{shown}: is of a public MDEQ, the configured network is a {kind}")
        return _PUBLIC_MDEQ, lambda name: mdeq_names.public_name(name, network)
    if isinstance(network, _RESNETS):
        in_sequence = any(_IN_SEQUENCE.match(name) for name in given)
        return (_COHEN if in_sequence else "torchvision or our own names"), lambda name: name
    if not given.keys() & network.state_dict().keys():
        raise CheckpointError(f"{shown}: has no weight of a {kind} by any known name, e.g. {next(iter(given))!r}")
    return "our own names", lambda name: name


def _without_prefixes(given: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Strip what wrappers put before every name, if a name that is known comes out."""
    own = network.state_dict().keys()
    mark = _IN_SEQUENCE if isinstance(network, _RESNETS) else mdeq_names.MARK
    names = {name: name for name in given if name != _AVERAGED}
    while not any(name in own or mark.match(name) for name in names.values()):
        prefixes = {short.partition(".")[0] for short in names.values()}
        if len(prefixes) != 1 or prefixes & set(names.values()):
            return dict(given)
        names = {name: short.partition(".")[2] for name, short in names.items()}
    return {names.get(name, name): tensor for name, tensor in given.items()}


def _of_sequence(
    given: Mapping[str, Tensor], network: nn.Module, shown: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Take the network out of the sequence that Cohen et al. save; its normalization must be ours."""
    kept: dict[str, Tensor] = {}
    for name, tensor in given.items():
        short = _IN_SEQUENCE.sub("", name, count=1)
        if short in kept:
            raise CheckpointError(f"{shown}: {printable(short)} comes twice")
        kept[short] = tensor
    ignored = {name: "the normalization, which is that of the network" for name in _NORMALIZATION if name in given}
    for name in ignored:
        ours = network.get_buffer(_NORMALIZATION[name]).flatten()
        if given[name].shape != ours.shape or not torch.allclose(given[name].to(ours), ours, atol=1e-4):
            raise CheckpointError(f"{shown}: {name} = {given[name].tolist()}, but the network has {ours.tolist()}")
    return kept, ignored


def _on_trust(network: nn.Module, ignored: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the settings that nothing in the file was compared with."""
    architecture = architecture_of(network)
    if architecture is None:
        return None
    compared = {ours for name, ours in _NORMALIZATION.items() if name in ignored}
    settings = architecture["settings"]
    return {name: settings[name] for name in getattr(network, "UNSEEN", settings) if name not in compared}


def _redundant(given: Mapping[str, Tensor], names: Mapping[str, str], network: nn.Module) -> dict[str, str]:
    """Name what is known to be of no use, with the reason."""
    found = {}
    for name in given.keys() - names.keys():
        reason = mdeq_names.why_redundant(name, given, network) if isinstance(network, MDEQ) else None
        if name == _AVERAGED:
            found[name] = "a counter of averaged weights"
        elif reason is not None:
            found[name] = reason
        elif name.endswith(_COUNTER):
            found[name] = "a counter of batches that the network does not have"
    return found
