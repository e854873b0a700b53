"""What a model has scored of a collection, image by image, with what the manifest knows of it."""

import pandas as pd
import pyarrow as pa

from tasks.manifest import read_manifest
from tasks.registry import ModelVersion
from tasks.scoring import part_number, scores_folder
from tasks.store import Store
from tasks.tables import SCORES, read_parquet

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
    facts = read_manifest(store, collection).rows[FACTS]
    return facts.merge(scores.drop_duplicates("image_id"), on="image_id", suffixes=("_truth", ""))
