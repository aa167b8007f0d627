import pytest
import torch
from public_mdeq import logits, random_weights

from deqcert.errors import CheckpointError
from deqcert.interchange import convert_weights
from deqcert.models import MDEQ, CifarResNet
from deqcert.solvers import Picard

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
SHAPES = {
    "three branches": ((8, 16, 32), (7, 14, 28), 0),
    "two branches, no stage0": ((8, 16), (7, 14), 0),
    "four branches": ((8, 8, 16, 16), (2, 3, 4, 5), 0),
    "one halving": ((8, 16), (2, 3), 1),
    "two halvings": ((8, 16, 16), (2, 3, 4), 2),
    "three halvings": ((8, 16), (2, 4), 3),
}


def network(channels=(8, 16), head_channels=(7, 14), downsample_times=0, **settings):
    settings = {"final_channels": 20, "num_classes": 5, "image_size": 32, "dropout": 0.0} | settings
    return MDEQ(
        channels, head_channels, downsample_times=downsample_times, solver=Picard(max_steps=3), **settings
    ).eval()


def public(channels=(8, 16), head_channels=(7, 14), downsample_times=0, **settings):
    return random_weights(channels, head_channels, 20, 5, downsample_times, **settings)


def converted(given, net, shown="file"):
    conversion = convert_weights(given, net, shown)
    net.load_state_dict(conversion.weights)
    return conversion


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_public_mdeq_answers_the_same(shape):
    channels, head_channels, downsample_times = shape
    net, weights = network(channels, head_channels, downsample_times), public(channels, head_channels, downsample_times)
    conversion = converted(weights, net)
    assert (conversion.form, conversion.ignored, conversion.supplied) == ("public MDEQ", {}, {})
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = logits(weights, x, channels, downsample_times, iterations=3, mean=MEAN, std=STD)
    given = net(x)
    assert expected.std() > 0.1
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_affine_norms_after_the_fusion():
    weights = public(affine=True)
    net = network(post_fusion_affine=True)
    converted(weights, net)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(net(x), logits(weights, x, (8, 16), 0, 3, MEAN, STD), rtol=1e-4, atol=1e-3)


def test_a_single_branch_has_no_use_for_its_fusion():
    weights = public((8,), (7,))
    net = network((8,), (7,))
    conversion = converted(weights, net)
    assert set(conversion.ignored.values()) == {"a single branch is not fused"}
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(net(x), logits(weights, x, (8,), 0, 3, MEAN, STD), rtol=1e-4, atol=1e-3)


def test_weights_without_weight_normalization_are_split():
    weights = public()
    plain = dict(weights)
    lengths = [name for name in weights if name.endswith(".weight_g")]
    for length in lengths:
        stem = length.removesuffix("_g")
        direction = plain.pop(f"{stem}_v")
        plain[stem] = plain.pop(length) * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    net, x = network(), torch.rand(2, 3, 32, 32)
    supplied = converted(plain, net).supplied
    assert supplied == dict.fromkeys(lengths, "the length of a weight that was saved without weight normalization")
    torch.testing.assert_close(net(x), logits(weights, x, (8, 16), 0, 3, MEAN, STD), rtol=1e-4, atol=1e-3)


def test_a_filter_of_zeros_stays_one():
    weights = public()
    conv = "fullstage.branches.1.blocks.0.conv2.weight"
    weights[conv] = weights.pop(f"{conv}_v")
    del weights[f"{conv}_g"]
    weights[conv][3] = 0
    net = network()
    converted(weights, net)
    given = net.mdeq_cell.blocks[1].conv2.weight
    torch.testing.assert_close(given, weights[conv])
    assert net(torch.rand(1, 3, 32, 32)).isfinite().all()


def renamed(weights, *names):
    """Later versions of torch name weight normalization differently."""
    originals = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    chosen = {name for name in weights if name.endswith(names or tuple(originals))}
    return {
        name[: -len("weight_g")] + originals[name[-len("weight_g") :]] if name in chosen else name: tensor
        for name, tensor in weights.items()
    }


