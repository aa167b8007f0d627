"""Networks for evaluation only: normalisations that do not depend on the input are folded into the convolutions."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@torch.no_grad()
def folded(module: ModuleT) -> ModuleT:
    """Return a twin of ``module`` with fewer operations and the same outputs but for rounding.

    Weight-normalised convolutions become plain ones; batch norms that follow a convolution in an ``nn.Sequential``
    go into its weight and bias. What stays as it is is shared with ``module``.

    Args:
        module: A network in evaluation mode.
    """
    if isinstance(module, nn.Conv2d):
        return cast(ModuleT, _plain(module)) if is_parametrized(module) else module
    twin = copy.copy(module)
    twin._modules = {name: child and folded(child) for name, child in module._modules.items()}
    if isinstance(twin, nn.Sequential):
        layers: list[nn.Module] = []
        for layer in twin:
            if isinstance(layer, nn.BatchNorm2d) and layers and isinstance(layers[-1], nn.Conv2d):
                layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
            else:
                layers.append(layer)
        twin._modules = {str(position): layer for position, layer in enumerate(layers)}
    return twin


def _plain(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution with the weight that the parametrisation computes."""
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]  # torch annotates its own attributes as wider tuples
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        conv.bias is not None,
        conv.padding_mode,
        device="meta",
    )
    plain.weight = nn.Parameter(conv.weight.clone())
    if conv.bias is not None:
        plain.bias = conv.bias
    return plain.eval()
