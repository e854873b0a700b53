"""How a folder or a bucket tells what its images are: class, split, label and ground truth.

    flat      any images, no labels
    folders   …/<class>/<state>/image: the last folder is the state, `good`, `normal` and `ok` are normal, others defects
    labels    a CSV or JSON file of image, label, mask (and class, split, defect_type), paths relative to it
    meta      the meta.json of the published code: split, class, and rows of image, mask, kind and label
    mvtec …   the 17 data sets of the paper as their publishers ship them: tasks.layouts.datasets

A layout reads the listing of a source and gives entries; it opens no image, and no mask but where only the mask's pixels
tell the label. Masks are paired by name. `flat` and `folders` stream, all others need the whole listing in memory.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain

from tasks.errors import InputError
from tasks.layouts.datasets import DATASETS, find_datasets
from tasks.layouts.generic import flat, folders
from tasks.layouts.published import DataSet, Form, read_dataset
from tasks.layouts.source import RANGE, Entry, Source, StoredObject, open_version, read_version
from tasks.layouts.tables import labels, meta

__all__ = [
    "DATASETS", "LAYOUTS", "RANGE", "DataSet", "Entry", "Form", "Source", "StoredObject", "find_datasets",
    "open_version", "read_layout", "read_version", "stream_layout",
]  # fmt: skip

LAYOUTS: dict[str, Callable[[str, str], tuple[str, Iterable[Entry]]]] = {
    "flat": flat,
    "folders": folders,
    "labels": labels,
    "meta": meta,
    **{name: partial(read_dataset, dataset) for name, dataset in DATASETS.items()},
}


def stream_layout(uri: str, layout: str, collection: str) -> tuple[str, Iterator[Entry]]:
    """URI of the source, and its images as they are listed; InputError where the source or the layout does not fit."""
    if layout not in LAYOUTS:
        raise InputError(f"there is no layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    source_uri, entries = LAYOUTS[layout](uri, collection)
    entries = iter(entries)
    for first in entries:
        return source_uri, chain([first], entries)
    raise InputError(f"the source {uri!r} holds no image in the layout {layout!r}")


def read_layout(uri: str, layout: str, collection: str) -> tuple[str, list[Entry]]:
    """The same, with all images in memory."""
    source_uri, entries = stream_layout(uri, layout, collection)
    return source_uri, list(entries)