@pytest.mark.parametrize("names", [(), ("weight_g",)], ids=["all", "half of them"])
def test_both_ways_to_save_weight_normalization_are_read(names):
    older, newer = (converted(weights, network()).weights for weights in (public(), renamed(public(), *names)))
    assert renamed(public(), *names).keys() != public().keys()
    assert all(torch.equal(older[name], newer[name]) for name in older)


def of_the_first_mdeq(weights=None):
    """It saves its cell four times: as fullstage, as a copy without weight normalization, and both inside of deq."""
    weights = dict(public() if weights is None else weights)
    cell = {name.removeprefix("fullstage."): t for name, t in weights.items() if name.startswith("fullstage.")}
    stale = {
        name.removesuffix("_v"): torch.zeros_like(tensor) for name, tensor in cell.items() if not name.endswith("_g")
    }
    for place, part in (("deq.func", cell), ("fullstage_copy", stale), ("deq.func_copy", stale)):
        weights |= {f"{place}.{name}": tensor.clone() for name, tensor in part.items()}
    return weights


def test_what_the_first_mdeq_saves_again_is_left_out():
    weights = of_the_first_mdeq()
    conversion, plain = converted(weights, network()), converted(public(), network())
    assert all(torch.equal(conversion.weights[name], tensor) for name, tensor in plain.weights.items())
    assert conversion.ignored.keys() == weights.keys() - public().keys()
    conv = "branches.0.blocks.0.conv1.weight"
    assert conversion.ignored[f"deq.func.{conv}_g"] == "a weight of fullstage again"
    assert conversion.ignored[f"fullstage_copy.{conv}"] == "a copy for the backward pass of training"
    assert conversion.ignored[f"deq.func_copy.{conv}"] == "a copy for the backward pass of training"


def test_the_tiny_mdeq_of_2020_answers_the_same():
    """It has affine norms after the fusion and its ``stage0``, as every MDEQ with three branches."""
    channels, head_channels = (8, 16, 32), (4, 8, 16)
    weights = random_weights(channels, head_channels, 128, 10, 0, affine=True)
    assert "stage0.0.weight" in weights
    net = network(channels, head_channels, final_channels=128, num_classes=10, post_fusion_affine=True)
    converted(of_the_first_mdeq(weights), net)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = logits(weights, x, channels, 0, 3, MEAN, STD)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_two_different_cells_are_refused():
    weights = of_the_first_mdeq()
    weights["deq.func.branches.0.blocks.0.gn1.bias"] += 1
    with pytest.raises(CheckpointError, match=r"unexpected deq\.func\.branches\.0\.blocks\.0\.gn1\.bias$"):
        convert_weights(weights, network(), "file")


PREFIXES = ["module.", "network.", "module.network.", "_orig_mod.", "model._orig_mod.", "net.", "1.", "anything."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers_do_not_matter(prefix):
    plain, wrapped = (
        converted({f"{before}{name}": tensor for name, tensor in public().items()}, network()).weights
        for before in ("", prefix)
    )
    assert plain.keys() == wrapped.keys()
    assert all(torch.equal(plain[name], wrapped[name]) for name in plain)


@pytest.mark.parametrize("prefix", PREFIXES[:-2])
def test_prefixes_do_not_matter_for_other_networks_whose_own_names_begin_alike(prefix):
    net = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"net": torch.nn.Linear(2, 3)})})
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert set(weights) == {"model.net.weight", "model.net.bias"}
    for before in ("", prefix):
        found = converted({f"{before}{name}": tensor for name, tensor in weights.items()}, net)
        assert found.weights.keys() == weights.keys()


def test_averaged_weights_are_read_without_their_counter():
    averaged = {f"module.{name}": tensor for name, tensor in public().items()} | {"n_averaged": torch.tensor(3)}
    assert converted(averaged, network()).ignored == {"n_averaged": "a counter of averaged weights"}


