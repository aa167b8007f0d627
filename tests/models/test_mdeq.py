from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from deqcert.errors import SettingError
from deqcert.models import MDEQ, MDEQInjection
from deqcert.solvers import Anderson, Broyden, Picard

CONFIGS = Path(__file__).parents[2] / "configs"

TINY = {
    "channels": (4, 8, 12),
    "head_channels": (2, 3, 4),
    "final_channels": 7,
    "num_classes": 5,
    "image_size": 8,
    "expansion": 2,
    "num_groups": 4,
    "dropout": 0.3,
    "solver": Broyden(max_steps=6, tolerance=1e-3),
}


def tiny(seed: int = 0, train: bool = False, **changes: object) -> MDEQ:
    """A small model in double precision, no parameter or statistic at its neutral initial value."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MDEQ(**{**TINY, **changes}).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn_like(parameter) + (0.2 if parameter.dim() == 1 else 0))
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.2)
                    module.running_var.uniform_(0.5, 2)
    return model.train(train)


def images(count: int = 4, size: int = 8, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Parameter counts
#
# Counted by hand from the layers of the papers, C_i channels, h_i head channels, w_i = 4·h_i:
#   stem        3×3, 3×3 and (injection) 1×1 convolutions without bias, each with a BatchNorm of 2 per channel
#               27·C_0 + 2·C_0 | 9·C_0² + 2·C_0 | C_0² + 2·C_0
#   block       conv C→5C 45·C² (+ 5C lengths g) | GN 2·5C | conv 5C→C 45·C² (+ C lengths g) | GN 2C | GN 2C
#               = 90·C² + 20·C
#   fusion up   j → i < j: 1×1 C_j·C_i + GN 2·C_i
#   fusion down j → i > j: i−j−1 times (9·C_j² + 2·C_j), then 9·C_j·C_i + 2·C_i
#   post-fusion 1×1 C² + C lengths g, GN without affine
#   head block  C·h + 9·h² + h·w, inner BNs without affine, shortcut C·w + BN 2·w = 5·C·h + 13·h² + 8·h
#   head down   3×3 with bias w_i → w_{i+1} and BN: 9·w_i·w_{i+1} + 3·w_{i+1}
#   final       1×1 with bias w_n → f and BN: w_n·f + 3·f
#   classifier  f·classes + classes
#
# CIFAR SMALL, C = 8 16 32, h = 7 14 28, w = 28 56 112, f = 200, 10 classes
#   stem         216 + 16 | 576 + 16 | 64 + 16                                                    =        904
#   blocks       5 920 | 23 360 | 92 800                                                          =    122 080
#   fusion up    1→0 144 | 2→0 272 | 2→1 544                                                      =        960
#   fusion down  0→1 1 184 | 0→2 592 + 2 368 | 1→2 4 672                                          =      8 816
#   post-fusion  72 | 272 | 1 056                                                                 =      1 400
#   head blocks  973 | 3 780 | 14 896                                                             =     19 649
#   head down    14 280 | 56 784                                                                  =     71 064
#   final        22 400 + 600                                                                     =     23 000
#   classifier                                                                                    =      2 010
#                                                                                          total       249 883
#
# CIFAR LARGE, C = 32 64 128 256, h = 14 28 56 112, w = 56 112 224 448, f = 1680, 10 classes
#   stem         864 + 64 | 9 216 + 64 | 1 024 + 64                                               =     11 296
#   blocks       92 800 | 369 920 | 1 477 120 | 5 903 360                                         =  7 843 200
#   fusion up    1→0 2 112 | 2→0 4 160 | 3→0 8 256 | 2→1 8 320 | 3→1 16 512 | 3→2 33 024          =     72 384
#   fusion down  0→1 18 560 | 0→2 9 280 + 37 120 | 0→3 9 280 + 9 280 + 74 240 | 1→2 73 984
#                | 1→3 36 992 + 147 968 | 2→3 295 424                                             =    712 128
#   post-fusion  1 056 | 4 160 | 16 512 | 65 792                                                  =     87 520
#   head blocks  4 900 | 19 376 | 77 056 | 307 328                                                =    408 660
#   head down    56 784 | 226 464 | 904 512                                                       =  1 187 760
#   final        752 640 + 5 040                                                                  =    757 680
#   classifier                                                                                    =     16 810
#                                                                                          total    11 097 438
#
# ImageNet SMALL, C as CIFAR LARGE, h = 28 56 112 224, w = 112 224 448 896, f = 2048, 1000 classes
#   stem and cell as CIFAR LARGE (two of the same stem stages have stride 2)                      =  8 726 528
#   head blocks  14 896 | 59 136 | 235 648 | 940 800                                              =  1 250 480
#   head down    226 464 | 904 512 | 3 615 360                                                    =  4 746 336
#   final        1 835 008 + 6 144                                                                =  1 841 152
#   classifier                                                                                    =  2 049 000
#                                                                                          total    18 613 496

CIFAR_SMALL = {"channels": (8, 16, 32), "head_channels": (7, 14, 28), "final_channels": 200}
CIFAR_LARGE = {"channels": (32, 64, 128, 256), "head_channels": (14, 28, 56, 112), "final_channels": 1680}
IMAGENET_SMALL = {
    "channels": (32, 64, 128, 256),
    "head_channels": (28, 56, 112, 224),
    "final_channels": 2048,
    "num_classes": 1000,
    "image_size": 224,
    "downsample_times": 2,
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("settings", "stem", "blocks", "fusion", "post_fusion", "head", "total"),
    [
        (CIFAR_SMALL, 904, 122_080, 960 + 8_816, 1_400, 19_649 + 71_064 + 23_000 + 2_010, 249_883),
        (
            CIFAR_LARGE,
            11_296,
            7_843_200,
            72_384 + 712_128,
            87_520,
            408_660 + 1_187_760 + 757_680 + 16_810,
            11_097_438,
        ),
        (
            IMAGENET_SMALL,
            11_296,
            7_843_200,
            72_384 + 712_128,
            87_520,
            1_250_480 + 4_746_336 + 1_841_152 + 2_049_000,
            18_613_496,
        ),
    ],
    ids=["cifar-small", "cifar-large", "imagenet-small"],
)
def test_parameters_of_the_published_configurations(settings, stem, blocks, fusion, post_fusion, head, total):
    with torch.device("meta"):
        model = MDEQ(**settings)
    assert count(model.stem) == stem
    assert count(model.mdeq_cell.blocks) == blocks
    assert count(model.mdeq_cell.fusion) == fusion
    assert count(model.mdeq_cell.post_fusion) == post_fusion
    assert count(model.mdeq_head) == head
    assert count(model) == stem + blocks + fusion + post_fusion + head == total


def test_the_configuration_file_is_the_published_cifar_small():
    config = yaml.safe_load((CONFIGS / "cifar10" / "mdeq_small.yaml").read_text())
    arguments = dict(config["model"]["network"]["init_args"])
    solver = arguments.pop("solver")
    assert solver == {
        "class_path": "deqcert.solvers.Broyden",
        "init_args": {"max_steps": 8, "tolerance": 1e-3},
    }
    assert arguments["dropout"] == 0.2
    assert count(MDEQ(**arguments)) == 249_883


def test_affine_post_fusion_adds_two_parameters_per_channel():
    assert count(tiny(post_fusion_affine=True)) - count(tiny()) == 2 * (4 + 8 + 12)


# The layers, from the paper with functional calls only


class Literal:
    """The evaluation-mode network spelled out, with the parameters of a model."""

    def __init__(self, model: MDEQ) -> None:
        self.values = dict(model.state_dict())
        self.shapes = model.shapes
        self.groups = TINY["num_groups"]

    def conv(self, name: str, z: Tensor, stride: int = 1) -> Tensor:
        bias = self.values.get(f"{name}.bias")
        if f"{name}.weight" in self.values:
            weight = self.values[f"{name}.weight"]
        else:
            g = self.values[f"{name}.parametrizations.weight.original0"]
            v = self.values[f"{name}.parametrizations.weight.original1"]
            weight = g * v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return F.conv2d(z, weight, bias, stride, padding=weight.shape[-1] // 2)

    def group_norm(self, name: str, z: Tensor, groups: int | None = None) -> Tensor:
        affine = self.values.get(f"{name}.weight"), self.values.get(f"{name}.bias")
        return F.group_norm(z, groups or self.groups, *affine)

    def batch_norm(self, name: str, z: Tensor) -> Tensor:
        mean, variance = self.values[f"{name}.running_mean"], self.values[f"{name}.running_var"]
        affine = self.values.get(f"{name}.weight"), self.values.get(f"{name}.bias")
        return F.batch_norm(z, mean, variance, *affine)

    def stem(self, x: Tensor) -> Tensor:
        z = (x - torch.tensor([0.4914, 0.4822, 0.4465]).view(-1, 1, 1)) / torch.tensor([0.2023, 0.1994, 0.2010]).view(
            -1, 1, 1
        )
        for layer in (0, 3, 6):
            z = self.batch_norm(f"stem.{layer + 1}", self.conv(f"stem.{layer}", z)).relu()
        return z

    def block(self, i: int, z: Tensor, injection: Tensor | float) -> Tensor:
        name = f"mdeq_cell.blocks.{i}"
        out = self.group_norm(f"{name}.norm1", self.conv(f"{name}.conv1", z)).relu()
        out = self.group_norm(f"{name}.norm2", self.conv(f"{name}.conv2", out) + injection)
        return self.group_norm(f"{name}.norm3", (out + z).relu())

    def carry(self, source: int, target: int, z: Tensor) -> Tensor:
        name = f"mdeq_cell.fusion.{target}.{source}"
        if source > target:
            z = self.group_norm(f"{name}.1", self.conv(f"{name}.0", z))
            times = 2 ** (source - target)
            return z.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
        for stage in range(target - source):
            if stage > 0:
                z = z.relu()
            z = self.group_norm(f"{name}.{3 * stage + 1}", self.conv(f"{name}.{3 * stage}", z, stride=2))
        return z

    def cell(self, z: Tensor, features: Tensor) -> Tensor:
        branches, offset = [], 0
        for i, shape in enumerate(self.shapes):
            part = z[:, offset : offset + math.prod(shape)].reshape(-1, *shape)
            branches.append(self.block(i, part, features if i == 0 else 0.0))
            offset += math.prod(shape)
        fused = []
        for target in range(len(branches)):
            total = sum(self.carry(source, target, branch) for source, branch in enumerate(branches))
            out = self.conv(f"mdeq_cell.post_fusion.{target}.1", total.relu())
            fused.append(self.group_norm(f"mdeq_cell.post_fusion.{target}.2", out, self.groups // 2).flatten(1))
        return torch.cat(fused, dim=1)

    def head(self, z: Tensor) -> Tensor:
        carried, offset = None, 0
        for i, shape in enumerate(self.shapes):
            part = z[:, offset : offset + math.prod(shape)].reshape(-1, *shape)
            offset += math.prod(shape)
            name = f"mdeq_head.bottlenecks.{i}"
            out = part
            for layer in (0, 3, 6):
                out = self.batch_norm(f"{name}.body.{layer + 1}", self.conv(f"{name}.body.{layer}", out))
                out = out.relu() if layer < 6 else out
            out = (out + self.batch_norm(f"{name}.shortcut.1", self.conv(f"{name}.shortcut.0", part))).relu()
            if i > 0:
                down = f"mdeq_head.downsample.{i - 1}"
                out = out + self.batch_norm(f"{down}.1", self.conv(f"{down}.0", carried, stride=2)).relu()
            carried = out
        out = self.batch_norm("mdeq_head.final.1", self.conv("mdeq_head.final.0", carried)).relu()
        pooled = out.mean(dim=(2, 3))
        return F.linear(pooled, self.values["mdeq_head.classifier.weight"], self.values["mdeq_head.classifier.bias"])


@pytest.mark.parametrize("post_fusion_affine", [False, True])
def test_every_part_computes_the_published_layers(post_fusion_affine):
    # Head channels 2·4 ≠ 4, 3·4 ≠ 8 and 4·4 ≠ 12: every shortcut is a convolution.
    model = tiny(post_fusion_affine=post_fusion_affine)
    literal = Literal(model)
    with torch.no_grad():
        injection = model.inject(images())
        # float32 constants of the normalisation
        torch.testing.assert_close(injection.features, literal.stem(images()), rtol=1e-5, atol=1e-5)
        z = torch.randn(model.initial_state(injection).shape, dtype=torch.float64)
        torch.testing.assert_close(model.cell(z, injection), literal.cell(z, injection.features))
        torch.testing.assert_close(model.head(z), literal.head(z))
        assert model.head(z).std() > 1e-3


def test_weight_normalisation_of_block_and_post_fusion_convolutions_only():
    model = tiny()
    normalised = {name for name, module in model.named_modules() if is_parametrized(module, "weight")}
    expected = {f"mdeq_cell.blocks.{i}.{conv}" for i in range(3) for conv in ("conv1", "conv2")}
    expected |= {f"mdeq_cell.post_fusion.{i}.1" for i in range(3)}
    assert normalised == expected
    injection = model.inject(images())
    z = torch.randn(4, sum(map(math.prod, model.shapes)), dtype=torch.float64)
    with torch.no_grad():
        before = model.cell(z, injection)
        for name in normalised:
            g, v = (model.get_parameter(f"{name}.parametrizations.weight.original{i}") for i in (0, 1))
            assert g.shape == (v.shape[0], 1, 1, 1)  # dim 0
            v.mul_(torch.linspace(0.5, 7, len(v)).view(-1, 1, 1, 1))
        torch.testing.assert_close(model.cell(z, injection), before)


def test_convolutions_start_at_the_published_scale():
    torch.manual_seed(0)
    model = MDEQ()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not is_parametrized(module):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.35)
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


# Shapes


@pytest.mark.parametrize(
    ("changes", "shapes", "stem_convolutions"),
    [
        ({}, ((4, 8, 8), (8, 4, 4), (12, 2, 2)), 3),
        ({"downsample_times": 1}, ((4, 4, 4), (8, 2, 2), (12, 1, 1)), 3),
        (
            {"downsample_times": 3, "image_size": 32, "expansion": 1},
            ((4, 4, 4), (8, 2, 2), (12, 1, 1)),
            4,
        ),
        ({"channels": (4, 8), "head_channels": (2, 3)}, ((4, 8, 8), (8, 4, 4)), 2),
        ({"channels": (4, 8), "head_channels": (2, 3), "downsample_times": 2}, ((4, 2, 2), (8, 1, 1)), 3),
        ({"channels": (4,), "head_channels": (3,)}, ((4, 8, 8),), 2),
        ({"channels": (4,), "head_channels": (1,)}, ((4, 8, 8),), 2),
    ],
)
def test_shapes(changes, shapes, stem_convolutions):
    model = tiny(**changes)
    x = images(3, changes.get("image_size", 8))
    assert model.shapes == shapes
    assert sum(isinstance(module, nn.Conv2d) for module in model.stem) == stem_convolutions
    injection = model.inject(x)
    assert injection.features.shape == (3, *shapes[0])
    z = model.initial_state(injection)
    assert z.shape == (3, sum(map(math.prod, shapes)))
    assert (z == 0).all()
    assert model.cell(z, injection).shape == z.shape
    assert model.head(z).shape == (3, 5)
    assert model(x).shape == (3, 5)
    assert model(x).isfinite().all()


def test_a_single_branch_is_its_block_alone():
    model = tiny(channels=(8,), head_channels=(7,), final_channels=200, num_classes=10, expansion=5)
    # Stem without injection stage 824, block 5 920, head block 973, final 28·200 + 600, classifier 2 010.
    assert count(model) == 824 + 5_920 + 973 + 6_200 + 2_010
    injection = model.inject(images())
    z = torch.randn(4, 8 * 64, dtype=torch.float64)
    expected = Literal(model).block(0, z.view(4, 8, 8, 8), injection.features)
    torch.testing.assert_close(model.cell(z, injection), expected.flatten(1))
    point = model.solve(images(), Picard(max_steps=3))[1].value
    assert point.isfinite().all()


@pytest.mark.parametrize("channels", [(4,), (4, 8, 12)])
def test_every_parameter_receives_a_gradient(channels):
    model = tiny(channels=channels, head_channels=TINY["head_channels"][: len(channels)], train=True)
    x = images()
    injection = model.inject(x)
    z = torch.randn_like(model.initial_state(injection))
    model.head(model.cell(z, injection)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


# The DEQ contract


@pytest.mark.parametrize("solver", [Broyden(max_steps=6, tolerance=1e-3), Anderson(max_steps=3), Picard(max_steps=1)])
def test_forward_is_a_cold_start_a_full_solve_and_the_head(solver):
    model, x = tiny(solver=solver), images()
    logits = model(x)
    assert not logits.requires_grad
    with torch.no_grad():
        injection = model.inject(x)
        start = model.initial_state(injection)
        solution = solver.solve(lambda z: model.cell(z, injection), start)
        assert torch.equal(logits, model.head(solution.value))
        assert torch.equal(model.initial_state(injection), start)  # not written to


def test_solve_takes_another_solver_and_a_warm_start():
    model, x = tiny(), images()
    solver = Anderson(max_steps=2)
    start = torch.randn(4, sum(map(math.prod, model.shapes)), dtype=torch.float64)
    logits, solution = model.solve(x, solver, start)
    with torch.no_grad():
        injection = model.inject(x)
        expected = solver.solve(lambda z: model.cell(z, injection), start)
        assert torch.equal(solution.value, expected.value)
        assert torch.equal(logits, model.head(expected.value))
    assert not torch.equal(logits, model.solve(x, solver)[0])
    assert solution.evaluations == 8


def test_evaluation_rows_are_independent_of_their_batch_mates():
    model, x = tiny(), images(5)
    logits = model(x)
    order = [3, 0, 4, 1, 2]
    torch.testing.assert_close(model(x[order]), logits[order], rtol=0, atol=1e-9)
    for row in range(5):
        torch.testing.assert_close(model(x[row : row + 1])[0], logits[row], rtol=0, atol=1e-9)
    spoiled = x.clone()
    spoiled[2] = math.nan
    spoiled[3] *= 1e6
    torch.testing.assert_close(model(spoiled)[[0, 1, 4]], logits[[0, 1, 4]], rtol=0, atol=1e-9)


def test_evaluation_is_deterministic_and_changes_nothing():
    model, x = tiny(), images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(model(x), model(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Input normalisation


def test_normalisation_is_part_of_the_model():
    model = tiny(mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    plain = tiny(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    plain.load_state_dict(model.state_dict())
    x = images()
    mean = torch.tensor([0.1, 0.2, 0.3]).double().view(-1, 1, 1)
    std = torch.tensor([0.5, 1.0, 2.0]).double().view(-1, 1, 1)
    torch.testing.assert_close(model(x), plain((x - mean) / std))
    assert not torch.allclose(model(x), plain(x))


def test_grey_images():
    model = tiny(image_channels=1, mean=(0.5,), std=(0.25,))
    assert model(images()[:, :1]).shape == (4, 5)


# Dropout


def test_masks_are_drawn_once_per_injection():
    torch.manual_seed(0)
    model, x = tiny(train=True), images(64)
    injection = model.inject(x)
    assert [mask.shape for mask in injection.masks] == [(64, c, 1, 1) for c in (4, 8, 12)]
    drawn = torch.cat([mask.flatten() for mask in injection.masks])
    dropped = drawn == 0
    torch.testing.assert_close(drawn[~dropped], torch.full_like(drawn[~dropped], 1 / 0.7))
    assert dropped.double().mean().item() == pytest.approx(0.3, abs=4 * (0.21 / len(drawn)) ** 0.5)
    assert not torch.equal(injection.masks[1][0], injection.masks[1][1])  # a mask per sample

    z = torch.randn_like(model.initial_state(injection))
    assert torch.equal(model.cell(z, injection), model.cell(z, injection))
    again = model.inject(x)
    assert not torch.equal(again.masks[2], injection.masks[2])
    assert not torch.equal(model.cell(z, again), model.cell(z, injection))


@pytest.mark.parametrize(("train", "dropout"), [(False, 0.3), (True, 0.0)])
def test_no_masks_without_dropout_or_training(train, dropout):
    model = tiny(train=train, dropout=dropout)
    state = torch.random.get_rng_state()
    assert model.inject(images()).masks is None
    assert torch.equal(torch.random.get_rng_state(), state)


def test_masks_multiply_the_second_convolution_before_the_injection():
    model = tiny(train=True)
    with torch.no_grad():
        features = model.inject(images()).features
        z = torch.randn(4, sum(map(math.prod, model.shapes)), dtype=torch.float64)
        ones = tuple(torch.ones(4, c, 1, 1, dtype=torch.float64) for c, _, _ in model.shapes)
        assert torch.equal(model.cell(z, MDEQInjection(features, ones)), model.cell(z, MDEQInjection(features, None)))
        masks = tuple(torch.rand_like(mask) for mask in ones)
        masked = model.cell(z, MDEQInjection(features, masks))
        for row in range(4):  # the lengths g of conv2 do what the mask of that row does
            scaled = tiny(train=True)
            for block, mask in zip(scaled.mdeq_cell.blocks, masks, strict=True):
                block.conv2.parametrizations.weight.original0.mul_(mask[row].view(-1, 1, 1, 1))
            one = slice(row, row + 1)
            torch.testing.assert_close(scaled.cell(z[one], MDEQInjection(features[one], None)), masked[one])


# Checkpoints


def test_state_dict_loads_with_weights_only():
    model, x = tiny(), images()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = tiny(seed=9)
    assert not torch.allclose(other(x), model(x))
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x), model(x))


# Settings


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("channels", {"channels": ()}),
        ("channels", {"channels": (4, 0, 12)}),
        ("head_channels", {"head_channels": (2, 3)}),
        ("head_channels", {"head_channels": (2, 0, 4)}),
        ("final_channels", {"final_channels": 0}),
        ("num_classes", {"num_classes": 1}),
        ("mean", {"mean": (0.5,)}),
        ("mean", {"std": (0.5, 0.5)}),
        ("mean", {"image_channels": 1}),
        ("std", {"std": (0.2, 0.0, 0.2)}),
        ("downsample_times", {"downsample_times": -1}),
        ("expansion", {"expansion": 0}),
        ("num_groups", {"num_groups": 0}),
        ("num_groups", {"num_groups": 3}),
        ("num_groups", {"num_groups": 8}),
        ("dropout", {"dropout": -0.1}),
        ("dropout", {"dropout": 1.0}),
        ("dropout", {"dropout": math.nan}),
        ("image_size", {"image_size": 10}),
        ("image_size", {"image_size": 2}),
        ("image_size", {"image_size": 0}),
        ("image_size", {"downsample_times": 2}),
    ],
)
def test_settings_out_of_range_are_named(field, changes):
    with pytest.raises(SettingError, match=rf"^{field} = "):
        MDEQ(**{**TINY, **changes})
