import numpy as np
import pytest
from matplotlib.colors import to_hex

from deqcert.errors import DataError
from deqcert.report import ShownExample, plot_examples


@pytest.fixture
def shown(make_certificate):
    def make(channels=1, **certificate):
        image = np.linspace(0, 1, channels * 4, dtype=np.float32).reshape(channels, 2, 2)
        return ShownExample(image, image * 3 - 1, make_certificate(**certificate))

    return make


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_each_image_stands_beside_its_noisy_copy(shown):
    image = plot_examples([shown()]).axes[0].get_images()[0].get_array()
    np.testing.assert_allclose(image, [[0, 1 / 3, 0, 0], [2 / 3, 1, 1, 1]], atol=1e-6)
    assert plot_examples([shown(channels=3)]).axes[0].get_images()[0].get_array().shape == (2, 4, 3)


def test_the_title_says_what_was_certified_in_words_and_in_colour(shown):
    figure = plot_examples(
        [shown(radius=0.254), shown(label=2, radius=0.25), shown(prediction=-1, radius=0.0), shown(sound=False)]
    )
    assert titles(figure) == ["3\nr = 0.25", "2, taken for\n3, r = 0.25", "3\nabstains", "3\nr = 0.50 UNSOUND"]
    colours = {to_hex(axes.title.get_color()) for axes in figure.axes[:3]}
    assert len(colours) == 3


def test_names_of_classes_are_used_where_they_are_known(shown):
    assert titles(plot_examples([shown()], ["cat", "dog", "frog", "ship"])) == ["ship\nr = 0.50"]
    assert titles(plot_examples([shown()], ["cat"])) == ["3\nr = 0.50"]


def test_a_page_has_rows_of_four_and_empty_places(shown):
    figure = plot_examples([shown()] * 5)
    assert len(figure.axes) == 8
    assert len(titles(figure)) == 5
    with pytest.raises(DataError, match="no image"):
        plot_examples([])
