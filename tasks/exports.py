"""The decisions of a scored collection in the formats of other tools, as the scores table has them.

    coco          one JSON file: images, a category, and an annotation a region with its pixels as compressed RLE
    label-studio  one JSON file of tasks with predictions (rectangles), and beside it the labelling config that shows them
    lookout       JSON lines, an image each, in the shape in which Amazon Lookout for Vision answered DetectAnomalies

Coordinates are pixels of the image as a viewer shows it. Of an image without a mask the header is read for its size, but
where `ingest --probe` has done so. All is read, encoded and written image by image: memory holds a few of them, and 33 bytes
an image of the manifest.
"""

import base64
import io
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from prefect import task

from models.regions import label_regions
from tasks.errors import InputError
from tasks.images import UnreadableImage, alone_if_huge, count_pixels, decode_image, peek_header
from tasks.layouts import open_version
from tasks.progress import advance, progress
from tasks.registry import ModelVersion, bundle_config
from tasks.retries import RETRIED
from tasks.rle import compress_counts, run_lengths
from tasks.scored import count_scored, stream_scored
from tasks.shards import model_folder
from tasks.store import Store, read_uri

ExportFormat = Literal["coco", "label-studio", "lookout"]
FILES: dict[ExportFormat, str] = {"coco": "coco.json", "label-studio": "tasks.json", "lookout": "lookout.jsonl"}
READERS = 16  # threads that read masks and encode
BATCH = 256  # images in these threads' queue
WHITE, RED = (255, 255, 255), (214, 39, 40)  # background and anomaly in the masks of Lookout's shape
FACTS = ("class_name", "score", "decision", "threshold", "p_value")  # of the scores table, for every image
LABELLING_CONFIG = """\
<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="region" toName="image"><Label value="anomaly"/></RectangleLabels>
  <Choices name="decision" toName="image" choice="single"><Choice value="normal"/><Choice value="anomalous"/></Choices>
</View>
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class ExportSummary:
    """Counts of images; undecided: scored while nothing was calibrated; output: URI of the file."""

    collection: str
    model: str
    format: str
    output: str
    images: int
    anomalous: int
    undecided: int
    unreadable: int
    regions: int


class Item(NamedTuple):
    """A row of the scores table with its mask, where it has one, and (height, width), None where they cannot be known."""

    row: Row
    mask: NDArray[np.bool_] | None
    size: tuple[int, int] | None
    peak_scale: float  # the highest value that a map can have

    def region_score(self, region: Row) -> float:
        """The region's highest abnormal probability, in [0, 1]."""
        return float(region["peak"]) / self.peak_scale


@task(name="export", task_run_name="export {collection}", **RETRIED)
def export_collection(
    store: str, collection: str, model: ModelVersion, format: ExportFormat, output: str | None = None
) -> ExportSummary:
    """Write what this model has said of a collection's current images; InputError where it has said nothing."""
    if format not in FILES:
        raise InputError(f"there is no format {format!r}: choose one of {', '.join(get_args(ExportFormat))}")
    source = Store(store)
    folder, name = destination(source, collection, model, format, output)
    peak_scale = float(len(bundle_config(source, model).feature_layers))
    counts: Counter[str] = Counter()
    rows = counted(stream_scored(source, collection, model), counts)
    total = count_scored(source, collection, model)
    with tempfile.NamedTemporaryFile("wb", prefix="anomalyclip-") as file, progress("export", total):
        encoded = encode_all(rows, partial(ENCODERS[format], model), peak_scale)
        WRITERS[format](file, encoded)
        file.flush()
        if not counts["images"]:
            raise InputError(f"{model.uri} has scored nothing of {collection!r}: run `anomalyclip score` first")
        uri = folder.upload(Path(file.name), name)
    if format == "label-studio":
        folder.write(LABELLING_CONFIG.encode(), f"{name.rpartition('.')[0] or name}.xml")
    named = {name: counts[name] for name in ("images", "anomalous", "undecided", "unreadable", "regions")}
    return ExportSummary(collection, model.uri, format, uri, **named)


def destination(
    store: Store, collection: str, model: ModelVersion, format: ExportFormat, output: str | None
) -> tuple[Store, str]:
    """The folder and the name of the file; by default a place in the store."""
    if output is None:
        return Store(store.uri_of(*model_folder(collection, model.partition, "exports"))), FILES[format]
    remote = "://" in output
    folder, _, name = (output if remote else str(Path(output).absolute())).rpartition("/")
    if not name or output.endswith("/") or folder.endswith(":/") or (not remote and Path(output).is_dir()):
        raise InputError(
            f"{output!r} is a folder: name the file to write, e.g. {output.rstrip('/') or '.'}/{FILES[format]}"
        )
    return Store(folder or "/"), name


