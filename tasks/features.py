"""Training material from labelled collections, and its features, computed once.

The vision tower is frozen and there is no augmentation, so its features serve every epoch and every later training. They lie
memory-mapped in a cache folder whose name is a digest of all that they depend on.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from prefect import task

from models.backbone import Backbone
from models.detector import resolve_device
from models.preprocess import normalise, preprocess_mask
from models.stream import send
from models.training import Features, extract_features
from tasks.backbones import Geometry, kept_backbone
from tasks.errors import InputError
from tasks.images import UnreadableImage, read_mask
from tasks.manifest import labelled_test_rows, read_manifest, records
from tasks.pixels import READERS, Pixels, read_ahead
from tasks.progress import advance, progress
from tasks.retries import RETRIED
from tasks.store import CACHE, Store, to_disk

log = logging.getLogger(__name__)
BATCH = 8  # images a pass of the tower
ABANDONED = 86_400  # seconds
PASSING = (
    "missing",
    "changed",
    "unreadable",
    "forbidden",
)  # what keeps an image from being read today and not tomorrow


@task(name="compute features", **RETRIED)
def compute_features(store: str, collections: list[str], backbone: str, geometry: Geometry) -> str:
    """Run the vision tower once over the labelled images; returns the key of the cached features."""
    material = training_material(Store(store), collections)
    clip = kept_backbone(backbone, geometry.image_size).to(resolve_device("auto"))
    key = feature_key(material, clip, geometry)
    with progress("features", len(material.rows)):
        cache_features(cache_folder(Store(store)) / "features" / key, material, clip, geometry)
    return key


def cache_folder(store: Store) -> Path:
    """Where this machine keeps what can be computed again: under a local store, else in the user's cache."""
    return store.local_root / "cache" if store.local_root else CACHE


@dataclass(frozen=True)
class Material:
    """Labelled rows of one or more collections, in a fixed order, and the digests of their manifests."""

    rows: list[dict[str, Any]]
    digests: list[str]


def training_material(store: Store, collections: Sequence[str]) -> Material:
    """The labelled images of the collections that the published protocol trains on (see labelled_test_rows)."""
    if len(set(collections)) < len(collections):
        raise InputError(f"a collection is named twice: {', '.join(collections)}")
    manifests = [read_manifest(store, name, labelled=True) for name in collections]
    rows = pd.concat([labelled_test_rows(manifest.rows) for manifest in manifests])
    if not ((rows["label"] == 0).any() and (rows["label"] == 1).any()):
        raise InputError(
            f"training needs labelled normal and anomalous images; {', '.join(collections)} has "
            f"{int((rows['label'] == 0).sum())} normal and {int((rows['label'] == 1).sum())} anomalous ones"
        )
    return Material(list(records(rows)), [manifest.digest for manifest in manifests])


@dataclass(frozen=True)
class CachedFeatures:
    """What training reads, memory-mapped: features of N images, masks (N, S, S), labels, has_mask and classes (N,).

    usable: the indices of the images that could be read; the rows of the others are zero. digests: of the manifests that
    listed them, one a collection.
    """

    features: Features
    masks: torch.Tensor
    labels: torch.Tensor
    has_mask: torch.Tensor
    usable: torch.Tensor
    classes: np.ndarray
    digests: list[str]


