from __future__ import annotations

import base64
import bz2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deqcert.statistics.packing import packed, unpacked


@given(data=st.data(), num_classes=st.sampled_from([1, 2, 10, 127, 128, 129, 200, 1000, 32768, 32769, 100_000]))
def test_what_is_packed_is_unpacked(data, num_classes):
    bounds = st.integers(-1, num_classes - 1) | st.sampled_from([-1, num_classes - 1])
    classes = np.array(data.draw(st.lists(bounds, min_size=1, max_size=50)), dtype=np.int64)
    found = unpacked(packed(classes, num_classes), len(classes), num_classes)
    assert found.dtype == np.int64
    assert found.tolist() == classes.tolist()


def test_the_text_is_the_same_everywhere():
    """Digests of votes are of it."""
    text = packed(np.arange(-1, 4), 5)
    assert bz2.decompress(base64.b64decode(text)) == bytes([255, 0, 1, 2, 3])
    assert text == "QlpoOTFBWSZTWSVldmEAAAJAAPgAAACgACGDQZoCXHF3JFOFCQJWV2YQ"


def test_predictions_take_about_as_much_as_they_say():
    generator = np.random.default_rng(0)
    sure, unsure = (generator.choice(2, 10_000, p=[p, 1 - p]) for p in (0.999, 0.8))
    assert len(packed(sure, 10)) < 250
    assert len(packed(unsure, 10)) < 2000  # 0.72 bits each would be 1200 characters


GOOD = packed(np.array([0, 1, -1]), 2)


@pytest.mark.parametrize(
    ("text", "n", "num_classes", "message"),
    [
        (GOOD, 2, 2, "2 predictions"),
        (GOOD, 4, 2, "4 predictions"),
        (GOOD, 3, 1, r"outside of \[-1, 1\)"),
        (GOOD, 3, 200, "3 predictions"),
        (GOOD[:-8], 3, 2, "3 predictions"),
        ("*" + GOOD, 3, 2, "."),
        ("AAAA", 3, 2, "."),
        ("", 3, 2, "3 predictions"),
        (base64.b64encode(base64.b64decode(GOOD) + b"more").decode(), 3, 2, "3 predictions"),
        (base64.b64encode(bz2.compress(bytes(10**7))).decode(), 3, 2, "3 predictions"),
        (packed(np.array([-2]), 2), 1, 2, "outside"),
        ("ä", 1, 2, "."),
    ],
)
def test_other_texts_are_refused(text, n, num_classes, message):
    with pytest.raises(ValueError, match=message):
        unpacked(text, n, num_classes)
