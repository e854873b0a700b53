"""What a model has scored of a collection, image by image, with what the manifest knows of it."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks.manifest import nullable, read_manifest, records, stream_manifest
from tasks.registry import ModelVersion
from tasks.scoring import part_number, scores_folder
from tasks.store import Store
from tasks.tables import SCORES, count_rows, read_parquet

BATCH = 256  # rows
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
    """A row a current image, part by part, each once: the columns of SCORES, width and height where the manifest has them
    (both or none), and file_name, the URI below the folder that all images have in common."""
    columns = ["image_id", "uri", "width", "height"]
    known = read_manifest(store, collection, columns).rows[columns]
    root = common_folder(known["uri"])
    sizes = {row.pop("image_id"): row for row in records(known)}
    folder = scores_folder(collection, model.partition)
    for name in store.find(*folder, suffix=".parquet"):
        for batch in read_parquet(store, *folder, name, schema=SCORES).to_batches(BATCH):
            for row in batch.to_pylist():
                if size := sizes.pop(row["image_id"], None):
                    yield row | size | {"file_name": row["uri"][len(root) :]}


def count_scored(store: Store, collection: str, model: ModelVersion) -> int:
    """Rows of all parts, those of images that are gone by now among them."""
    folder = scores_folder(collection, model.partition)
    return sum(count_rows(store, *folder, name) for name in store.find(*folder, suffix=".parquet"))


def common_folder(uris: "pd.Series[str]") -> str:
    """The longest folder, with its last slash, that all of these lie in."""
    low, high = str(uris.min()), str(uris.max())  # what these two share is shared by all between
    shared = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[: low.rfind("/", 0, shared) + 1]
