"""What the public MDEQ calls the weights that ours has (Bai, Koltun, Kolter, NeurIPS 2020, and the SRS repository)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from deqcert.models import MDEQ

MARK = re.compile(r"fullstage\.branches\.\d+\.blocks\.")
"""Names by which a public MDEQ is known."""

_PARAMETRIZED = re.compile(r"parametrizations\.weight\.original([01])$")
"""Length and direction of a weight, by torch's later weight normalization."""

_NORMALIZED = {"0": "weight_g", "1": "weight_v"}
_SHARED = "deq.func."
_COPIES = ("fullstage_copy.", "deq.func_copy.")
_SINGLE_POST_FUSION = "fullstage.post_fuse_layers.0."
_BODY = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2", "6": "conv3", "7": "bn3"}

_RENAMED: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"mdeq_cell\.blocks\.(\d+)\.norm", r"fullstage.branches.\1.blocks.0.gn"),
    (r"mdeq_cell\.blocks\.(\d+)\.", r"fullstage.branches.\1.blocks.0."),
    (r"mdeq_cell\.post_fusion\.(\d+)\.1\.", r"fullstage.post_fuse_layers.\1.conv."),
    (r"mdeq_cell\.post_fusion\.(\d+)\.2\.", r"fullstage.post_fuse_layers.\1.gnorm."),
    (r"mdeq_cell\.fusion\.(\d+)\.(\d+)\.(\d+)\.", lambda match: _of_fusion(*map(int, match.groups()))),
    (r"mdeq_head\.final\.", "final_layer."),
    (r"mdeq_head\.downsample\.", "downsamp_modules."),
    (r"mdeq_head\.bottlenecks\.(\d+)\.shortcut\.", r"incre_modules.\1.0.downsample."),
    (r"mdeq_head\.bottlenecks\.(\d+)\.body\.(\d)", lambda match: f"incre_modules.{match[1]}.0.{_BODY[match[2]]}"),
    (r"mdeq_head\.", ""),
]
"""How names of ours begin, and how the same begin there; the first that fits is taken."""


def public_name(name: str, network: MDEQ) -> str:
    """Return the public name of a weight that is called ``name`` in the state dict of ``network``."""
    part, rest = name.split(".", 1)
    if part == "stem":
        return _of_stem(rest, network)
    for pattern, begin in _RENAMED:
        name, found = re.subn(f"^{pattern}", begin, name)
        if found:
            break
    return older_name(name)


def older_name(name: str) -> str:
    """Name a normalized weight as torch's first weight normalization did."""
    return _PARAMETRIZED.sub(lambda match: _NORMALIZED[match[1]], name)


def supply_weight_norms(given: dict[str, Tensor], names: Mapping[str, str]) -> dict[str, str]:
    """Split plain weights in ``given`` of which length and direction are ``names``, and name the lengths, why."""
    supplied = {}
    for direction in (name for name in names if name.endswith(".weight_v")):
        plain = direction.removesuffix("_v")
        length = f"{plain}_g"
        fits = plain in given and given[plain].dim() == 4 and given[plain].is_floating_point()
        if fits and not {direction, length} & given.keys():
            weight = given.pop(plain)
            given[length] = weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            # A filter of zeros has no direction: any will do.
            given[direction] = torch.where(given[length] == 0, 1.0, weight)
            supplied[length] = "the length of a weight that was saved without weight normalization"
    return supplied


def why_redundant(name: str, given: Mapping[str, Tensor], network: MDEQ) -> str | None:
    """Say why a public weight is of no use to ``network``; None if it may be."""
    if name.startswith(_COPIES):
        return "a copy for the backward pass of training"
    if name.startswith(_SHARED):
        original = given.get(f"fullstage.{name.removeprefix(_SHARED)}")
        return "a weight of fullstage again" if original is not None and torch.equal(original, given[name]) else None
    if {f"{name}_g", f"{name}_v"} <= given.keys():
        return "computed from weight_g and weight_v"
    if name.startswith(_SINGLE_POST_FUSION) and len(network.shapes) == 1:
        return "a single branch is not fused"
    return None


def _of_stem(name: str, network: MDEQ) -> str:
    """Positions of ours are 3 per stage: convolution, norm, ReLU; the last stage may be the public ``stage0``."""
    position, rest = name.split(".", 1)
    stage, layer = divmod(int(position), 3)
    stages = len(network.stem) // 3
    if stage == stages - 1 and network.has_stage0:
        return f"stage0.{layer}.{rest}"
    if stage < 2:
        return f"downsample.{position}.{rest}"
    return f"downsample.DS{stage + 1}{'-BN' if layer == 1 else ''}.{rest}"


def _of_fusion(target: int, source: int, position: int) -> str:
    """Positions of ours are convolution and norm, and on the way down a ReLU, for each stage."""
    stage, layer = divmod(position, 3)
    place = "" if source > target else f"{stage}."
    return f"fullstage.fuse_layers.{target}.{source}.net.{place}{'conv' if layer == 0 else 'gnorm'}."
