"""The MDEQ for evaluation: the same function, folded and in another memory order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deqcert.models import DEQ, MDEQ, compile_deq
from deqcert.models.folding import ChannelsLastGroupNorm
from deqcert.solvers import Anderson, Picard

TINY = {
    "channels": (4, 8, 12), "head_channels": (2, 3, 4), "final_channels": 7, "num_classes": 5, "image_size": 8,
    "expansion": 2, "num_groups": 4,
}  # fmt: skip
SETTINGS: list[dict[str, Any]] = [
    TINY,
    TINY | {"post_fusion_affine": True},
    TINY | {"channels": (8,), "head_channels": (2,)},  # the shortcut of the head is the identity, nothing is fused
    TINY | {"channels": (4, 8), "head_channels": (2, 3), "downsample_times": 1},
    TINY | {"downsample_times": 3, "image_size": 32},
]
SMALL: dict[str, Any] = {}


def network(dtype: torch.dtype = torch.float32, **settings: Any) -> MDEQ:
    """A network none of whose parameters or statistics has its neutral initial value."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MDEQ(**settings).to(dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "original" not in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.2)
                    module.running_var.uniform_(0.5, 2)
    return model.eval()


def images(model: MDEQ, count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = model.image_size
    return torch.rand(count, 3, size, size, generator=generator, dtype=torch.float64).to(model.mean.dtype)


def reordered(state: Tensor, model: MDEQ) -> Tensor:
    """Bring a state of the plain network into the order of the folded one."""
    parts = torch.split(state, [c * h * w for c, h, w in model.shapes], dim=1)
    moved = [part.view(-1, *shape).permute(0, 2, 3, 1) for part, shape in zip(parts, model.shapes, strict=True)]
    return torch.cat([part.flatten(1) for part in moved], dim=1)


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_part_is_the_same_function_in_double_precision(settings):
    model = network(torch.float64, **settings)
    twin = model.for_inference()
    x = images(model)
    with torch.no_grad():
        plain, folded = model.inject(x), twin.inject(x)
        torch.testing.assert_close(folded.features.contiguous(), plain.features)
        state = torch.randn(len(x), sum(c * h * w for c, h, w in model.shapes), dtype=torch.float64)
        torch.testing.assert_close(
            twin.cell(reordered(state, model), folded), reordered(model.cell(state, plain), model)
        )
        torch.testing.assert_close(twin.head(reordered(state, model)), model.head(state))
    assert twin.initial_state(folded).shape == state.shape


@pytest.mark.parametrize("settings", [TINY, SMALL])
@pytest.mark.parametrize("warm", [False, True])
def test_logits_after_thirty_steps_from_the_same_start(settings, warm):
    model = network(**settings)
    x = images(model)
    start = None
    if warm:
        start = model.solve(images(model) + 0.1, Anderson(max_steps=5))[1].value
    expected, _ = model.solve(x, Anderson(max_steps=30), start)
    given, _ = model.for_inference().solve(
        x, Anderson(max_steps=30), None if start is None else reordered(start, model)
    )
    assert expected.std() > 1e-3
    assert (given - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_plain_network_is_left_alone():
    model = network(**TINY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    strides = {name: value.stride() for name, value in model.state_dict().items()}
    x = images(model)
    expected = model(x)
    twin = model.for_inference()
    assert twin.for_inference() is twin
    assert not any(module.training for module in twin.modules())
    assert not any(isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)) for module in twin.modules())
    assert not any(hasattr(module, "parametrizations") for module in twin.modules())
    assert torch.equal(model(x), expected)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) and after[name].stride() == strides[name]
               for name, value in before.items())  # fmt: skip
    second = model.for_inference()  # folding once does not spoil folding again
    assert torch.equal(second(x), twin(x))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("groups", "channels"), [(8, 8), (4, 12), (1, 6)])
def test_group_norm_by_sums(affine, groups, channels):
    norm = nn.GroupNorm(groups, channels, affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = (3 + 2 * torch.randn(5, channels, 4, 6)).to(memory_format=torch.channels_last)
    given = ChannelsLastGroupNorm(norm, x)(x)
    torch.testing.assert_close(given, norm(x), rtol=1e-4, atol=1e-5)
    assert given.is_contiguous(memory_format=torch.channels_last)
    low = ChannelsLastGroupNorm(norm, x)(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), norm(x.bfloat16().float()), rtol=2e-2, atol=2e-2)


def test_autocast_does_not_round_the_sums():
    norm = nn.GroupNorm(4, 8)
    x = (30 + torch.randn(5, 8, 16, 16)).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        given = ChannelsLastGroupNorm(norm, x)(x)
    torch.testing.assert_close(given, norm(x), rtol=1e-2, atol=1e-2)


