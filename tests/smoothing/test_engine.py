"""How noisy samples are spread over batches, threads and images is nothing that votes may depend on."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import warnings
import weakref

import pytest
import torch
from sampling_runs import group_votes_of, measurement, shipped_network, smoothed, votes_of
from torch import nn

from deqcert.data import Digits
from deqcert.errors import SettingError
from deqcert.models import MDEQ
from deqcert.smoothing import Engine, Execution, Serialized, SolvedClassifier, Standard, Stream
from deqcert.smoothing.engine import _margins
from deqcert.smoothing.memory import Footprint, _Allocations, footprint
from deqcert.solvers import Anderson, Broyden, Picard
from deqcert.statistics import AdaptiveAudit, FixedAudit

SIZES = {"n0": 10, "n": 40, "batch_size": 16}
STRATEGIES = [
    Standard(**SIZES),
    Serialized(**SIZES, audit=FixedAudit(25)),
    Serialized(**SIZES, audit=FixedAudit(25), start="first"),
    Serialized(**SIZES, audit=FixedAudit(25), start="clean", proposal=Picard(max_steps=1)),
    Serialized(**SIZES, audit=AdaptiveAudit(radius_loss=0.2, alpha=0.05)),
    Serialized(**SIZES, audit=AdaptiveAudit(radius_loss=0.2, alpha=0.05), escalation=0.1),
]
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=range(len(STRATEGIES)))


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def g():
    return smoothed(shipped_network())


def digits():
    data = Digits(max_examples=5)
    data.setup("predict")
    images, _, indices = zip(*data.certification_set(), strict=True)
    return torch.stack(images), list(indices)


IMAGES, INDICES = digits()


def measured(strategy, g, images=1):
    """Take the votes of all images, some side by side; seconds and residuals depend on more than what is counted."""
    engine = strategy.engine(g, IMAGES[0])
    streams = [Stream(0, index) for index in INDICES]
    groups = [slice(first, first + images) for first in range(0, 5, images)]
    votes = [each for some in groups for each in strategy.group_votes(g, engine, IMAGES[some], streams[some])]
    return [measurement(each, "residual") for each in votes]


@pytest.fixture(scope="module")
def expected(g):
    """Return what a strategy measures by itself, on one core; asked for once."""
    return functools.cache(lambda strategy: measured(strategy, g))


@each_strategy
def test_votes_do_not_depend_on_images_side_by_side(strategy, g, expected):
    expected = expected(strategy)
    assert len({str(each["estimation"]) for each in expected}) > 1
    for images in (2, 5):
        assert measured(strategy, g, images) == expected
    alone, beside = votes_of(strategy, g, IMAGES[0], INDICES[0]), group_votes_of(strategy, g, IMAGES, INDICES)[0]
    assert beside.residual == pytest.approx(alone.residual, rel=1e-3)


@each_strategy
@pytest.mark.parametrize(("rows", "images"), [(3, 3), (16, 3), (1000, 1), (1000, 3), slow(3, 1), slow(16, 1)])
def test_votes_do_not_depend_on_the_size_of_batches(strategy, g, expected, rows, images):
    changed = dataclasses.replace(strategy, execution=Execution(rows=rows))
    assert measured(changed, g, images) == expected(strategy)


@each_strategy
@pytest.mark.parametrize("images", [4, slow(1)])
def test_votes_do_not_depend_on_threads(strategy, g, expected, two_threads, images):
    torch.set_num_threads(1)
    alone = expected(strategy)
    torch.set_num_threads(2)
    changed = dataclasses.replace(strategy, execution=Execution(rows=5))
    assert measured(changed, g, images) == alone
    assert torch.get_num_threads() == 2  # the engine's threads have one core each, others keep theirs


def test_a_failure_in_a_thread_is_not_lost(threshold_deq, two_threads):
    class Failing(threshold_deq):
        def head(self, z):
            if len(z) == 4:
                raise RuntimeError("broken head")
            return super().head(z)

    strategy = Standard(**SIZES, execution=Execution(rows=6))
    with pytest.raises(RuntimeError, match="broken head"):
        votes_of(strategy, smoothed(Failing()), IMAGES[0])  # 10 = 6 + 4 selection samples


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
def test_only_srs_predictions_have_a_lower_precision(threshold_deq, two_threads, threads, outer, precision):
    torch.set_num_threads(threads)
    strategy = Serialized(**SIZES, precision=precision, audit=FixedAudit(25), execution=Execution(rows=5))
    classifier = recording(threshold_deq)
    g = smoothed(classifier, solver=Picard(max_steps=21))
    with torch.autocast("cpu", outer or torch.bfloat16, enabled=outer is not None):
        engine = strategy.engine(g, IMAGES[0])
        classifier.seen.clear()  # of the engine's own checks
        strategy.group_votes(g, engine, IMAGES[:1], [Stream(0, 0)])
    run = outer or torch.float32
    fast = run if precision is None else getattr(torch, precision)
    assert {(steps, dtype) for steps, dtype, _ in classifier.seen} == {(10, fast), (3, fast), (21, run)}
    assert not any(gradient for *_, gradient in classifier.seen)


def test_audited_samples_of_several_images_share_batches(threshold_deq):
    classifier = threshold_deq(threshold=-9.0)
    g = smoothed(classifier, solver=Picard(max_steps=21))
    strategy = Serialized(**SIZES, audit=FixedAudit(5), execution=Execution(rows=1000))
    engine = strategy.engine(g, IMAGES[0])
    classifier.rows.clear()
    votes = strategy.group_votes(g, engine, IMAGES, [Stream(0, index) for index in INDICES])
    assert [each.audited for each in votes] == [5] * 5
    assert classifier.rows[-21:] == [25] * 21


def test_mismatches_belong_to_their_image(threshold_deq):
    """Y depends on the threshold, S does not: one step from the clean image, whose mean differs from image to image."""
    images = torch.stack([torch.full((1, 8, 8), level) for level in (0.2, 0.5, 0.8)])
    sizes = {"n0": 30, "n": 200, "batch_size": 16}
    strategy = Serialized(**sizes, proposal=Picard(max_steps=1), start="clean", audit=FixedAudit(200))
    g = smoothed(threshold_deq(0.9), sigma=3.0, solver=Picard(max_steps=40))
    alone = [votes_of(strategy, g, image, index) for index, image in enumerate(images)]
    assert list(map(measurement, group_votes_of(strategy, g, images))) == list(map(measurement, alone))
    assert len({each.mismatches for each in alone}) > 1


class Logits(nn.Module):
    """Says the logits that are in the first pixels of the image."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.eval()

    def forward(self, x):
        return x.flatten(1)[:, : self.num_classes]


