"""Decoding image files that may be damaged, hostile or of a kind that Pillow decodes to nonsense."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from deqcert.data.images import to_unit_interval
from deqcert.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF")
"""Formats that are decoded, whatever a file is called; Pillow would hand others, like EPS, to other programs."""

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif"),
    *(".tif", ".tiff", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""How names of such files end, in lower case."""

MAXIMUM_PIXELS = 89_478_485
"""Largest image, in pixels: above, Pillow warns of decompression bombs."""


@contextmanager
def opened_image(source: Path | bytes, origin: str, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """Open a file or its content, called ``origin`` in errors; what fails to decode in the ``with`` block is refused.

    Raises:
        DataError: It is not a file, is damaged, is not an image of these formats, has more than 89 million pixels or
            more than one frame, or has pixels of 16 or 32 bits.
    """
    if isinstance(source, Path):
        demand_file(source, origin)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
            demand_pixels(image.width, image.height, origin)
            # Cameras put a preview behind a JPEG (MPO); the first frame is the photograph.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise DataError(f"{origin}: an animation or several pages ({image.format}); must be one image")
            # Pillow clips these to [0, 255] on conversion, which leaves black and white.
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{origin}: has pixels of 16 or 32 bits (mode {image.mode}); must have 8 per channel")
            yield image
    except DataError:
        raise
    except Exception as error:  # decoders raise whatever the damage leads to
        cause = str(error) or type(error).__name__
        raise DataError(f"{origin}: damaged image, or none of {', '.join(formats)}: {cause}") from error


def read_image(source: Path | bytes, origin: str, channels: int = 3, size: int | None = None) -> Tensor:
    """Read one image for a network: float32 in [0, 1], shape (C, H, W).

    Args:
        source: A file, or its content.
        origin: What it is called in errors.
        channels: 1 (gray) or 3 (color); images of the other kind are converted.
        size: Height and width that the network takes, pixels; None takes any.

    Raises:
        DataError: It cannot be decoded (:func:`opened_image`), or is of another size: to resize it would change what is
            certified.
    """
    with opened_image(source, origin) as image:
        pixels: Tensor = pil_to_tensor(image.convert("L" if channels == 1 else "RGB")).contiguous()
    _, height, width = pixels.shape
    if size is not None and (height, width) != (size, size):
        raise DataError(f"{origin}: {width} x {height} pixels; the network takes {size} x {size}")
    return to_unit_interval(pixels)


def demand_file(path: Path, origin: str) -> None:
    """Raise :class:`DataError` unless ``path`` is a file: to open a pipe would wait for ever."""
    if not path.is_file():
        raise DataError(f"{origin}: must be a regular file that exists (no folder, pipe, device or dangling link)")


def demand_pixels(width: int, height: int, origin: str) -> None:
    """Raise :class:`DataError` if an image of this size, in pixels, would take too much memory."""
    if width * height > MAXIMUM_PIXELS:
        raise DataError(f"{origin}: {width} x {height} pixels; allowed are {MAXIMUM_PIXELS} in all")
