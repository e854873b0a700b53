"""A registered version as an MLflow pyfunc: a data frame of images in; score, decision, regions and mask out.

Column `image`: bytes; base64, also as a data URI; a URI of any store that fsspec knows, or a path. Column `class_name` where
thresholds are by class. A bad image is a row with `error_kind` and `error_detail`, as in the tables of the flows, whose
scores these are.

What may be read. Whoever loads the model in a process of their own reads with their own rights. A server reads for
strangers: `mlflow models serve` takes bytes alone, unless ANOMALYCLIP_IMAGE_ROOTS names folders or URIs, separated by
commas, below which images may be read. Where that is set it holds everywhere. Links and `..` lead out of no root.

Decisions need thresholds: ANOMALYCLIP_THRESHOLDS is the URI of the file that `anomalyclip calibrate` has written, else they
are the bundle's own threshold.json. Without either, `decision` is null and masks are cut at half of the map's scale.
"""

import base64
import binascii
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd
from fsspec.core import split_protocol
from mlflow.pyfunc import PythonModel

from tasks.errors import InputError
from tasks.images import UnreadableImage
from tasks.pixels import Pixels, prepare_pixels
from tasks.registry import ModelVersion, open_detector, resolve_model
from tasks.scoring import ScoredImage, cut_mask, map_threshold, score_rows
from tasks.store import Store, open_filesystem, read_uri
from tasks.thresholds import Calibration, bundle_calibration, cut_at, decide, read_calibration

IMAGE_ROOTS = "ANOMALYCLIP_IMAGE_ROOTS"
THRESHOLDS = "ANOMALYCLIP_THRESHOLDS"
SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"  # MLflow's scoring server sets it
COLUMNS = ["score", "decision", "threshold", "p_value", "regions", "mask", "error_kind", "error_detail"]
READERS = 8
Row = dict[str, Any]


class ServedModel(PythonModel):
    """bundle: the folder of a bundle, which is read when MLflow calls load_context."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle

    def load_context(self, context: Any) -> None:
        nowhere = Store(str(self.bundle))  # the folder of a bundle needs no store
        model = resolve_model(nowhere, str(self.bundle))
        self.detector = open_detector(nowhere, model)
        self.calibration = find_thresholds(nowhere, model)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A row an image, in order: COLUMNS; `mask` is a PNG as base64, null where nothing exceeds the threshold."""
        names = model_input["class_name"] if "class_name" in model_input else [self.only_class()] * len(model_input)
        rows = [{"image": i, "class_name": name} for i, name in zip(model_input["image"], names, strict=True)]
        with ThreadPoolExecutor(READERS) as readers:
            results = list(score_rows(self.detector, rows, readers, load_given))
        found = [self.answer(row, result) for row, result in results]
        return pd.DataFrame(found, index=model_input.index, columns=COLUMNS, dtype=object)

    def only_class(self) -> str | None:
        classes = list(self.calibration.thresholds.classes) if self.calibration else []
        return classes[0] if len(classes) == 1 else None

    def answer(self, row: Row, result: ScoredImage | UnreadableImage) -> Row:
        if isinstance(result, UnreadableImage):
            return dict.fromkeys(COLUMNS) | {"error_kind": result.kind, "error_detail": result.detail}
        config, class_name = self.detector.config, row["class_name"]
        threshold = cut_at(self.calibration, class_name, map_threshold(config))
        png, regions = cut_mask(result, config.image_size, config.sigma, threshold)
        mask = base64.b64encode(png).decode() if png else None
        return (
            dict.fromkeys(COLUMNS)
            | {"score": result.score, "regions": regions, "mask": mask}
            | decide(self.calibration, class_name, result.score)
        )


def find_thresholds(store: Store, model: ModelVersion) -> Calibration | None:
    """InputError where those that the environment names are of another bundle."""
    uri = os.environ.get(THRESHOLDS)
    if not uri:
        return bundle_calibration(store, model)
    folder, _, name = uri.rpartition("/")
    calibration = read_calibration(Store(folder or ("/" if uri.startswith("/") else ".")), name=name)
    if calibration.thresholds.bundle_digest != model.digest:
        raise InputError(f"{THRESHOLDS}={uri} are the thresholds of {calibration.thresholds.model}, another bundle")
    return calibration


def load_given(row: Row, image_size: int) -> Pixels | UnreadableImage:
    try:
        return prepare_pixels(given_bytes(row["image"]), image_size)
    except UnreadableImage as error:
        return error


def given_bytes(image: Any) -> bytes:
    """The bytes of what stands in the column `image`; raises UnreadableImage."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if not isinstance(image, str):
        raise UnreadableImage("unsupported", f"an image is bytes, base64 or a URI, this is {type(image).__name__}")
    content = image.partition(";base64,")[2] if image.startswith("data:") else image
    try:
        return base64.b64decode(re.sub(r"[\r\n]", "", content), validate=True)
    except (binascii.Error, ValueError):
        return read_allowed(image)


def read_allowed(uri: str) -> bytes:
    try:
        if may_read(uri):
            return read_uri(uri)
    except FileNotFoundError:
        raise UnreadableImage("missing", f"there is no {uri}") from None
    except MemoryError:
        raise
    except Exception as error:  # of whatever library the URI leads to: the other images have their answers
        raise UnreadableImage("unreadable", f"{type(error).__name__}: {error}") from error
    raise UnreadableImage("forbidden", f"images are read only from where {IMAGE_ROOTS} says; send bytes as base64")


def may_read(uri: str) -> bool:
    roots = os.environ.get(IMAGE_ROOTS)
    if roots is None:
        return os.environ.get(SERVING, "").lower() not in ("true", "1")
    return any(is_below(uri, root.strip()) for root in roots.split(",") if root.strip())


def is_below(uri: str, root: str) -> bool:
    """Files by where they really are; everything else by its name, which then may hold no `..`."""
    if is_local(uri) or is_local(root):
        return is_local(uri) and is_local(root) and real_path(uri).is_relative_to(real_path(root))
    return uri.startswith(root.rstrip("/") + "/") and ".." not in re.split(r"[/\\]", unquote(uri))


def is_local(uri: str) -> bool:
    return split_protocol(uri)[0] in (None, "file", "local")


def real_path(uri: str) -> Path:
    """What open_filesystem reads: `..` goes by the name, then links are followed."""
    return Path(open_filesystem(uri)[1]).resolve()
