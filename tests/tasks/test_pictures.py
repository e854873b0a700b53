"""Heat over an image: on one scale for all images, beside the image."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from tasks import pictures
from tasks.images import decode_image
from tasks.layouts import read_layout
from tasks.pictures import heat_layer, outline, overlay, read_thumbnail, side_by_side


def test_heat_is_on_one_absolute_scale() -> None:
    image = Image.new("RGB", (4, 4), (100, 100, 100))
    quiet, loud = (np.asarray(overlay(image, np.full((4, 4), p, np.float32))).mean() for p in (0.05, 0.9))
    assert quiet < 100 < loud


def test_a_probability_has_one_colour_in_every_image() -> None:
    low, high = np.linspace(0, 0.2, 5, dtype=np.float32)[None], np.linspace(0, 1, 21, dtype=np.float32)[None]
    of_low, of_high = np.asarray(heat_layer(low)), np.asarray(heat_layer(high))
    assert np.array_equal(of_low[0, -1], of_high[0, 4])
    assert of_low[..., 3].max() < of_high[..., 3].max()


def test_the_ground_truth_is_an_outline() -> None:
    mask = Image.new("L", (60, 40))
    mask.paste(255, (15, 10, 45, 30))
    layer = np.asarray(outline(mask, (30, 20)))
    assert set(map(tuple, layer.reshape(-1, 4))) == {(0, 0, 0, 0), (0, 230, 230, 255)}
    rows, columns = np.nonzero(layer[..., 3])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 14, 7, 21)
    assert not layer[6:14, 9:21].any()


def test_both_images_are_whole_side_by_side() -> None:
    red, blue = (Image.new("RGB", (5, 3), colour) for colour in ("red", "blue"))
    both = np.asarray(side_by_side(red, blue))
    assert (both[:, :5] == (255, 0, 0)).all()
    assert (both[:, -5:] == (0, 0, 255)).all()


def test_huge_images_are_made_small_one_at_a_time(tmp_path, monkeypatch) -> None:
    happened = []

    @contextmanager
    def alone(pixels: int) -> Iterator[None]:
        happened.append(f"alone with {pixels}")
        yield
        happened.append("no more")

    def decode(data: bytes) -> Image.Image:
        happened.append("decoded")
        return decode_image(data)

    monkeypatch.setattr(pictures, "alone_if_huge", alone)
    monkeypatch.setattr(pictures, "decode_image", decode)
    Image.new("L", (60, 40), 7).save(tmp_path / "a.png")
    entry = read_layout(str(tmp_path), "flat", "parts")[1][0].object
    image, size = read_thumbnail({"uri": entry.uri, "etag": entry.etag}, 30)
    assert (image.mode, image.size, size) == ("RGB", (30, 20), (60, 40))
    assert happened == ["alone with 2400", "decoded", "no more"]
