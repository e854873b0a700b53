"""Images as the model takes them: read, decoded and fitted by threads, a few batches ahead."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from models.preprocess import to_square
from tasks.images import LARGEST, UnreadableImage, alone_if_huge, count_pixels, decode_image, few_if_large, viewed
from tasks.layouts import read_version
from tasks.tables import ahead

READERS = 16  # threads that read and decode ahead of the model
READ_AHEAD = 3  # batches


class Pixels(NamedTuple):
    """An image as the model takes it, (S, S, 3) uint8, and its own size as a viewer shows it."""

    square: np.ndarray
    height: int
    width: int


Load = Callable[[dict[str, Any], int], Pixels | UnreadableImage]


def read_ahead(
    readers: ThreadPoolExecutor, slices: Iterable[list[dict[str, Any]]], image_size: int, load: Load | None = None
) -> Iterator[list[Pixels | UnreadableImage]]:
    """Batches of loaded images, in order; the next READ_AHEAD are already being read."""
    load = load or load_pixels
    for futures in ahead(slices, lambda rows: [readers.submit(load, row, image_size) for row in rows], READ_AHEAD):
        yield [future.result() for future in futures]


def load_pixels(row: dict[str, Any], image_size: int) -> Pixels | UnreadableImage:
    """Read, decode and prepare one object version; a store that fails raises, an image that is bad is returned as such."""
    if row["size"] > LARGEST:
        return UnreadableImage(
            "too_large", f"the object has {row['size']:,} bytes, the most that is read is {LARGEST:,}"
        )
    try:
        with few_if_large(row["size"]):
            return prepare_pixels(read_version(row), image_size)
    except UnreadableImage as error:
        return error


def prepare_pixels(data: bytes, image_size: int) -> Pixels | UnreadableImage:
    try:
        with alone_if_huge(count_pixels(data)):
            image = viewed(decode_image(data))
            return Pixels(to_square(image, image_size), image.height, image.width)
    except UnreadableImage as error:
        return error
