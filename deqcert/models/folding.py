"""Modules for evaluation only: same outputs but for rounding, fewer operations, channels last in memory."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import type_before_parametrizations


@torch.no_grad()
def folded(module: nn.Module, like: Tensor) -> nn.Module:
    """Return a twin of ``module`` for inputs that are channels last.

    Weight normalizations become part of the weights; batch norms that follow a convolution in an ``nn.Sequential`` go
    into its weight and bias; group norms compute as :class:`ChannelsLastGroupNorm`. What stays as it is is shared with
    ``module``.

    ``module`` is in evaluation mode; ``like`` has its dtype and device.
    """
    kind = type_before_parametrizations(module)  # a subclass may compute something else
    if kind is nn.Conv2d and isinstance(module, nn.Conv2d):
        return _plain(module)
    if kind is nn.GroupNorm and isinstance(module, nn.GroupNorm):
        return ChannelsLastGroupNorm(module, like)
    twin = copy.copy(module)
    twin._modules = {name: child and folded(child, like) for name, child in module._modules.items()}
    if isinstance(twin, nn.Sequential):
        layers: list[nn.Module] = []
        for layer in twin:
            if isinstance(layer, nn.BatchNorm2d) and layers and isinstance(layers[-1], nn.Conv2d):
                layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
            else:
                layers.append(layer)
        twin._modules = {str(position): layer for position, layer in enumerate(layers)}
    return twin


class ChannelsLastGroupNorm(nn.Module):
    """Group normalization by whole-channel sums, for channels-last inputs.

    torch's own kernel goes through each group by itself, which is slow where a group has few channels. It computes as
    ``norm``, with sums of the dtype of ``like``.
    """

    averaging: Tensor
    spreading: Tensor
    shift: Tensor

    def __init__(self, norm: nn.GroupNorm, like: Tensor) -> None:
        super().__init__()
        self.eps = norm.eps
        groups, size = norm.num_groups, norm.num_channels // norm.num_groups
        weight, bias = like.new_ones(norm.num_channels), like.new_zeros(norm.num_channels)
        if norm.affine:
            weight, bias = norm.weight.detach(), norm.bias.detach()
        # Which channel is in which group, shape (G, C).
        members = torch.eye(groups, dtype=like.dtype, device=like.device).repeat_interleave(size, dim=1)
        self.register_buffer("averaging", members.T / size)
        self.register_buffer("spreading", members * weight)
        self.register_buffer("shift", bias)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, shape (B, C, H, W)."""
        batch, channels, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        values = pixels.to(self.shift.dtype)
        # The variance is a difference: autocast must not round what it is a difference of.
        with torch.autocast(x.device.type, enabled=False):
            averaging = self.averaging / (height * width)
            mean = values.sum(dim=1) @ averaging
            square = torch.linalg.vecdot(values, values, dim=1) @ averaging
            inverse = torch.addcmul(square, mean, mean, value=-1).clamp_min_(0).add_(self.eps).rsqrt_()
            scale = inverse @ self.spreading
            shift = torch.addmm(self.shift, mean * inverse, self.spreading, alpha=-1)
        out = torch.addcmul(shift[:, None], values, scale[:, None]).to(x.dtype)
        return out.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _plain(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution with the weight that its parametrization, if any, computes."""
    plain = nn.Conv2d.__new__(nn.Conv2d)  # copy.copy refuses what is parametrized
    weight = nn.Parameter(conv.weight.clone(memory_format=torch.channels_last))
    plain.__dict__ = vars(conv) | {"_parameters": {"weight": weight, "bias": conv.bias}, "_modules": {}}
    return plain
