"""Residual networks: the explicit classifiers that papers on randomized smoothing compare with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from deqcert.errors import require
from deqcert.models.base import StatedNetwork


class CifarResNet(StatedNetwork):
    """Residual network for small images (He et al., CVPR 2016, section 4.2), as Cohen et al. (ICML 2019) certify it.

    Three stages of 16, 32 and 64 channels with (depth - 2) / 6 blocks each; where the width changes the shortcut is a
    1×1 convolution. Names of its weights are those of the published checkpoints.

    Args:
        depth: Layers with weights, 6 n + 2; published: 110.
        num_classes: Classes, >= 2.
        image_channels: Channels of the images.
        image_size: Height and width of the images, pixels, a multiple of 4.
        mean: Per-channel mean of the images, in [0, 1].
        std: Per-channel standard deviation of the images.

    Raises:
        SettingError: If a setting is out of range.
    """

    def __init__(
        self,
        depth: int = 110,
        num_classes: int = 10,
        image_channels: int = 3,
        image_size: int = 32,
        mean: Sequence[float] = (0.4914, 0.4822, 0.4465),
        std: Sequence[float] = (0.2023, 0.1994, 0.2010),
    ) -> None:
        super().__init__()
        self._state(locals())
        require(depth >= 8 and depth % 6 == 2, "depth", depth, "must be 6 n + 2 with n >= 1")
        require(image_size >= 4 and image_size % 4 == 0, "image_size", image_size, "must be a multiple of 4")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(image_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images ``x`` in [0, 1], shape (B, C, H, W) to (B, classes)."""
        features = self.bn1(self.conv1((x - self.mean) / self.std)).relu_()
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.fc(features.mean(dim=(2, 3)))
        return logits


class ResNet50(StatedNetwork, ResNet):  # type: ignore[misc]  # torchvision ships no type information
    """torchvision's ResNet-50 with the normalization inside, so that noise is added before it.

    Args:
        num_classes: Classes, >= 2.
        image_size: Height and width of the images, pixels, >= 32.
        mean: Per-channel mean of the images, in [0, 1].
        std: Per-channel standard deviation of the images.

    Raises:
        SettingError: If a setting is out of range.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        image_size: int = 224,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3], num_classes=num_classes)
        self._state(locals())
        require(image_size >= 32, "image_size", image_size, "must be >= 32")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images ``x`` in [0, 1], shape (B, 3, H, W) to (B, classes)."""
        logits: Tensor = super().forward((x - self.mean) / self.std)
        return logits


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1:
        shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
    first = BasicBlock(channels_in, channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))
