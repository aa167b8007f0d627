import json
import math
from datetime import timedelta

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics import MetricCollection

from deqcert.errors import DataError, SettingError
from deqcert.metrics.certified import AbstentionRate, AverageCertifiedRadius, CertifiedAccuracy

RADII = [0.0, 0.25, 0.5, 1.0]


def collection():
    return MetricCollection(
        [AverageCertifiedRadius(), CertifiedAccuracy(RADII), AbstentionRate()], compute_groups=False
    )


def reference(prediction, radius, label):
    prediction, radius, label = np.asarray(prediction), np.asarray(radius), np.asarray(label)
    correct = (prediction == label) & (prediction >= 0)
    return {
        "AverageCertifiedRadius": np.mean(radius * correct),
        "CertifiedAccuracy": [np.mean(correct & (radius >= r)) for r in RADII],
        "AbstentionRate": np.mean(prediction == -1),
    }


def assert_equal(computed, expected):
    assert computed.keys() == expected.keys()
    for name, value in computed.items():
        np.testing.assert_allclose(np.asarray(value), expected[name], rtol=1e-12, err_msg=name)


@st.composite
def images(draw):
    prediction = draw(st.integers(-1, 2))
    return prediction, 0.0 if prediction == -1 else draw(st.floats(0, 2)), draw(st.integers(0, 2))


def batch(rows):
    prediction, radius, label = zip(*rows, strict=True)
    return torch.tensor(prediction), torch.tensor(radius, dtype=torch.float64), torch.tensor(label)


@given(st.lists(images(), min_size=1, max_size=20), st.integers(1, 7))
def test_metrics_match_numpy_for_any_batching(rows, batch_size):
    metrics = collection()
    for start in range(0, len(rows), batch_size):
        metrics.update(*batch(rows[start : start + batch_size]))
    assert_equal(metrics.compute(), reference(*zip(*rows, strict=True)))


def test_forward_returns_the_batch_value_and_accumulates():
    metric = AverageCertifiedRadius()
    assert metric(torch.tensor([1]), torch.tensor([0.5]), torch.tensor([1])).item() == 0.5
    assert metric(torch.tensor([1]), torch.tensor([1.0]), torch.tensor([0])).item() == 0.0
    assert metric.compute().item() == 0.25
    metric.reset()
    assert metric.images.item() == 0


def test_states_stay_float64_when_a_module_is_cast():
    metric = CertifiedAccuracy(RADII).half()
    metric.update(torch.tensor([1]), torch.tensor([0.5]), torch.tensor([1]))
    assert metric.images.dtype == metric.compute().dtype == torch.float64


def test_a_collection_keeps_metrics_apart_that_start_equal():
    metrics = MetricCollection(
        {"at_0": CertifiedAccuracy([0.0]), "at_1": CertifiedAccuracy([0.25])}, compute_groups=False
    )
    metrics.update(torch.tensor([1]), torch.tensor([0.5]), torch.tensor([1]))
    metrics.update(torch.tensor([1]), torch.tensor([0.1]), torch.tensor([1]))
    assert {name: value.item() for name, value in metrics.compute().items()} == {"at_0": 1.0, "at_1": 0.5}


def test_an_abstention_is_wrong_even_if_the_label_is_missing():
    metric = CertifiedAccuracy([0.0])
    metric.update(torch.tensor([-1]), torch.tensor([0.0]), torch.tensor([-1]))
    assert metric.compute().item() == 0.0


@pytest.mark.parametrize("metric", [AverageCertifiedRadius(), CertifiedAccuracy(RADII), AbstentionRate()])
@pytest.mark.parametrize(
    ("prediction", "radius", "label"),
    [
        ([1, 2], [0.5], [1, 2]),
        ([1, 2], [0.5, 0.5], [1]),
        ([1], [math.nan], [1]),
        ([1], [-0.5], [1]),
        ([-1], [0.5], [1]),
    ],
)
def test_bad_batch_is_refused(metric, prediction, radius, label):
    with pytest.raises(DataError):
        metric.update(torch.tensor(prediction), torch.tensor(radius), torch.tensor(label))


@pytest.mark.parametrize("radii", [[], [-0.25], [math.nan]])
def test_bad_radii_are_refused(radii):
    with pytest.raises(SettingError, match=r"^radii = "):
        CertifiedAccuracy(radii)


ROWS = [(0, 0.75, 0), (1, 0.3, 0), (-1, 0.0, 1), (1, 1.5, 1), (2, 0.25, 2), (0, 0.1, 0), (2, 0.6, 1)]


def _process(rank, folder):
    torch.set_num_threads(1)  # a forked process cannot use its parent's thread pool
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timedelta(seconds=60), world_size=2, rank=rank
    )
    metrics = collection()
    metrics.update(*batch(ROWS[:5] if rank == 0 else ROWS[5:]))
    computed = {name: value.tolist() for name, value in metrics.compute().items()}
    (folder / f"{rank}.json").write_text(json.dumps(computed))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")  # Python >= 3.12
def test_two_processes_with_uneven_numbers_of_images_agree(tmp_path):
    torch.multiprocessing.start_processes(_process, (tmp_path,), nprocs=2, start_method="fork")
    expected = reference(*zip(*ROWS, strict=True))
    for rank in range(2):
        assert_equal(json.loads((tmp_path / f"{rank}.json").read_text()), expected)
