"""What a model has scored of a collection, image by image, with what the manifest knows of it."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks.manifest import nullable, stream_manifest
from tasks.registry import ModelVersion
from tasks.scoring import part_number, scores_folder
from tasks.store import Store
from tasks.tables import BATCH, SCORES, count_rows, read_parquet

FACTS = ["image_id", "size", "label", "defect_type", "mask_uri"]


def read_scored(store: Store, collection: str, model: ModelVersion, first_part: int = 0) -> pd.DataFrame:
    """A row a current image of the manifest parts from this number on: the columns of SCORES, `part` and FACTS.

    mask_uri is the mask that was written, mask_uri_truth the ground truth.
    """
    folder = scores_folder(collection, model.partition)
    tables = [SCORES.append(pa.field("part", pa.int64())).empty_table()]
    for name in store.find(*folder, suffix=".parquet"):
        if (part := part_number(name)) >= first_part:
            table = read_parquet(store, *folder, name, schema=SCORES)
            tables.append(table.append_column("part", pa.array([part] * len(table), pa.int64())))
    scores = pa.concat_tables(tables).to_pandas()
    ids = pa.array(scores["image_id"], pa.string())
    known = [table.filter(pc.is_in(table["image_id"], ids)) for table in stream_manifest(store, collection, FACTS)]
    facts = pa.concat_tables(known).to_pandas(types_mapper=nullable)
    return facts.merge(scores.drop_duplicates("image_id"), on="image_id", suffixes=("_truth", ""))


def stream_scored(store: Store, collection: str, model: ModelVersion) -> Iterator[dict[str, Any]]:
    """A row a current image, part by part, each once: the columns of SCORES, `size`, width and height where the manifest has
    them (both or none), and file_name, the URI below the folder that all images have in common."""
    images = CurrentImages(stream_manifest(store, collection, CurrentImages.COLUMNS))
    folder = scores_folder(collection, model.partition)
    for name in store.find(*folder, suffix=".parquet"):
        for batch in read_parquet(store, *folder, name, schema=SCORES).to_batches(BATCH):
            for row in batch.to_pylist():
                if facts := images.take(row["image_id"]):
                    yield row | facts | {"file_name": row["uri"][len(images.folder) :]}


class CurrentImages:
    """The current images of a collection by their ids, in 33 bytes each; folder: what their URIs have in common."""

    COLUMNS = ("image_id", "uri", "size", "width", "height")

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        ids, facts, bounds = Column(np.uint64), Column(np.int64), list[str]()
        for table in tables:
            ids.add(int(image, 16) for image in table["image_id"].to_pylist())
            columns = (table[name].to_pylist() for name in self.COLUMNS[2:])
            facts.add(value or 0 for row in zip(*columns, strict=True) for value in row)
            bounds += [found for found in pc.min_max(table["uri"]).as_py().values() if found is not None]
        unsorted = ids.joined()
        order = np.argsort(unsorted)
        self.ids, self.facts = unsorted[order], facts.joined().reshape(-1, 3)[order]
        self.taken = np.zeros(len(order), bool)
        self.folder = common_folder(min(bounds), max(bounds)) if bounds else ""

    def take(self, image: str) -> dict[str, Any] | None:
        """size, width and height, the first time that this image is asked for; None for one that is not current."""
        number = np.uint64(int(image, 16))
        place = int(np.searchsorted(self.ids, number))
        if place == len(self.ids) or self.ids[place] != number or self.taken[place]:
            return None
        self.taken[place] = True
        size, width, height = self.facts[place].tolist()
        return {"size": size, "width": width or None, "height": height or None}


class Column:
    """Numbers that are added table by table."""

    def __init__(self, dtype: Any) -> None:
        self.dtype, self.arrays = dtype, [np.empty(0, dtype)]

    def add(self, values: Iterable[Any]) -> None:
        self.arrays.append(np.fromiter(values, self.dtype))

    def joined(self) -> np.ndarray:
        """All of them; they are not held here any longer."""
        joined = np.concatenate(self.arrays)
        self.arrays.clear()
        return joined


def count_scored(store: Store, collection: str, model: ModelVersion) -> int:
    """Rows of all parts, those of images that are gone by now among them."""
    folder = scores_folder(collection, model.partition)
    return sum(count_rows(store, *folder, name) for name in store.find(*folder, suffix=".parquet"))


def common_folder(low: str, high: str) -> str:
    """The longest folder, with its last slash, that all URIs from `low` to `high` in their order lie in."""
    shared = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[: low.rfind("/", 0, shared) + 1]