def predicted(logits):
    logits = torch.tensor(logits)
    image = logits.new_zeros(1, 1, logits.shape[1])
    engine = Engine(Logits(logits.shape[1]), Execution(), image, len(logits))
    return engine.predict(logits[:, None, None])


def test_the_runner_up_and_its_distance():
    found = predicted([[1.0, 4.0, 2.5], [-3.0, -1.0, -2.0], [0.0, 1.0, 7.0]])
    assert found.classes.tolist() == [1, 1, 2]
    assert found.runner_up.tolist() == [2, 2, 1]
    assert found.margin.tolist() == [1.5, 1.0, 6.0]


def test_ties_have_no_margin():
    found = predicted([[2.0, 2.0, 1.0], [0.0, 5.0, 5.0]])
    assert found.margin.tolist() == [0.0, 0.0]
    assert {*found.classes.tolist(), *found.runner_up.tolist()} <= {0, 1, 2}


def test_logits_that_are_not_finite_have_no_class_and_no_margin():
    inf, nan = math.inf, math.nan
    found = predicted([[nan, 0.0, 1.0], [inf, 0.0, 1.0], [0.0, -inf, 9.0], [inf, inf, 0.0], [nan, nan, nan]])
    assert found.classes.tolist() == [-1] * 5
    assert found.margin.tolist() == [0.0] * 5


def test_one_class_has_no_runner_up():
    found = predicted([[3.0], [-1.0]])
    assert (found.classes.tolist(), found.runner_up.tolist()) == ([0, 0], [-1, -1])
    assert found.margin.tolist() == [math.inf] * 2
    assert predicted([[math.nan]]).classes.tolist() == [-1]


def test_margins_belong_to_their_sample_whatever_the_batches(g):
    x = IMAGES.repeat(5, 1, 1, 1)[:23]
    logits = g.base(x).double()
    values, classes = logits.topk(2, dim=1)
    for rows in (3, 1000):
        found = Engine(g.base, Execution(rows=rows), IMAGES[0], 23).predict(x)
        assert found.classes.tolist() == classes[:, 0].tolist()
        assert found.runner_up.tolist() == classes[:, 1].tolist()
        assert torch.allclose(found.margin.double(), values[:, 0] - values[:, 1], atol=1e-3)


