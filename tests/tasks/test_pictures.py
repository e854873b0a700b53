"""Heat over an image: on one scale for all images, beside the image."""

import numpy as np
from PIL import Image

from tasks.pictures import overlay, side_by_side


def test_heat_is_on_one_absolute_scale() -> None:
    image = Image.new("RGB", (4, 4), (100, 100, 100))
    quiet, loud = (np.asarray(overlay(image, np.full((4, 4), p, np.float32))).mean() for p in (0.05, 0.9))
    assert quiet < 100 < loud


def test_both_images_are_whole_side_by_side() -> None:
    red, blue = (Image.new("RGB", (5, 3), colour) for colour in ("red", "blue"))
    both = np.asarray(side_by_side(red, blue))
    assert (both[:, :5] == (255, 0, 0)).all()
    assert (both[:, -5:] == (0, 0, 255)).all()
