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
_IN_SEQUENCE = re.compile(r"^1\.(?:module\.|_orig_mod\.)*")
"""Cohen et al. certify ``Sequential(normalization, network)``, the network in a ``DataParallel``, compiled, or not."""

_NORMALIZATION = {"0.means": "mean", "0.sds": "std"}
"""Buffers of that normalization, where they were saved, and ours."""

_AVERAGED = "n_averaged"
"""What ``torch.optim.swa_utils.AveragedModel`` counts beside the weights that it wraps."""

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


class _Form(NamedTuple):
    """A kind of file, how its names become the usual ones of its kind, and how those call a weight of ours."""

    name: str
    usual: Callable[[str], str]
    theirs: Callable[[str], str]


def convert_weights(given: Mapping[str, Tensor], network: nn.Module, shown: str) -> Conversion:
    """Find the weights of ``network`` in those of a file.

    Known are the public MDEQ (with or without weight normalization), the ResNets of Cohen et al. and of torchvision,
    and our own names; with or without what wrappers (``DataParallel``, ``torch.compile``, a LightningModule, …) put
    before every name. ``shown`` is the file, for the error.

    Raises:
        CheckpointError: The file is of another kind of network, or a name is missing, comes twice or is not accounted
            for, a shape or type differs, or a weight is not finite.
    """
    own = network.state_dict()
    bare = _without_prefixes(given, network)
    form = _recognize(bare, network, shown)
    kept: dict[str, Tensor] = {}
    for name, tensor in bare.items():
        if (usual := form.usual(name)) in kept:
            raise CheckpointError(f"{shown}: {printable(usual)} comes twice")
        kept[usual] = tensor
    names = {form.theirs(name): name for name in own}
    supplied = mdeq_names.supply_weight_norms(kept, names) if isinstance(network, MDEQ) else {}
    ignored = {}
    for name in kept.keys() - names.keys():
        if (reason := _why_redundant(name, kept, network, shown)) is not None:
            ignored[name] = reason
    kept = {name: tensor for name, tensor in kept.items() if name not in ignored}
    for name in names.keys() - kept.keys():
        if name.endswith(_COUNTER):  # unknown to torch before 0.4.1
            kept[name] = torch.zeros((), dtype=torch.int64)
            supplied[name] = "zero: a counter of batches, of use in training only"
    demand_usable_weights({name: own[ours] for name, ours in names.items()}, kept, shown, other_names="")
    weights = {ours: kept[name].to(own[ours].dtype) for name, ours in names.items()}
    return Conversion(form.name, weights, ignored, supplied, _on_trust(network, ignored))


def _recognize(given: Mapping[str, Tensor], network: nn.Module, shown: str) -> _Form:
    kind = type(network).__name__
    if any(mdeq_names.MARK.match(name) for name in given):
        if not isinstance(network, MDEQ):
            raise CheckpointError(f"{shown}: is of a public MDEQ, the configured network is a {kind}")
        return _Form("public MDEQ", mdeq_names.older_name, lambda name: mdeq_names.public_name(name, network))
    if isinstance(network, _RESNETS):
        if any(_IN_SEQUENCE.match(name) for name in given):
            return _Form("Cohen et al., ResNet", lambda name: _IN_SEQUENCE.sub("", name), str)
        return _Form("torchvision or our own names", str, str)
    if not given.keys() & network.state_dict().keys():
        raise CheckpointError(f"{shown}: has no weight of a {kind} by any known name, e.g. {next(iter(given))!r}")
    return _Form("our own names", str, str)


def _without_prefixes(given: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    """Strip what wrappers put before every name, if a name that is known comes out."""
    own = network.state_dict().keys()
    mark = _IN_SEQUENCE if isinstance(network, _RESNETS) else mdeq_names.MARK
    names = {name: name for name in given if name != _AVERAGED}
    while not any(name in own or mark.match(name) for name in names.values()):
        prefixes = {short.partition(".")[0] for short in names.values()}
        if len(prefixes) != 1 or prefixes & set(names.values()):
            return given
        names = {name: short.partition(".")[2] for name, short in names.items()}
    return {names.get(name, name): tensor for name, tensor in given.items()}


def _why_redundant(name: str, given: Mapping[str, Tensor], network: nn.Module, shown: str) -> str | None:
    """Say why a weight is of no use to ``network``; None if it may be."""
    if name == _AVERAGED:
        return "a counter of averaged weights"
    if name in _NORMALIZATION and isinstance(network, _RESNETS):
        ours = network.get_buffer(_NORMALIZATION[name]).flatten()
        if given[name].shape != ours.shape or not torch.allclose(given[name].to(ours), ours, atol=1e-4):
            raise CheckpointError(f"{shown}: {name} = {given[name].tolist()}, but the network has {ours.tolist()}")
        return "the normalization, which is that of the network"
    if isinstance(network, MDEQ) and (reason := mdeq_names.why_redundant(name, given, network)) is not None:
        return reason
    return "a counter of batches that the network does not have" if name.endswith(_COUNTER) else None


def _on_trust(network: nn.Module, ignored: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the settings that nothing in the file was compared with."""
    if (architecture := architecture_of(network)) is None:
        return None
    compared = {ours for name, ours in _NORMALIZATION.items() if name in ignored}
    settings = architecture["settings"]
    return {name: settings[name] for name in getattr(network, "UNSEEN", settings) if name not in compared}
