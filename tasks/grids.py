"""Patch grids of scored images, as the store holds them; models.maps makes maps of any size of them."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from tasks.errors import InputError
from tasks.registry import ModelVersion
from tasks.shards import later_parts, model_folder
from tasks.store import Store
from tasks.tables import MAPS

READ_AT_ONCE = 256  # grids
READERS = 8  # threads, of which each has so many in memory


def stored_grids(
    store: Store, collection: str, model: ModelVersion, images: Iterable[str], first_part: int = 0
) -> Iterator[tuple[str, np.ndarray]]:
    """Ids and patch grids (g, g) float32 of these images, each once, in the order in which they are stored.

    first_part: of the manifest; the images lie in none before it.
    """
    folder, wanted = model_folder(collection, model.partition, "maps"), set(images)
    for part in later_parts(store, folder, first_part):
        if not wanted:
            return
        yield from grids_of_part(store, folder, part, wanted)


def grids_of_part(
    store: Store, folder: tuple[str, ...], part: str, wanted: set[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Ids and grids of the wanted images that this part holds, which are wanted no more."""
    with store.fs.open(store.path(*folder, part), "rb") as file:
        for batch in pq.ParquetFile(file).iter_batches(READ_AT_ONCE, columns=MAPS.names):
            columns = (batch.column(name).to_pylist() for name in MAPS.names)
            for image, rows, cols, values in zip(*columns, strict=True):
                if image in wanted:
                    wanted.remove(image)
                    yield image, np.frombuffer(values, "<f4").reshape(rows, cols)


def read_grids(store: Store, collection: str, model: ModelVersion, rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """The grids of a few scored images by their ids, those without a stored map left out.

    rows: image_id and `file` (see scored.read_outline): a shard's maps have the name of its scores, no other is read.
    """
    folder = model_folder(collection, model.partition, "maps")

    def read(part: str, images: pd.Series) -> list[tuple[str, np.ndarray]]:
        try:
            return list(grids_of_part(store, folder, part, set(images)))
        except FileNotFoundError:
            return []

    with ThreadPoolExecutor(READERS) as pool:
        parts = rows["image_id"].groupby(rows["file"].astype(str))
        return dict(chain.from_iterable(pool.map(lambda part: read(*part), parts)))


class SpilledGrids:
    """Grids of any number of images by their ids, in a temporary file: read once, then taken in any order."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._end = 0

    def add(self, image: str, grid: np.ndarray) -> None:
        self._places[image] = self._end, grid.shape
        self._end += os.pwrite(self._descriptor, grid.astype("<f4").data, self._end)

    def __getitem__(self, image: str) -> np.ndarray:
        """(g, g) float32; InputError where the store had none."""
        if image not in self._places:
            raise InputError(f"the store has a score but no map of the image {image}: its part of the maps was removed")
        offset, (rows, cols) = self._places[image]
        return np.frombuffer(os.pread(self._descriptor, 4 * rows * cols, offset), "<f4").reshape(rows, cols)


@contextmanager
def spilled_grids(store: Store, collection: str, model: ModelVersion, images: Iterable[str]) -> Iterator[SpilledGrids]:
    """The grids of these images for as long as the context lasts."""
    with tempfile.TemporaryFile(prefix="anomalyclip-") as file:
        grids = SpilledGrids(file.fileno())
        for image, grid in stored_grids(store, collection, model, images):
            grids.add(image, grid)
        yield grids
