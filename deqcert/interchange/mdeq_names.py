"""What the public MDEQ calls the weights that ours has (Bai, Koltun, Kolter, NeurIPS 2020, and the SRS repository)."""

from __future__ import annotations

import re

from deqcert.models import MDEQ

MARK = re.compile(r"fullstage\.branches\.\d+\.blocks\.")
"""Names by which a public MDEQ is known."""

_NORMALISED = {"original0": "weight_g", "original1": "weight_v"}
_BODY = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2", "6": "conv3", "7": "bn3"}


def public_name(name: str, network: MDEQ) -> str:
    """Return the public name of a weight of ours.

    Args:
        name: Name in the state dict of ``network``.
        network: Our network; what a stage of its stem is called depends on how many there are.
    """
    part, rest = name.split(".", 1)
    if part == "stem":
        return _of_stem(rest, network)
    if part == "mdeq_cell":
        return f"fullstage.{_weight_norm(_of_cell(rest))}"
    return _of_head(rest)


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


def _of_cell(name: str) -> str:
    part, index, rest = name.split(".", 2)
    if part == "blocks":
        return f"branches.{index}.blocks.0.{rest.replace('norm', 'gn', 1) if rest.startswith('norm') else rest}"
    if part == "post_fusion":
        position, tensor = rest.split(".", 1)
        return f"post_fuse_layers.{index}.{'conv' if position == '1' else 'gnorm'}.{tensor}"
    source, position, tensor = rest.split(".", 2)
    if int(source) > int(index):
        return f"fuse_layers.{index}.{source}.net.{'conv' if position == '0' else 'gnorm'}.{tensor}"
    stage, layer = divmod(int(position), 3)
    return f"fuse_layers.{index}.{source}.net.{stage}.{'conv' if layer == 0 else 'gnorm'}.{tensor}"


def _weight_norm(name: str) -> str:
    head, parametrised, original = name.partition(".parametrizations.weight.")
    return f"{head}.{_NORMALISED[original]}" if parametrised else name


def _of_head(name: str) -> str:
    part, rest = name.split(".", 1)
    if part == "classifier":
        return name
    if part == "final":
        return f"final_layer.{rest}"
    if part == "downsample":
        return f"downsamp_modules.{rest}"
    index, branch, position, tensor = rest.split(".", 3)
    if branch == "shortcut":
        return f"incre_modules.{index}.0.downsample.{position}.{tensor}"
    return f"incre_modules.{index}.0.{_BODY[position]}.{tensor}"
