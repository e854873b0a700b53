"""What a model has scored of a collection, image by image, with what the manifest knows of it."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks.manifest import nullable, stream_manifest
from tasks.registry import ModelVersion
from tasks.shards import later_parts, model_folder, part_number
from tasks.store import Store
from tasks.tables import BATCH, SCORES, count_rows_of, read_parquet

OUTLINE = ["image_id", "class_name", "score", "decision", "error_kind"]  # what counts and orders need; see read_outline
FACTS = ["image_id", "size", "label", "defect_type", "mask_uri"]
READERS = 16  # threads, of which each has one part in memory


def read_outline(
    store: Store, collection: str, model: ModelVersion, first_part: int = 0, end: int | None = None
) -> pd.DataFrame:
    """A row a current image of the manifest parts from first_part on, before `end`: OUTLINE, the number `part` of its
    manifest part and the name `file` of its part of scores, in the manifest's order. The class is that of today.
    """
    folder = model_folder(collection, model.partition)
    names = [name for name in later_parts(store, folder, first_part) if end is None or part_number(name) < end]
    scores = read_scores(store, folder, names, [name for name in OUTLINE if name != "class_name"])
    current = pa.concat_tables(stream_manifest(store, collection, OUTLINE[:2]))
    places = pc.index_in(current["image_id"], value_set=scores["image_id"].combine_chunks())  # the first of each
    outline = scores.take(places.drop_null()).to_pandas()
    outline.insert(1, "class_name", current["class_name"].filter(places.is_valid()).to_pandas())
    return outline.assign(file=pd.Categorical.from_codes(outline["file"].to_numpy(), pd.Index(names, dtype=object)))


def read_rest(store: Store, collection: str, model: ModelVersion, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of an outline in their order and with their index, with the other columns of SCORES, and FACTS.

    An image that has gone since the outline was read is left out. mask_uri is the mask that was written, mask_uri_truth the
    ground truth.
    """
    folder, ids = model_folder(collection, model.partition), pa.array(rows["image_id"], pa.string())
    names = sorted(set(rows["file"]))
    scores = read_scores(store, folder, names, SCORES.names, ids).to_pandas().drop_duplicates("image_id")
    facts = [table.filter(pc.is_in(table["image_id"], ids)) for table in stream_manifest(store, collection, FACTS)]
    known = pa.concat_tables(facts).to_pandas(types_mapper=nullable)
    rest = known.merge(scores, on="image_id", suffixes=("_truth", "")).drop(columns=["part", "file", *OUTLINE[1:]])
    index = pd.Series(rows.index, rows["image_id"])
    whole = rows.merge(rest, on="image_id")
    return whole.set_axis(index.loc[whole["image_id"]])


def read_scores(
    store: Store, folder: tuple[str, ...], names: list[str], columns: list[str], ids: pa.Array | None = None
) -> pa.Table:
    """These columns of parts of scores, `part`, and `file`, its place in names; with `ids` only rows of these images."""

    def read(file: int, name: str) -> pa.Table:
        table = read_parquet(store, *folder, name, columns=columns, schema=SCORES)
        for column, value in (("part", part_number(name)), ("file", file)):
            table = table.append_column(column, pa.array([value] * len(table), pa.int32()))
        return table if ids is None else table.filter(pc.is_in(table["image_id"], ids))

    places = [pa.field("part", pa.int32()), pa.field("file", pa.int32())]
    empty = pa.schema([*(SCORES.field(name) for name in columns), *places]).empty_table()
    with ThreadPoolExecutor(READERS) as pool:
        return pa.concat_tables([empty, *pool.map(read, range(len(names)), names)])


def stream_scored(store: Store, collection: str, model: ModelVersion) -> Iterator[dict[str, Any]]:
    """A row a current image, part by part, each once: the columns of SCORES, of which the class is that of today, `size`,
    width and height where the manifest has them (both or none), and file_name, the URI below the folder that all images
    have in common."""
    images = CurrentImages(stream_manifest(store, collection, CurrentImages.COLUMNS))
    folder = model_folder(collection, model.partition)
    for name in store.find(*folder, suffix=".parquet"):
        for batch in read_parquet(store, *folder, name, schema=SCORES).to_batches(BATCH):
            for row in batch.to_pylist():
                if facts := images.take(row["image_id"]):
                    yield row | facts | {"file_name": row["uri"][len(images.folder) :]}


class CurrentImages:
    """The current images of a collection by their ids, in 37 bytes each; folder: what their URIs have in common."""

    COLUMNS = ("image_id", "uri", "class_name", "size", "width", "height")

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        ids, facts, bounds = Column(np.uint64), Column(np.int64), list[str]()
        classes, numbers = Column(np.int32), dict[str, int]()
        for table in tables:
            ids.add(int(image, 16) for image in table["image_id"].to_pylist())
            classes.add(numbers.setdefault(name, len(numbers)) for name in table["class_name"].to_pylist())
            columns = (table[name].to_pylist() for name in self.COLUMNS[3:])
            facts.add(value or 0 for row in zip(*columns, strict=True) for value in row)
            bounds += [found for found in pc.min_max(table["uri"]).as_py().values() if found is not None]
        unsorted = ids.joined()
        order = np.argsort(unsorted)
        self.ids, self.facts = unsorted[order], facts.joined().reshape(-1, 3)[order]
        self.classes, self.names = classes.joined()[order], list(numbers)
        self.taken = np.zeros(len(order), bool)
        self.folder = common_folder(min(bounds), max(bounds)) if bounds else ""

    def take(self, image: str) -> dict[str, Any] | None:
        """class_name, size, width, height, the first time that this image is asked for; None for one that is not current."""
        number = np.uint64(int(image, 16))
        place = int(np.searchsorted(self.ids, number))
        if place == len(self.ids) or self.ids[place] != number or self.taken[place]:
            return None
        self.taken[place] = True
        size, width, height = self.facts[place].tolist()
        class_name = self.names[self.classes[place]]
        return {"class_name": class_name, "size": size, "width": width or None, "height": height or None}


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
    folder = model_folder(collection, model.partition)
    return sum(count_rows_of(store, folder, store.find(*folder, suffix=".parquet")))


def common_folder(low: str, high: str) -> str:
    """The longest folder, with its last slash, that all URIs from `low` to `high` in their order lie in."""
    shared = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[: low.rfind("/", 0, shared) + 1]