def feature_key(material: Material, backbone: Backbone, geometry: Geometry) -> str:
    facts = [
        material.digests,
        backbone.weights_sha256,
        geometry.image_size,
        geometry.feature_layers,
        geometry.dpam_layers,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def cache_features(folder: Path, material: Material, backbone: Backbone, geometry: Geometry) -> None:
    """Compute the features of all images but broken ones into a folder, which appears when it is complete.

    Raises InputError where an image is out of reach: the key does not say which were, and every later training would take
    the folder for the whole.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder.parent)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        usable = write_features(partial, material.rows, backbone, geometry)
        if not usable.any():
            raise InputError("none of the labelled images can be read")
        masked = any(row["mask_uri"] for row in material.rows)  # else the image loss alone is trained
        np.save(partial / "classes.npy", np.array([row["class_name"] for row in material.rows], str))
        np.save(partial / "digests.npy", np.array(material.digests, str))
        np.save(partial / "usable.npy", np.flatnonzero(usable))
        np.save(partial / "labels.npy", np.array([row["label"] for row in material.rows], np.int8))
        np.save(
            partial / "has_mask.npy", [masked and (not row["label"] or bool(row["mask_uri"])) for row in material.rows]
        )
        publish_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """What runs that were killed a day ago or earlier had written by then."""
    for partial in parent.glob("*.tmp"):
        with suppress(FileNotFoundError):  # another run was first
            if time.time() - partial.stat().st_mtime > ABANDONED:
                shutil.rmtree(partial, ignore_errors=True)


def publish_folder(partial: Path, folder: Path) -> None:
    for path in partial.iterdir():
        to_disk(path)
    try:
        partial.rename(folder)
    except OSError:
        if not folder.exists():  # else another run was first, with the same content
            raise


def write_features(folder: Path, rows: list[dict[str, Any]], backbone: Backbone, geometry: Geometry) -> np.ndarray:
    """Features and masks of the rows in .npy files; returns which rows could be read, (N,) bool."""
    usable = np.zeros(len(rows), bool)
    files: dict[str, RowsFile] = {}
    slices = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    with ThreadPoolExecutor(READERS) as readers, ExitStack() as opened:
        for number, images in enumerate(read_ahead(readers, slices, geometry.image_size)):
            good = [number * BATCH + i for i, image in enumerate(images) if isinstance(image, Pixels)]
            for row, image in zip(slices[number], images, strict=True):
                if isinstance(image, UnreadableImage) and image.kind in PASSING:
                    raise InputError(
                        f"training needs {row['uri']}, which cannot be read now ({image}): repair that; where it was "
                        "deleted or changed, `anomalyclip ingest` notes it; a broken link has to go"
                    )
                if isinstance(image, UnreadableImage):
                    log.warning("left out of training: %s (%s)", row["uri"], image)
            if good:
                pixels = torch.from_numpy(np.stack([image.square for image in images if isinstance(image, Pixels)]))
                prepared = normalise(send(pixels, backbone.positions.device))
                features = extract_features(backbone, prepared, geometry.feature_layers, geometry.dpam_layers)
                arrays = {f"patches-{i}": layer.numpy() for i, layer in enumerate(features.patches)}
                arrays["image"] = features.image.numpy()
                arrays["masks"] = np.stack([load_mask(rows[i], geometry) for i in good])
                for name, array in arrays.items():
                    if name not in files:
                        files[name] = opened.enter_context(RowsFile(folder / f"{name}.npy", len(rows), array))
                    files[name].write(good, array)
                usable[good] = True
            os.utime(folder)  # see remove_abandoned
            advance(len(images))
    return usable


class RowsFile:
    """An .npy file of n rows like those of an array, zero where none is written.

    Not a memory map: a full disk is an error here, and there the end of the process.
    """

    def __init__(self, path: Path, n: int, like: np.ndarray) -> None:
        self.file, self.size = path.open("wb"), like[0].nbytes
        header = {"descr": like.dtype.str, "fortran_order": False, "shape": (n, *like.shape[1:])}
        np.lib.format.write_array_header_2_0(self.file, header)
        self.begin = self.file.tell()
        self.file.truncate(self.begin + n * self.size)

    def write(self, numbers: Sequence[int], rows: np.ndarray) -> None:
        for number, row in zip(numbers, rows, strict=True):
            self.file.seek(self.begin + number * self.size)
            self.file.write(row.tobytes())

    def __enter__(self) -> "RowsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def load_mask(row: dict[str, Any], geometry: Geometry) -> np.ndarray:
    """(S, S) uint8 ground truth of the published protocol; zeros where there is none."""
    if not row["mask_uri"]:
        return np.zeros((geometry.image_size, geometry.image_size), np.uint8)
    return preprocess_mask(read_mask(row["mask_uri"]), geometry.image_size).astype(np.uint8)


def open_features(folder: Path) -> CachedFeatures:
    def mapped(name: str) -> torch.Tensor:
        return torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c"))

    layers = len(list(folder.glob("patches-*.npy")))
    features = Features(mapped("image"), [mapped(f"patches-{i}") for i in range(layers)])
    masks, labels, has_mask, usable = (mapped(name) for name in ("masks", "labels", "has_mask", "usable"))
    classes, digests = (np.load(folder / f"{name}.npy") for name in ("classes", "digests"))
    return CachedFeatures(features, masks, labels, has_mask, usable, classes, digests.tolist())
