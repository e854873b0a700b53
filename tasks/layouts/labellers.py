"""What tells the label where no folder does: a mask's name, a mask's pixels, or a table of the publisher."""

import csv
import io
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from tasks.errors import InputError
from tasks.images import read_mask
from tasks.layouts.published import Pair, Truth
from tasks.layouts.source import Source, StoredObject
from tasks.store import read_uri

READERS = 16  # concurrent reads of masks


def by_mask_pixels(source: Source, pairs: Sequence[Pair]) -> list[Truth | None]:
    """Every image has a mask; that of a normal one is black. Raises InputError where an image has none."""
    for image, mask in pairs:
        if mask is None:
            raise InputError(f"the image {image.object.name!r} has no mask of its name in {source.uri!r}")
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda pair: Truth(int(is_marked(pair[1]))), pairs))


def is_marked(mask: StoredObject | None) -> bool:
    return mask is not None and read_mask(mask.uri).convert("L").getbbox() is not None


def by_mask_name(source: Source, pairs: Sequence[Pair]) -> list[Truth | None]:
    """An image is anomalous if it has a mask, or if a `Label/Labels.txt` beside it says that it has one."""
    listed = {
        str(PurePosixPath(found.name).parent.parent / stem)
        for found in named(source, "labels.txt")
        for stem in re.findall(r"(\d+)_label\.png", read_text(found), re.IGNORECASE)
    }
    return [Truth(int(mask is not None or stem_of(image.object) in listed)) for image, mask in pairs]


def by_split_csv(source: Source, pairs: Sequence[Pair]) -> list[Truth | None]:
    """VisA's `split_csv/1cls.csv` (object, split, label, image, mask); what it does not name is not part of the set."""
    tables = top([found for found in named(source, "1cls.csv") if "split_csv" in PurePosixPath(found.name).parts])
    if len(tables) != 1:
        raise InputError(f"{source.uri!r} must hold one split_csv/1cls.csv, it has {len(tables)}")
    root = PurePosixPath(tables[0].name).parent.parent
    truths = {
        str(root / row["image"]): Truth(int(row["label"] == "anomaly"), row["split"])
        for row in read_csv(tables[0], "image", "label", "split")
    }
    images = {image.object.name for image, _ in pairs}
    classes = {str(root / str(image.place["class_name"])) for image, _ in pairs}
    for name in truths:
        if name not in images and any(name.startswith(f"{class_name}/") for class_name in classes):
            raise InputError(f"{tables[0].name!r} names {name!r}, which does not exist in {source.uri!r}")
    return [truths.get(image.object.name) for image, _ in pairs]


def by_hemorrhage_csv(source: Source, pairs: Sequence[Pair]) -> list[Truth | None]:
    """Head CT's `labels.csv` (id, hemorrhage); an image's name is its number."""
    tables = top(named(source, "labels.csv"))
    if len(tables) != 1:
        raise InputError(f"{source.uri!r} must hold one labels.csv, it has {len(tables)}")
    truths = {row["id"].zfill(3): row["hemorrhage"] for row in read_csv(tables[0], "id", "hemorrhage")}
    stems = [str(image.place["stem"]) for image, _ in pairs]
    for (image, _), stem in zip(pairs, stems, strict=True):
        if truths.get(stem) not in ("0", "1"):
            raise InputError(f"{tables[0].name!r} does not say 0 or 1 of the image {image.object.name!r}")
    if missing := truths.keys() - set(stems):
        raise InputError(
            f"{tables[0].name!r} has the id {min(missing)!r}, of which there is no image in {source.uri!r}"
        )
    return [Truth(int(truths[stem])) for stem in stems]


# --- reading ----------------------------------------------------------------------------------------------------------


def named(source: Source, name: str) -> list[StoredObject]:
    return [found for found in source.objects.values() if PurePosixPath(found.name).name.lower() == name]


def top(tables: Sequence[StoredObject]) -> list[StoredObject]:
    """Those that are least deep: copies of a set lie further down."""
    least = min((table.name.count("/") for table in tables), default=0)
    return [table for table in tables if table.name.count("/") == least]


def stem_of(found: StoredObject) -> str:
    return str(PurePosixPath(found.name).with_suffix(""))


def read_text(found: StoredObject) -> str:
    try:
        return read_uri(found.uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{found.uri!r} cannot be read as text: {error}") from error


def read_csv(found: StoredObject, *columns: str) -> list[dict[str, str]]:
    """Rows with these columns, names and values without spaces around them; raises InputError where one is missing."""
    lines = [[cell.strip() for cell in line] for line in csv.reader(io.StringIO(read_text(found))) if line]
    head, rows = (lines[0], lines[1:]) if lines else ([], [])
    if not set(columns) <= set(head):
        raise InputError(
            f"{found.name!r} must have the columns {', '.join(columns)}; it has {', '.join(head) or 'none'}"
        )
    for row in rows:
        if len(row) != len(head):
            raise InputError(
                f"{found.name!r} has a row of {len(row)} cells below {len(head)} columns: {','.join(row)!r}"
            )
    return [dict(zip(head, row, strict=True)) for row in rows]
