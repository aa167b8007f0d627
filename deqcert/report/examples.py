"""An image of a run, whether its certificate is ours or stands in a table that was read."""

from __future__ import annotations

from typing import Protocol


class CertifiedExample(Protocol):
    """What a metric needs to know of an image: a :class:`Certificate` and a :class:`TsvRow` are ones.

    Attributes:
        index: Position of the image in its data set.
        label: True class.
        prediction: Class of the smoothed classifier, or -1 for an abstention.
        radius: Certified l2 radius; 0 for an abstention.
        correct: Whether the prediction is the label.
        sound: Whether the certificate has a proof.
    """

    @property
    def index(self) -> int: ...  # noqa: D102
    @property
    def label(self) -> int: ...  # noqa: D102
    @property
    def prediction(self) -> int: ...  # noqa: D102
    @property
    def radius(self) -> float: ...  # noqa: D102
    @property
    def correct(self) -> bool: ...  # noqa: D102
    @property
    def sound(self) -> bool: ...  # noqa: D102