def test_batches_are_of_equal_size_and_as_large_as_documented(g, threshold_deq):
    rows = {width: Engine(g.base, Execution(), IMAGES[0], width).rows for width in (1, 100, 400, 4000)}
    state = 8 * 8 * 8 + 16 * 4 * 4  # floats
    fitting = 3 * 2**20 // (4 * state)
    assert fitting == 1024
    assert rows == {1: 1, 100: 100, 400: 400, 4000: 1000}
    assert Engine(SolvedClassifier(MDEQ().eval()), Execution(), torch.rand(3, 32, 32), 400).rows == 50
    engine = Engine(SolvedClassifier(threshold_deq()), Execution(rows=7, images=3), IMAGES[0], 400)
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


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES[:2], ids=range(2))
def test_compiled_votes(strategy):
    g = smoothed(shipped_network(), solver=Anderson(max_steps=3))
    compiled = dataclasses.replace(strategy, execution=Execution(compile=True, rows=16))
    assert measured(compiled, g, images=2) == measured(strategy, g)


@pytest.mark.slow
def test_a_compiled_explicit_network():
    g = smoothed(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval())
    compiled = Standard(**SIZES, execution=Execution(compile=True))
    assert measured(compiled, g) == measured(Standard(**SIZES), g)


# Memory


def limited(threshold_deq, limit):
    class Limited(threshold_deq):
        """Has no memory for more than ``limit`` rows, which it notices after a few steps; keeps nothing that failed."""

        limit = math.inf
        failed: tuple[weakref.ref, ...] = ()

        def cell(self, z, injection):
            assert all(each() is None for each in Limited.failed)
            if len(z) > Limited.limit and z.any():
                Limited.failed += (weakref.ref(z),)
                raise torch.OutOfMemoryError("simulated")
            return super().cell(z, injection)

    network = Limited(threshold=0.62)
    return network, lambda: setattr(Limited, "limit", limit)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("strategy", [STRATEGIES[0], STRATEGIES[1], STRATEGIES[3]], ids=["standard", "srs", "clean"])
def test_a_batch_that_does_not_fit_is_halved_with_the_same_votes(threshold_deq, two_threads, strategy, threads):
    torch.set_num_threads(threads)
    network, restrict = limited(threshold_deq, 5)
    g = smoothed(network, solver=Picard(max_steps=9))
    expected = measured(dataclasses.replace(strategy, execution=Execution(rows=4)), g)
    engine = dataclasses.replace(strategy, execution=Execution(rows=16)).engine(g, IMAGES[0])
    restrict()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        votes = [strategy.group_votes(g, engine, IMAGES[i : i + 1], [Stream(0, INDICES[i])])[0] for i in range(5)]
    assert [measurement(each, "residual") for each in votes] == expected
    assert len({str(each["estimation"]) for each in expected}) > 1
    # Selection has 10 samples, less than a batch.
    sizes = [re.findall(r"\d+", str(each.message)) for each in caught]
    assert sizes == [["10", "5"]]
    assert engine.rows == 5


@pytest.mark.parametrize("rows", [7, 1000])
def test_the_start_is_still_there_when_the_last_allocation_fails(g, monkeypatch, rows):
    strategy = Serialized(**SIZES, audit=FixedAudit(25), execution=Execution(rows=rows))
    expected = measured(strategy, g)

    def margins(logits):
        if len(logits) > 6:
            raise torch.OutOfMemoryError("simulated")
        return _margins(logits)

    monkeypatch.setattr("deqcert.smoothing.engine._margins", margins)
    with pytest.warns(UserWarning, match="noisy samples per batch; going on with"):
        assert measured(strategy, g) == expected


def test_a_row_that_does_not_fit_is_an_error(threshold_deq):
    network, restrict = limited(threshold_deq, 0)
    strategy = Standard(**SIZES)
    g = smoothed(network)
    engine = strategy.engine(g, IMAGES[0])
    restrict()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(SettingError, match=r"^execution\.rows = 1: not even one noisy"):
            strategy.group_votes(g, engine, IMAGES[:1], [Stream(0, 0)])
    assert "Out of memory with 2 noisy samples per batch; going on with 1" in str(caught[-1].message)