def test_a_prefix_before_some_names_only_is_refused():
    half = {(f"net.{name}" if name < "f" else name): tensor for name, tensor in public().items()}
    with pytest.raises(CheckpointError, match=r"missing classifier\.bias.* unexpected net\.classifier\.bias"):
        convert_weights(half, network(), "file")


def test_what_is_redundant_is_named_with_the_reason():
    weights = public()
    conv = "fullstage.branches.0.blocks.0.conv1"
    weights[f"{conv}.weight"] = torch.zeros(40, 8, 3, 3)
    weights["iodrop.num_batches_tracked"] = torch.tensor(1)
    assert converted(weights, network()).ignored == {
        f"{conv}.weight": "computed from weight_g and weight_v",
        "iodrop.num_batches_tracked": "a counter of batches that the network does not have",
    }


def test_counters_of_batches_may_be_missing():
    weights = {name: tensor for name, tensor in public().items() if not name.endswith("num_batches_tracked")}
    conversion = converted(weights, network())
    assert conversion.weights["stem.1.num_batches_tracked"] == 0
    counters = public().keys() - weights.keys()
    assert conversion.supplied == dict.fromkeys(counters, "zero: a counter of batches, of use in training only")


def without(*names):
    return {name: tensor for name, tensor in public().items() if name not in names}


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        (lambda: without("classifier.weight"), "missing classifier.weight"),
        (lambda: {**public(), "classifier2.weight": torch.ones(1)}, "unexpected classifier2.weight"),
        (
            lambda: {**public(), "classifier.bias": torch.ones(6)},
            r"classifier.bias has shape \(6,\), the model needs \(5,\)",
        ),
        (lambda: {**public(), "classifier.bias": torch.full((5,), torch.nan)}, "classifier.bias"),
        (lambda: {**public(), "classifier.bias": torch.ones(5, dtype=torch.int64)}, "classifier.bias is torch.int64"),
        (lambda: public((8, 16, 32), (7, 14, 28)), "unexpected downsamp_modules.1.0.bias"),
        (lambda: public(affine=True), "unexpected fullstage.post_fuse_layers.0.gnorm.bias"),
        (
            lambda: without("fullstage.branches.0.blocks.0.conv1.weight_v"),
            "missing fullstage.branches.0.blocks.0.conv1.weight_v",
        ),
        # Half of a normalized weight beside a plain one must not be completed from it.
        (
            lambda: {
                **without("fullstage.branches.0.blocks.0.conv1.weight_v"),
                "fullstage.branches.0.blocks.0.conv1.weight": torch.ones(40, 8, 3, 3),
            },
            r"missing fullstage.branches.0.blocks.0.conv1.weight_v; unexpected fullstage.branches.0.blocks.0.conv1.w",
        ),
        (
            lambda: {
                **without(
                    "fullstage.branches.0.blocks.0.conv1.weight_v", "fullstage.branches.0.blocks.0.conv1.weight_g"
                ),
                "fullstage.branches.0.blocks.0.conv1.weight": torch.ones(40, 8, 3, 3, dtype=torch.int64),
            },
            "missing .*conv1.weight_g; missing .*conv1.weight_v; unexpected .*conv1.weight$",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name_in_the_file(weights, complaint):
    with pytest.raises(CheckpointError, match=f"^file: .*{complaint}"):
        convert_weights(weights(), network(), "file")


def test_all_that_does_not_fit_is_reported_together():
    weights = without("classifier.weight") | {"classifier.bias": torch.ones(6), "more\x1b[31m": torch.ones(1)}
    weights["stage9.weight"] = torch.ones(1)
    weights["final_layer.0.bias"] = torch.full((20,), torch.inf)
    weights["final_layer.1.bias"] = torch.ones(20, dtype=torch.bool)
    with pytest.raises(CheckpointError) as refused:
        convert_weights(weights, network(), "file")
    assert str(refused.value) == (
        "file: the checkpoint is of another architecture than the model: missing classifier.weight; "
        "classifier.bias has shape (6,), the model needs (5,); "
        "final_layer.1.bias is torch.bool, the model needs torch.float32; "
        "unexpected more\\x1b[31m; unexpected stage9.weight. "
        "weights must be finite; NaN or infinite are some of final_layer.0.bias"
    )


def test_the_wrong_kind_of_network_is_refused():
    with pytest.raises(CheckpointError, match="file: is of a public MDEQ, the configured network is a CifarResNet"):
        convert_weights(public(), CifarResNet(depth=8), "file")
    with pytest.raises(
        CheckpointError, match=r"file: has no weight of a MDEQ by any known name, e\.g\. 'conv1\.weight'"
    ):
        convert_weights({"conv1.weight": torch.ones(1)}, network(), "file")


@pytest.mark.parametrize("before", ["", "module.", "1.", "1.module.", "1._orig_mod.", "net.1.", "model.", "_orig_mod."])
def test_published_resnets_are_found_whatever_stands_before_their_names(before):
    torch.manual_seed(0)
    net = CifarResNet(depth=8).eval()
    weights = {f"{before}{name}": tensor.clone() for name, tensor in net.state_dict().items()}
    other = CifarResNet(depth=8).eval()
    x = torch.rand(2, 3, 32, 32)
    assert not torch.allclose(other(x), net(x))
    converted(weights, other)
    assert torch.equal(other(x), net(x))


def test_a_saved_normalization_must_be_the_network_s():
    net = CifarResNet(depth=8)
    weights = {f"1.{name}": tensor for name, tensor in net.state_dict().items()}
    weights |= {"0.means": torch.tensor(MEAN), "0.sds": torch.tensor(STD)}
    conversion = converted(weights, net)
    assert set(conversion.ignored) == {"0.means", "0.sds"}
    assert conversion.on_trust == {"image_size": 32}
    weights["0.sds"] = torch.tensor([0.5, 0.5, 0.5])
    with pytest.raises(CheckpointError, match=r"file: 0.sds = \[0.5, 0.5, 0.5\], but the network has \[0.20"):
        convert_weights(weights, net, "file")


def test_what_a_file_does_not_show_is_taken_on_trust_by_name():
    net = CifarResNet(depth=8, mean=(0, 0, 0), std=(1, 1, 1))
    assert converted(net.state_dict(), net).on_trust == {"mean": [0, 0, 0], "std": [1, 1, 1], "image_size": 32}
    found = converted(public(), network()).on_trust
    assert found == {
        "mean": list(MEAN),
        "std": list(STD),
        "image_size": 32,
        "downsample_times": 0,
        "num_groups": 8,
    }


def test_networks_that_do_not_state_their_settings_are_taken_on_trust(threshold_deq):
    net = threshold_deq()
    net.register_buffer("scale", torch.ones(1))
    assert converted(net.state_dict(), net).on_trust is None
    net.architecture = {"rate": 0.5}
    assert converted(net.state_dict(), net).on_trust == {"rate": 0.5}


def test_two_names_for_one_weight_are_refused():
    net = CifarResNet(depth=8)
    weights = {f"1.{name}": tensor for name, tensor in net.state_dict().items()}
    weights["1.module.fc.bias"] = weights["1.fc.bias"]
    with pytest.raises(CheckpointError, match=r"fc\.bias comes twice"):
        convert_weights(weights, net, "file")


def test_two_names_for_one_weight_of_an_mdeq_are_refused():
    weights = public()
    conv = "fullstage.branches.0.blocks.0.conv1"
    weights[f"{conv}.parametrizations.weight.original0"] = weights[f"{conv}.weight_g"]
    with pytest.raises(CheckpointError, match=rf"file: {conv}\.weight_g comes twice"):
        convert_weights(weights, network(), "file")


def test_our_own_names_are_known():
    torch.manual_seed(0)
    source, target = network(), network()
    conversion = converted(source.state_dict(), target)
    assert conversion.form == "our own names"
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in conversion.weights.items())
