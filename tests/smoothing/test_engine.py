"""How copies are spread over launches, threads and images is nothing that votes may depend on."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from certification_runs import shipped_network
from torch import nn

from deqcert.data import Digits
from deqcert.errors import SettingError
from deqcert.models import MDEQ
from deqcert.smoothing import Engine, Execution, Serialized, Standard
from deqcert.solvers import Anderson, Picard
from deqcert.statistics import AdaptiveAudit, FixedAudit

SETTINGS = {"sigma": 0.5, "n0": 10, "n": 60, "batch_size": 16}
STRATEGIES = [
    Standard(**SETTINGS),
    Serialized(**SETTINGS, audit=FixedAudit(40)),
    Serialized(**SETTINGS, audit=FixedAudit(40), start="first"),
    Serialized(**SETTINGS, audit=FixedAudit(40), start="clean", solver=Picard(max_steps=1)),
    Serialized(**SETTINGS, audit=AdaptiveAudit(radius_loss=0.2, alpha=0.05)),
]
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=range(len(STRATEGIES)))


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network():
    return shipped_network()


def digits():
    data = Digits(max_examples=5)
    data.setup("predict")
    images, labels, indices = zip(*data.certification_set(), strict=True)
    return torch.stack(images), list(labels), list(indices)


IMAGES, LABELS, INDICES = digits()


def measurements(votes):
    """Everything that is counted; seconds and residuals depend on more."""
    return [json.dumps(each._replace(seconds=0.0, residual=0.0).to_json()) for each in votes]


def vote(strategy, network, images=1):
    engine = strategy.engine(network, IMAGES[0])
    groups = [slice(first, first + images) for first in range(0, 5, images)]
    return [v for g in groups for v in strategy.vote_group(engine, IMAGES[g], INDICES[g], LABELS[g])]


@each_strategy
def test_votes_do_not_depend_on_images_side_by_side(strategy, network):
    expected = vote(strategy, network)
    assert len({str(each.estimation) for each in expected}) > 1
    assert [(each.index, each.label) for each in expected] == list(zip(INDICES, LABELS, strict=True))
    for images in (2, 5):
        given = vote(strategy, network, images)
        assert measurements(given) == measurements(expected)
        for each, other in zip(given, expected, strict=True):
            each.validate()
            assert each.residual == pytest.approx(other.residual, rel=1e-3)


@each_strategy
@pytest.mark.parametrize("rows", [3, 16, 1000])
def test_votes_do_not_depend_on_the_size_of_launches(strategy, network, rows):
    expected = vote(strategy, network)
    changed = dataclasses.replace(strategy, execution=Execution(rows=rows))
    assert measurements(vote(changed, network)) == measurements(expected)
    assert measurements(vote(changed, network, images=3)) == measurements(expected)


@each_strategy
def test_votes_do_not_depend_on_threads(strategy, network, two_threads):
    strategy = dataclasses.replace(strategy, execution=Execution(rows=5))
    torch.set_num_threads(1)
    expected = vote(strategy, network)
    torch.set_num_threads(2)
    assert measurements(vote(strategy, network)) == measurements(expected)
    assert measurements(vote(strategy, network, images=4)) == measurements(expected)
    assert torch.get_num_threads() == 2  # the engine's threads have one core each, others keep theirs


def test_a_failure_in_a_thread_is_not_lost(threshold_deq, two_threads):
    class Failing(threshold_deq):
        def head(self, z):
            if len(z) == 4:
                raise RuntimeError("broken head")
            return super().head(z)

    strategy = Standard(**SETTINGS, execution=Execution(rows=6))
    with pytest.raises(RuntimeError, match="broken head"):
        strategy.vote(Failing(), IMAGES[0], 0, 0)  # 10 = 6 + 4 selection copies


def recording(threshold_deq):
    class Recording(threshold_deq):
        """Notes the precision of each evaluation, and whether a graph would be built."""

        def __init__(self):
            super().__init__()
            self.seen = []

        def solve(self, x, solver, *arguments, **settings):
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
            self.seen.append((solver.max_steps, dtype, torch.is_grad_enabled()))
            return super().solve(x, solver, *arguments, **settings)

    return Recording()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("outer", [None, torch.bfloat16])
@pytest.mark.parametrize("precision", [None, "bfloat16", "float16"])
def test_only_cheap_labels_have_a_lower_precision(threshold_deq, two_threads, threads, outer, precision):
    torch.set_num_threads(threads)
    strategy = Serialized(
        **SETTINGS,
        precision=precision,
        audit=FixedAudit(40),
        reference=Picard(max_steps=21),
        execution=Execution(rows=5),
    )
    classifier = recording(threshold_deq)
    with torch.autocast("cpu", outer or torch.bfloat16, enabled=outer is not None):
        engine = strategy.engine(classifier, IMAGES[0])
        classifier.seen.clear()  # of the engine's own checks
        strategy.vote_group(engine, IMAGES[:1], [0], [0])
    run = outer or torch.float32
    fast = run if precision is None else getattr(torch, precision)
    assert {(steps, dtype) for steps, dtype, _ in classifier.seen} == {(10, fast), (3, fast), (21, run)}
    assert not any(gradient for *_, gradient in classifier.seen)


def test_audited_copies_of_several_images_share_launches(threshold_deq):
    strategy = Serialized(**SETTINGS, audit=FixedAudit(5), reference=Picard(max_steps=21))
    engine = strategy.engine(threshold_deq(threshold=-9.0), IMAGES[0])
    batches = []
    label = engine.label
    engine.label = lambda x, solver, *rest, **more: (
        batches.append((solver.max_steps, len(x))) or label(x, solver, *rest, **more)
    )
    votes = strategy.vote_group(engine, IMAGES, INDICES, LABELS)
    assert [each.audited for each in votes] == [5] * 5
    assert [size for steps, size in batches if steps == 21] == [25]


def test_mismatches_belong_to_their_image(threshold_deq):
    """Y depends on the threshold, S does not: one step from the clean image, whose mean differs from image to image."""
    images = torch.stack([torch.full((1, 8, 8), level) for level in (0.2, 0.5, 0.8)])
    strategy = Serialized(
        sigma=3.0,
        n0=30,
        n=200,
        batch_size=16,
        solver=Picard(max_steps=1),
        start="clean",
        reference=Picard(max_steps=40),
        audit=FixedAudit(200),
    )
    classifier = threshold_deq(0.9)
    alone = [strategy.vote(classifier, image, index, 0) for index, image in enumerate(images)]
    together = strategy.vote_group(strategy.engine(classifier, images[0]), images, range(3), [0] * 3)
    assert measurements(together) == measurements(alone)
    assert len({each.mismatches for each in alone}) > 1


def test_launches_are_of_equal_size_and_as_large_as_documented(network, threshold_deq):
    rows = {width: Engine(network, Execution(), IMAGES[0], width).rows for width in (1, 100, 400, 4000)}
    state = 8 * 8 * 8 + 16 * 4 * 4  # floats
    fitting = 3 * 2**20 // (4 * state)
    assert fitting == 1024
    assert rows == {1: 1, 100: 100, 400: 400, 4000: 1000}
    assert Engine(MDEQ().eval(), Execution(), torch.rand(3, 32, 32), 400).rows == 50
    engine = Engine(threshold_deq(), Execution(rows=7, images=3), IMAGES[0], 400)
    assert (engine.rows, engine.images) == (7, 3)
    assert Engine(nn.Flatten().eval(), Execution(), IMAGES[0], 400).rows == 400


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"rows": 0}, "execution.rows"), ({"rows": 2.5}, "execution.rows"), ({"images": -1}, "execution.images"),
     ({"images": True}, "execution.images")],
)  # fmt: skip
def test_settings_are_refused_by_name(settings, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        Execution(**settings)


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(SettingError, match=r"^precision = 'float64': must be one of"):
        Serialized(precision="float64")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES[:2], ids=range(2))
def test_compiled_votes(strategy, network):
    strategy = dataclasses.replace(strategy, solver=Anderson(max_steps=3))
    compiled = dataclasses.replace(strategy, execution=Execution(compile=True, rows=16))
    assert measurements(vote(compiled, network, images=2)) == measurements(vote(strategy, network))


@pytest.mark.slow
def test_a_compiled_explicit_network():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    compiled = Standard(**SETTINGS, execution=Execution(compile=True))
    assert measurements(vote(compiled, linear)) == measurements(vote(Standard(**SETTINGS), linear))


# On a GPU, where there is one.


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@each_strategy
def test_nothing_waits_for_a_gpu_between_two_batches(strategy, network):
    engine = strategy.engine(copy.deepcopy(network).cuda(), IMAGES[0].cuda())
    x = IMAGES.cuda().repeat(20, 1, 1, 1)
    engine.label(x, Anderson(max_steps=30, tolerance=1e-3))
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        engine.label(x, Anderson(max_steps=30, tolerance=1e-3))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # torch.compile has several of its own, by version
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_computes_the_same_function(network, compiled):
    x = IMAGES.repeat(8, 1, 1, 1)
    solver = Anderson(max_steps=12)
    expected = Engine(network, Execution(), IMAGES[0], 40).label(x, solver)
    device = Engine(copy.deepcopy(network).cuda(), Execution(compile=compiled, rows=16), IMAGES[0].cuda(), 40)
    for _ in range(3):
        given = device.label(x.cuda(), solver)
        assert (given.labels.cpu() != expected.labels).sum() <= 1
