"""The names and the arithmetic of the public MDEQ, by other means than ours: functions on a dictionary of weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F

EXPANSION, GROUPS = 5, 8


def random_weights(channels, head_channels, final, classes, downsample_times, affine=False, seed=0):
    """A state dict as the public training script saves it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=0.3):
        return scale * torch.randn(*shape, generator=generator)

    weights = {}

    def norm(name, width, affine=True, running=False):
        if affine:
            weights[f"{name}.weight"], weights[f"{name}.bias"] = 1 + draw(width), draw(width)
        if running:
            weights[f"{name}.running_mean"] = draw(width)
            weights[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=generator)
            weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def normalised(name, out, into, size):
        weights[f"{name}.weight_g"] = 0.5 + torch.rand(out, 1, 1, 1, generator=generator)
        weights[f"{name}.weight_v"] = draw(out, into, size, size)

    first = channels[0]
    for position, into in ((0, 3), (3, first)):
        weights[f"downsample.{position}.weight"] = draw(first, into, 3, 3)
        norm(f"downsample.{position + 1}", first, running=True)
    for stage in range(3, downsample_times + 1):
        weights[f"downsample.DS{stage}.weight"] = draw(first, first, 3, 3)
        norm(f"downsample.DS{stage}-BN", first, running=True)
    if downsample_times or len(channels) > 2:
        weights["stage0.0.weight"] = draw(first, first, 1, 1)
        norm("stage0.1", first, running=True)
    for i, width in enumerate(channels):
        block = f"fullstage.branches.{i}.blocks.0"
        normalised(f"{block}.conv1", EXPANSION * width, width, 3)
        normalised(f"{block}.conv2", width, EXPANSION * width, 3)
        for name, wide in (("gn1", EXPANSION * width), ("gn2", width), ("gn3", width)):
            norm(f"{block}.{name}", wide)
        for j, source in enumerate(channels):
            net = f"fullstage.fuse_layers.{i}.{j}.net"
            if j > i:
                weights[f"{net}.conv.weight"] = draw(width, source, 1, 1)
                norm(f"{net}.gnorm", width)
            for stage in range(i - j):
                out = width if stage == i - j - 1 else source
                weights[f"{net}.{stage}.conv.weight"] = draw(out, source, 3, 3)
                norm(f"{net}.{stage}.gnorm", out)
        normalised(f"fullstage.post_fuse_layers.{i}.conv", width, width, 1)
        norm(f"fullstage.post_fuse_layers.{i}.gnorm", width, affine=affine)
        inner, wide = head_channels[i], 4 * head_channels[i]
        head = f"incre_modules.{i}.0"
        for number, (out, into, size) in enumerate(((inner, width, 1), (inner, inner, 3), (wide, inner, 1)), start=1):
            weights[f"{head}.conv{number}.weight"] = draw(out, into, size, size)
            norm(f"{head}.bn{number}", out, affine=False, running=True)
        if width != wide:
            weights[f"{head}.downsample.0.weight"] = draw(wide, width, 1, 1)
            norm(f"{head}.downsample.1", wide, running=True)
        if i:
            weights[f"downsamp_modules.{i - 1}.0.weight"] = draw(wide, 4 * head_channels[i - 1], 3, 3)
            weights[f"downsamp_modules.{i - 1}.0.bias"] = draw(wide)
            norm(f"downsamp_modules.{i - 1}.1", wide, running=True)
    weights["final_layer.0.weight"], weights["final_layer.0.bias"] = (
        draw(final, 4 * head_channels[-1], 1, 1),
        draw(final),
    )
    norm("final_layer.1", final, running=True)
    weights["classifier.weight"], weights["classifier.bias"] = draw(classes, final), draw(classes)
    return weights