def counted(rows: Iterable[Row], counts: "Counter[str]") -> Iterator[Row]:
    for row in rows:
        counts["images"] += 1
        counts["unreadable"] += row["error_kind"] is not None
        counts["anomalous"] += row["decision"] == "anomalous"
        counts["undecided"] += row["score"] is not None and row["decision"] is None
        counts["regions"] += len(row["regions"] or ())
        yield row


# --- reading ----------------------------------------------------------------------------------------------------------


def encode_all(rows: Iterable[Row], encode: Callable[[Item], Row], peak_scale: float) -> Iterator[Row]:
    """What `encode` makes of each row, in order; masks live only in the threads that read them."""
    with ThreadPoolExecutor(READERS) as pool:
        batch: list[Row] = []
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH:
                yield from pool.map(lambda row: encode_row(row, encode, peak_scale), batch)
                batch.clear()
        yield from pool.map(lambda row: encode_row(row, encode, peak_scale), batch)


def encode_row(row: Row, encode: Callable[[Item], Row], peak_scale: float) -> Row:
    advance()
    if row["mask_uri"] is None:
        item = without_mask(row, peak_scale)
        with alone_if_huge(item.size[0] * item.size[1] if item.size else 0):
            return encode(item)
    data = read_written_mask(row["mask_uri"])
    try:
        with alone_if_huge(count_pixels(data)):
            mask = np.asarray(decode_image(data)) > 0
            return encode(Item(row, mask, (mask.shape[0], mask.shape[1]), peak_scale))
    except UnreadableImage as error:
        raise InputError(
            f"the mask {row['mask_uri']} is damaged ({error}): delete the scores of its model, and score again"
        ) from error


def read_written_mask(uri: str) -> bytes:
    try:
        return read_uri(uri)
    except FileNotFoundError:
        raise InputError(f"the mask {uri} was removed from the store: its image cannot be exported") from None


def without_mask(row: Row, peak_scale: float) -> Item:
    """The size is the manifest's, else the image's own; one that is gone or changed by now becomes a row that says so."""
    if row["error_kind"] is not None or row["width"] is not None:
        size = None if row["width"] is None else (row["height"], row["width"])
        return Item(row, None, size, peak_scale)
    try:
        with open_version(row) as file:
            header = peek_header(file)
        return Item(row, None, (header.height, header.width), peak_scale)
    except UnreadableImage as error:
        return Item(row | {"error_kind": error.kind, "error_detail": error.detail}, None, None, peak_scale)


# --- COCO -------------------------------------------------------------------------------------------------------------


def encode_coco(model: ModelVersion, item: Item) -> Row:
    """An image with its annotations, which lack the numbers; `unreadable` where there is none to annotate."""
    row = item.row
    name = {"file_name": row["file_name"], "coco_url": row["uri"]}
    if item.size is None or row["error_kind"] is not None:
        return {"unreadable": name | {"error_kind": row["error_kind"], "error_detail": row["error_detail"]}}
    image = name | {"height": item.size[0], "width": item.size[1], "model": model.partition}
    image |= {fact: row[fact] for fact in FACTS}
    return {"image": image, "annotations": [] if item.mask is None else coco_regions(item, item.mask)}


def coco_regions(item: Item, mask: NDArray[np.bool_]) -> list[Row]:
    """An annotation a region, in the order of the table; two regions never share a box (see label_regions)."""
    labels, boxes = label_regions(mask)
    places = {box: number for number, box in enumerate(boxes, start=1)}
    annotations = []
    for region in item.row["regions"]:
        x, y, w, h = box = region["x"], region["y"], region["w"], region["h"]
        if box not in places:
            raise InputError(f"the mask {item.row['mask_uri']} is not the one that the scores were written with")
        inside = labels[y : y + h, x : x + w] == places[box]
        counts = compress_counts(run_lengths(inside, x, y, mask.shape[0], mask.shape[1]))
        annotations.append(
            {"category_id": 1, "bbox": list(box), "area": region["area"], "iscrowd": 0,
             "segmentation": {"size": list(mask.shape), "counts": counts}, "score": item.region_score(region)}
        )  # fmt: skip
    return annotations


def write_coco(file: IO[bytes], encoded: Iterable[Row]) -> None:
    with ExitStack() as stack:
        images, annotations, unreadable = (JsonArray(stack.enter_context(tempfile.TemporaryFile())) for _ in range(3))
        for item in encoded:
            if "unreadable" in item:
                unreadable.append(item["unreadable"])
                continue
            images.append({"id": images.length + 1} | item["image"])
            for annotation in item["annotations"]:
                annotations.append({"id": annotations.length + 1, "image_id": images.length} | annotation)
        categories = json.dumps([{"id": 1, "name": "anomaly", "supercategory": "anomaly"}])
        file.write(f'{{"info": {{"description": "AnomalyCLIP"}},\n"categories": {categories}'.encode())
        for name, array in (("images", images), ("annotations", annotations), ("unreadable", unreadable)):
            file.write(f',\n"{name}": '.encode())
            array.copy_to(file)
        file.write(b"}\n")


