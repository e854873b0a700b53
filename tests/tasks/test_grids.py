"""Patch grids are read once, part by part, for the images that are asked for."""

import numpy as np
import pandas as pd
import pytest

from tasks.errors import InputError
from tasks.grids import read_grids, spilled_grids
from tasks.registry import ModelVersion
from tasks.shards import model_folder
from tasks.store import Store
from tasks.tables import MAPS, to_parquet, to_table


@pytest.fixture
def grids(store: Store, model: ModelVersion) -> dict[str, np.ndarray]:
    """Of two sizes, in two parts that share an image."""
    rng = np.random.default_rng(0)
    made = {f"i{n}": rng.random((3 + n % 2, 4), np.float32) for n in range(5)}
    for part, images in (("a", ("i0", "i1", "i2")), ("b", ("i2", "i3", "i4"))):
        rows = [
            {"image_id": i, "rows": made[i].shape[0], "cols": 4, "values": made[i].astype("<f4").tobytes()}
            for i in images
        ]
        data = to_parquet(to_table(rows, MAPS))
        store.write(data, *model_folder("parts", model.partition, "maps"), f"part-00000-{part}-4-00000.parquet")
    return made


def test_a_few_grids_are_read_by_their_ids(store: Store, model: ModelVersion, grids: dict[str, np.ndarray]) -> None:
    """Of the files that hold them alone; what has no map, or no file of maps, is left out."""
    store.write(b"no Parquet", *model_folder("parts", model.partition, "maps"), "part-00001-c-4-00000.parquet")
    a, b, gone = (f"part-0000{n}-{key}-4-00000.parquet" for n, key in ((0, "a"), (0, "b"), (2, "d")))
    rows = pd.DataFrame({"image_id": ["i4", "i2", "no such image", "i0"], "file": [b, a, b, gone]})
    found = read_grids(store, "parts", model, rows)
    assert sorted(found) == ["i2", "i4"]
    for image in found:
        np.testing.assert_array_equal(found[image], grids[image])


def test_spilled_grids_are_those_of_the_store_in_any_order(
    store: Store, model: ModelVersion, grids: dict[str, np.ndarray]
) -> None:
    with spilled_grids(store, "parts", model, grids) as found:
        for image in ("i3", "i0", "i4", "i2", "i1", "i0"):
            np.testing.assert_array_equal(found[image], grids[image])


def test_a_missing_map_is_named(store: Store, model: ModelVersion, grids: dict[str, np.ndarray]) -> None:
    with (
        spilled_grids(store, "parts", model, ["i1"]) as found,
        pytest.raises(InputError, match="no map of the image i9"),
    ):
        found["i9"]