def logits(weights, x, channels, downsample_times, iterations, mean, std):
    """What the public network answers after plain iterations from zero, in evaluation mode."""

    def bn(name, y):
        running = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        return F.batch_norm(y, *running, weights.get(f"{name}.weight"), weights.get(f"{name}.bias"))

    def gn(name, y, groups=GROUPS):
        return F.group_norm(y, groups, weights.get(f"{name}.weight"), weights.get(f"{name}.bias"))

    def conv(name, y, **settings):
        if f"{name}.weight_v" in weights:
            direction = weights[f"{name}.weight_v"]
            length = direction.pow(2).sum(dim=(1, 2, 3), keepdim=True).sqrt()
            weight = weights[f"{name}.weight_g"] * direction / length
        else:
            weight = weights[f"{name}.weight"]
        return F.conv2d(y, weight, weights.get(f"{name}.bias"), **settings)

    def cell(state, injected):
        blocks = []
        for i, branch in enumerate(state):
            block = f"fullstage.branches.{i}.blocks.0"
            out = F.relu(gn(f"{block}.gn1", conv(f"{block}.conv1", branch, padding=1)))
            out = conv(f"{block}.conv2", out, padding=1) + (injected if i == 0 else 0)
            blocks.append(gn(f"{block}.gn3", F.relu(gn(f"{block}.gn2", out) + branch)))
        if len(channels) == 1:
            return blocks
        return [fused(i, blocks) for i in range(len(channels))]

    def fused(i, blocks):
        total = blocks[i]
        for j, carried in enumerate(blocks):
            net = f"fullstage.fuse_layers.{i}.{j}.net"
            if j > i:
                carried = gn(f"{net}.gnorm", conv(f"{net}.conv", carried))
                total = total + F.interpolate(carried, scale_factor=2 ** (j - i), mode="nearest")
            elif j < i:
                for stage in range(i - j):
                    carried = gn(f"{net}.{stage}.gnorm", conv(f"{net}.{stage}.conv", carried, stride=2, padding=1))
                    carried = F.relu(carried) if stage < i - j - 1 else carried
                total = total + carried
        post = f"fullstage.post_fuse_layers.{i}"
        return gn(f"{post}.gnorm", conv(f"{post}.conv", F.relu(total)), GROUPS // 2)

    y = (x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    y = F.relu(bn("downsample.1", conv("downsample.0", y, padding=1, stride=2 if downsample_times >= 1 else 1)))
    y = F.relu(bn("downsample.4", conv("downsample.3", y, padding=1, stride=2 if downsample_times >= 2 else 1)))
    for stage in range(3, downsample_times + 1):
        y = F.relu(bn(f"downsample.DS{stage}-BN", conv(f"downsample.DS{stage}", y, padding=1, stride=2)))
    if "stage0.0.weight" in weights:
        y = F.relu(bn("stage0.1", conv("stage0.0", y)))
    size = y.shape[-1]
    state = [torch.zeros(len(x), width, size // 2**i, size // 2**i) for i, width in enumerate(channels)]
    for _ in range(iterations):
        state = cell(state, y)

    def widened(i):
        head, z = f"incre_modules.{i}.0", state[i]
        out = F.relu(bn(f"{head}.bn1", conv(f"{head}.conv1", z)))
        out = F.relu(bn(f"{head}.bn2", conv(f"{head}.conv2", out, padding=1)))
        out = bn(f"{head}.bn3", conv(f"{head}.conv3", out))
        shortcut = f"{head}.downsample"
        residual = bn(f"{shortcut}.1", conv(f"{shortcut}.0", z)) if f"{shortcut}.0.weight" in weights else z
        return F.relu(out + residual)

    carried = widened(0)
    for i in range(1, len(channels)):
        down = f"downsamp_modules.{i - 1}"
        carried = widened(i) + F.relu(bn(f"{down}.1", conv(f"{down}.0", carried, stride=2, padding=1)))
    pooled = F.relu(bn("final_layer.1", conv("final_layer.0", carried))).mean(dim=(2, 3))
    return F.linear(pooled, weights["classifier.weight"], weights["classifier.bias"])