def test_group_norm_of_constants_and_of_nan():
    norm = nn.GroupNorm(2, 4)
    x = torch.full((2, 4, 3, 3), 5.0)
    x[1, 0, 0, 0] = torch.nan
    given = ChannelsLastGroupNorm(norm, x)(x.to(memory_format=torch.channels_last))
    assert given[0].abs().max() < 1e-2
    assert given[1, :2].isnan().all()  # a bad value is not hidden, and stays in its row


class Shared(DEQ):
    """z = gain · z + u, where the gain is one row for all: an injection that cannot be taken row by row."""

    def __init__(self) -> None:
        super().__init__(Picard(max_steps=60))
        self.sizes: list[int] = []
        self.eval()

    def inject(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1).mean(dim=1, keepdim=True), torch.tensor([0.5])

    def initial_state(self, injection: tuple[Tensor, Tensor]) -> Tensor:
        return torch.zeros_like(injection[0])

    def cell(self, z: Tensor, injection: tuple[Tensor, Tensor]) -> Tensor:
        self.sizes.append(len(z))
        return injection[1] * z + injection[0]

    def head(self, z: Tensor) -> Tensor:
        return torch.cat([z, -z], dim=1)


def test_rows_leave_only_where_the_injection_is_by_rows():
    x = torch.linspace(0, 1, 32).view(32, 1, 1, 1).clone()
    x[:20] = 0
    deq = Shared()
    _, solution = deq.solve(x, Picard(max_steps=60, tolerance=1e-5))
    assert set(deq.sizes) == {32}
    torch.testing.assert_close(solution.value, 2 * x.view(32, 1), rtol=1e-4, atol=1e-6)

    model = network(**TINY)
    sizes = []
    model.mdeq_cell.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[1])))
    noisy = images(model, 32)
    noisy[16:] = noisy[:1]
    _, solution = model.solve(noisy, Anderson(max_steps=60, tolerance=1e-4))
    assert solution.evaluations == sum(sizes)


CONTRACT = sorted(name for name in vars(DEQ) if not name.startswith("_"))


def overriding(kind: type[DEQ], called: list[str]) -> type[DEQ]:
    """Return a class that overrides every part of the contract by itself, noting each use."""

    def noting(name: str) -> Any:
        inherited = getattr(kind, name)
        if isinstance(inherited, property):
            return property(lambda self: [called.append(name), inherited.fget(self)][1])
        return lambda self, *args, **kwargs: [called.append(name), inherited(self, *args, **kwargs)][1]

    return type("Own", (kind,), {name: noting(name) for name in CONTRACT} | {"own": lambda self: self.mine})


@pytest.mark.parametrize("twin_of", [lambda model: model.for_inference(), compile_deq], ids=["folded", "compiled"])
def test_no_part_of_the_contract_that_a_user_overrides_is_lost(twin_of, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    assert {"inject", "initial_state", "anchor", "start_kind", "start_sigma", "start_state", "cell", "head", "solve",
            "forward", "for_inference"} == set(CONTRACT)  # fmt: skip
    called: list[str] = []
    model = overriding(MDEQ, called)(**TINY, start="mean").eval()
    model.mine = object()
    model.start.sigma.fill_(0.25)
    twin = twin_of(model)
    assert twin is not model
    assert type(twin) is type(model)
    x = images(model)
    expected = model(x), model.solve(x, Picard(max_steps=2), start="anchor")[0]
    called.clear()
    assert (twin.start_kind, twin.start_sigma, twin.own()) == ("mean", 0.25, model.mine)
    assert twin.for_inference().mine is model.mine
    assert (twin.solver, twin.num_classes, twin.image_channels) == (model.solver, 5, 3)
    assert twin.architecture == model.architecture
    given = twin(x), twin.solve(x, Picard(max_steps=2), start="anchor")[0]
    torch.testing.assert_close(given, expected)
    assert set(CONTRACT) == set(called)


def test_the_default_is_the_network_itself():
    deq = Shared()
    assert deq.for_inference() is deq


@pytest.mark.slow
def test_a_compiled_network_is_the_same_function():
    model = network(**TINY).for_inference()
    compiled = compile_deq(model)
    for count in (6, 3, 6):
        x = torch.rand(count, 3, 8, 8)
        expected, a = model.solve(x, Anderson(max_steps=12, tolerance=1e-3))
        given, b = compiled.solve(x, Anderson(max_steps=12, tolerance=1e-3))
        assert torch.equal(a.steps, b.steps)
        assert (given - expected).abs().max() <= 1e-4 * expected.abs().max()