@pytest.mark.slow
def test_compiled_batches_are_halved(g, monkeypatch):
    strategy = Standard(**SIZES, execution=Execution(compile=True, rows=16))
    expected = measured(Standard(**SIZES), g)

    def margins(logits):
        if len(logits) > 8:
            raise torch.OutOfMemoryError("simulated")
        return _margins(logits)

    monkeypatch.setattr("deqcert.smoothing.engine._margins", margins)
    with pytest.warns(UserWarning, match="Out of memory with 10 noisy samples per batch; going on with 5"):
        assert measured(strategy, g) == expected


GIB = 2**30


@pytest.mark.parametrize("free", [2 * GIB, 16 * GIB, 80 * GIB, 1000 * GIB])
@pytest.mark.parametrize("width", [50, 400])
@pytest.mark.parametrize("size", [15_360, 188_160])
def test_batches_fit_into_the_free_memory_of_a_gpu(free, width, size):
    state = torch.empty(1, size)
    footprint = Footprint(row=20 * state.nbytes, held=3 * state.nbytes)
    images, rows = Execution().spread(state, width, footprint, free)
    assert 1 <= rows <= images * width
    assert rows * footprint.row + images * width * footprint.held <= free
    assert rows * state.nbytes <= GIB
    larger = Execution(images=images).spread(state, width, footprint, 2 * free)[1]
    assert rows <= larger
    if free == 1000 * GIB:
        assert rows * state.nbytes > GIB / 3  # the limit is then the size that is fast
    assert Execution(rows=7, images=3).spread(state, width, footprint, free) == (3, 7)


def test_a_gpu_without_free_memory_is_tried_with_one_row():
    footprint = Footprint(row=20 * 2**20, held=2**20)
    assert Execution().spread(torch.empty(1, 2**18), 400, footprint, 10 * 2**20) == (1, 1)
    assert Execution().spread(None, 400, footprint, 2**30) == (1, 20)  # 0.8 GiB less what waits


@pytest.mark.parametrize(
    ("solver", "proposals"),
    [
        (Broyden(max_steps=14), ()),
        (Broyden(max_steps=3, iterate="last"), ()),
        (Anderson(max_steps=30), ()),
        (Picard(max_steps=3), ()),
        (Anderson(max_steps=3), (Broyden(max_steps=8),)),
    ],
    ids=["14B", "3B-last", "30A", "3N", "8B on 3A"],
)
def test_the_footprint_is_what_a_solve_allocates(solver, proposals):
    """Predictions of 32 samples, with everything that they need besides the network, the images and the chain."""
    network, image = shipped_network().for_inference(), IMAGES[0]
    base = SolvedClassifier(network, solver)
    found = footprint(base, image, proposals)
    state = 8 * 8 * 8 + 16 * 4 * 4
    assert found.held == (3 if proposals else 2) * image.nbytes + (4 * state if proposals else 0)
    engine, x = Engine(base, Execution(rows=32), image, 32), IMAGES[0].repeat(32, 1, 1, 1)
    with _Allocations() as allocations:
        engine.predict(x, *proposals)
    assert 0.9 * allocations.peak < 32 * found.row < 1.25 * allocations.peak


# On a GPU, where there is one.


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Out of memory")
@pytest.mark.parametrize("strategy", STRATEGIES[:2], ids=["standard", "srs"])
def test_a_gpu_short_of_memory_gives_the_same_votes(strategy):
    g = smoothed(shipped_network().cuda())
    streams = [Stream(0, index) for index in INDICES]
    expected = [measurement(each, "residual") for each in group_votes_of(strategy, g, IMAGES.cuda(), INDICES)]
    engine = strategy.engine(g, IMAGES[0].cuda())
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**22) / total)
    try:
        votes = strategy.group_votes(g, engine, IMAGES.cuda(), streams)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [measurement(each, "residual") for each in votes] == expected


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@each_strategy
def test_nothing_waits_for_a_gpu_between_two_batches(strategy):
    engine = strategy.engine(smoothed(shipped_network().cuda()), IMAGES[0].cuda())
    x = IMAGES.cuda().repeat(20, 1, 1, 1)
    engine.predict(x)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        engine.predict(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # torch.compile has several of its own, by version
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_computes_the_same_function(compiled):
    x, solver = IMAGES.repeat(8, 1, 1, 1), Anderson(max_steps=12)
    expected = Engine(SolvedClassifier(shipped_network(), solver), Execution(), IMAGES[0], 40).predict(x)
    there = SolvedClassifier(shipped_network().cuda(), solver)
    device = Engine(there, Execution(compile=compiled, rows=16), IMAGES[0].cuda(), 40)
    for _ in range(3):
        assert (device.predict(x.cuda()).classes.cpu() != expected.classes).sum() <= 1