class JsonArray:
    """A JSON array that grows in a file, a line a value."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.length = file, 0

    def append(self, value: Any) -> None:
        self.file.write(b",\n" if self.length else b"[\n")
        self.file.write(json.dumps(value).encode())
        self.length += 1

    def close(self) -> None:
        self.file.write(b"\n]" if self.length else b"[]")

    def copy_to(self, file: IO[bytes]) -> None:
        self.close()
        self.file.seek(0)
        shutil.copyfileobj(self.file, file)


# --- Label Studio -----------------------------------------------------------------------------------------------------


def encode_label_studio(model: ModelVersion, item: Item) -> Row:
    """A task; what cannot be read is one, too, with its reason and without a prediction."""
    row = item.row
    data = {"image": row["uri"], **{fact: row[fact] for fact in FACTS}, "mask": row["mask_uri"]}
    if row["score"] is None:
        return {"data": data | {"error": f"{row['error_kind']}: {row['error_detail']}"}, "predictions": []}
    result = [rectangle(item, number, region) for number, region in enumerate(row["regions"] or ())]
    if row["decision"]:
        choice = {"from_name": "decision", "to_name": "image", "type": "choices"}
        result.append({"id": f"{row['image_id']}-decision", **choice, "value": {"choices": [row["decision"]]}})
    return {"data": data, "predictions": [{"model_version": model.partition, "score": row["score"], "result": result}]}


def rectangle(item: Item, number: int, region: Row) -> Row:
    """x, y, width and height are in percent of the image."""
    assert item.size, "an image with regions has a mask"
    height, width = item.size
    value = {"x": 100 * region["x"] / width, "y": 100 * region["y"] / height, "width": 100 * region["w"] / width,
             "height": 100 * region["h"] / height, "rotation": 0, "rectanglelabels": ["anomaly"]}  # fmt: skip
    return {
        "id": f"{item.row['image_id']}-{number}", "from_name": "region", "to_name": "image", "type": "rectanglelabels",
        "original_width": width, "original_height": height, "image_rotation": 0, "score": item.region_score(region),
        "value": value,
    }  # fmt: skip


def write_label_studio(file: IO[bytes], encoded: Iterable[Row]) -> None:
    array = JsonArray(file)
    for item in encoded:
        array.append(item)
    array.close()


# --- Lookout for Vision -----------------------------------------------------------------------------------------------


def encode_lookout(model: ModelVersion, item: Item) -> Row:
    """An answer of DetectAnomalies, or an error as boto has it, beside the image that it is about.

    Confidence is that of the decision: the score of an anomalous image, 1 - score of a normal one. Both are null while
    nothing is calibrated. TotalPercentageArea is a share of 1, as it was there. The background comes first.
    """
    row = item.row
    about = {"Image": row["uri"], "ModelVersion": model.partition, "Score": row["score"]}
    if row["score"] is None:
        return about | {"Error": {"Code": row["error_kind"], "Message": row["error_detail"]}}
    anomalous = {"anomalous": True, "normal": False}.get(row["decision"])
    confidence = None if anomalous is None else row["score"] if anomalous else 1 - row["score"]
    share = 0.0 if item.mask is None else float(item.mask.mean())
    anomalies = [lookout_anomaly("background", 1 - share, WHITE)]
    if share:
        anomalies.append(lookout_anomaly("anomaly", share, RED))
    result = {"Source": {"Type": "direct"}, "IsAnomalous": anomalous, "Confidence": confidence, "Anomalies": anomalies}
    if item.size:
        mask = np.zeros(item.size, bool) if item.mask is None else item.mask
        result["AnomalyMask"] = base64.b64encode(lookout_mask(mask)).decode()
    return about | {"DetectAnomalyResult": result}


def lookout_anomaly(name: str, share: float, colour: tuple[int, int, int]) -> Row:
    pixels = {"TotalPercentageArea": share, "Color": "#{:02X}{:02X}{:02X}".format(*colour)}
    return {"Name": name, "PixelAnomaly": pixels}


def lookout_mask(mask: NDArray[np.bool_]) -> bytes:
    """PNG in the colours of WHITE and RED."""
    image, buffer = Image.fromarray(mask.astype(np.uint8), mode="P"), io.BytesIO()
    image.putpalette([*WHITE, *RED])
    image.save(buffer, format="PNG", bits=1)
    return buffer.getvalue()


def write_lookout(file: IO[bytes], encoded: Iterable[Row]) -> None:
    for item in encoded:
        file.write(json.dumps(item).encode() + b"\n")


ENCODERS: dict[ExportFormat, Callable[[ModelVersion, Item], Row]] = {
    "coco": encode_coco, "label-studio": encode_label_studio, "lookout": encode_lookout,
}  # fmt: skip
WRITERS: dict[ExportFormat, Callable[[IO[bytes], Iterable[Row]], None]] = {
    "coco": write_coco, "label-studio": write_label_studio, "lookout": write_lookout,
}  # fmt: skip
