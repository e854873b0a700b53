"""Training material from labelled collections, features that are computed once, and prompts learned from them.

Features lie memory-mapped in a cache folder whose name is a digest of all that they depend on. Learning is resumable: after
every epoch its whole state is on disk, and an epoch's order of images depends on the seed and its number alone.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from models.backbone import Backbone
from models.detector import Detector, resolve_device
from models.preprocess import normalise, preprocess_mask
from models.prompts import PromptLearner
from models.training import Features, StepLoss, extract_features, make_optimizer, train_prompts
from tasks.backbones import CACHE, Geometry, kept_backbone
from tasks.errors import InputError
from tasks.images import UnreadableImage, read_mask
from tasks.manifest import labelled_test_rows, read_manifest, records
from tasks.progress import advance, progress
from tasks.registry import ModelVersion, register_bundle, tracked_run
from tasks.scoring import READERS, Pixels, read_ahead
from tasks.store import Store

log = logging.getLogger(__name__)
BATCH = 8  # images a step, as published


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that the learned prompts depend on beside the images and the weights."""

    backbone: str
    geometry: Geometry
    epochs: int = 15
    lr: float = 1e-3
    seed: int = 111
    n_ctx: int = 12
    depth: int = 9
    deep_ctx: int = 4


@dataclass(frozen=True)
class EpochLoss:
    """Mean losses of one epoch: total = local + image, local = 4 x (focal + dice abnormal + dice normal)."""

    epoch: int
    total: float
    local: float
    image: float
    focal: float
    dice_abnormal: float
    dice_normal: float


# --- the steps --------------------------------------------------------------------------------------------------------


def cache_folder(store: Store) -> Path:
    """Where this machine keeps what can be computed again: under a local store, else in the user's cache."""
    return store.local_root / "cache" if store.local_root else CACHE


@task(name="compute features", cache_policy=NO_CACHE)
def compute_features(store: str, collections: list[str], plan: TrainingPlan) -> str:
    """Run the vision tower once over the labelled images; returns the key of the cached features."""
    material = training_material(Store(store), collections)
    backbone = kept_backbone(plan.backbone, plan.geometry.image_size).to(resolve_device("auto"))
    key = feature_key(material, backbone, plan.geometry)
    with progress("features", len(material.rows)):
        cache_features(cache_folder(Store(store)) / "features" / key, material, backbone, plan.geometry)
    return key


@task(name="learn prompts", cache_policy=NO_CACHE)
def learn_prompts(
    store: str, collections: list[str], plan: TrainingPlan, features: str
) -> tuple[ModelVersion, EpochLoss]:
    """Learn prompts from cached features, log the losses to MLflow, register the bundle; returns it and the last losses."""
    backbone = kept_backbone(plan.backbone, plan.geometry.image_size).to(resolve_device("auto"))
    cache = cache_folder(Store(store))
    cached = open_features(cache / "features" / features)
    state_file = cache / "training" / f"{plan_key(plan, features)}.pt"
    facts = {
        "collections": collections, "images": len(cached.usable), "epochs": plan.epochs, "lr": plan.lr,
        "seed": plan.seed, "features": features,
    }  # fmt: skip
    params = asdict(plan) | facts | {"backbone_sha256": backbone.weights_sha256, "collections": ",".join(collections)}
    with tracked_run(Store(store), f"train {', '.join(collections)}", params) as run_id:
        mlflow.set_tag("step", "train")
        with progress("training", plan.epochs, "epochs"):
            prompts, history = learn(plan, backbone, cached, state_file, log_epoch)
        with tempfile.TemporaryDirectory(prefix="anomalyclip-") as folder:
            bundle = build_detector(plan, backbone, prompts, facts).save(folder)
            version = register_bundle(Store(store), bundle, run_id, f"prompts learned on {', '.join(collections)}")
    return version, history[-1]


def log_epoch(loss: EpochLoss) -> None:
    parts = {f"loss_{name}": value for name, value in asdict(loss).items() if name != "epoch"}
    mlflow.log_metrics(parts, step=loss.epoch)
    advance()


# --- material ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Material:
    """Labelled rows of one or more collections, in a fixed order, and a digest that names them."""

    rows: list[dict[str, Any]]
    digest: str


def training_material(store: Store, collections: Sequence[str]) -> Material:
    """The labelled images of the collections that the published protocol trains on (see labelled_test_rows)."""
    manifests = [read_manifest(store, name) for name in collections]
    rows = pd.concat([labelled_test_rows(manifest.rows) for manifest in manifests])
    if not ((rows["label"] == 0).any() and (rows["label"] == 1).any()):
        raise InputError(
            f"training needs labelled normal and anomalous images; {', '.join(collections)} has "
            f"{int((rows['label'] == 0).sum())} normal and {int((rows['label'] == 1).sum())} anomalous ones"
        )
    digest = hashlib.sha256("".join(manifest.digest for manifest in manifests).encode()).hexdigest()[:16]
    return Material(list(records(rows)), digest)


@dataclass(frozen=True)
class CachedFeatures:
    """What training reads, memory-mapped: features of N images, masks (N, S, S) uint8, labels (N,), has_mask (N,).

    usable: the indices of the images that could be read; the rows of the others are zero.
    """

    features: Features
    masks: torch.Tensor
    labels: torch.Tensor
    has_mask: torch.Tensor
    usable: torch.Tensor


def feature_key(material: Material, backbone: Backbone, geometry: Geometry) -> str:
    facts = [
        material.digest,
        backbone.weights_sha256,
        geometry.image_size,
        geometry.feature_layers,
        geometry.dpam_layers,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def cache_features(folder: Path, material: Material, backbone: Backbone, geometry: Geometry) -> None:
    """Compute the features of all images that can be read into a folder, which appears when it is complete."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        usable = write_features(partial, material.rows, backbone, geometry)
        if not usable.any():
            raise InputError("none of the labelled images can be read")
        masked = any(
            row["mask_uri"] for row in material.rows
        )  # without any ground truth the image loss alone is trained
        np.save(partial / "usable.npy", np.flatnonzero(usable))
        np.save(partial / "labels.npy", np.array([row["label"] for row in material.rows], np.int8))
        np.save(
            partial / "has_mask.npy", [masked and (not row["label"] or bool(row["mask_uri"])) for row in material.rows]
        )
        publish_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish_folder(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not folder.exists():  # else another run was first, with the same content
            raise


def write_features(folder: Path, rows: list[dict[str, Any]], backbone: Backbone, geometry: Geometry) -> np.ndarray:
    """Features and masks of the rows in .npy files; returns which rows could be read, (N,) bool."""
    usable = np.zeros(len(rows), bool)
    files: dict[str, np.ndarray] = {}
    slices = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    with ThreadPoolExecutor(READERS) as readers:
        for number, images in enumerate(read_ahead(readers, slices, geometry.image_size)):
            good = [number * BATCH + i for i, image in enumerate(images) if isinstance(image, Pixels)]
            for row, image in zip(slices[number], images, strict=True):
                if isinstance(image, UnreadableImage):
                    log.warning("left out of training: %s (%s)", row["uri"], image)
            if good:
                pixels = normalise(np.stack([image.square for image in images if isinstance(image, Pixels)]))
                features = extract_features(backbone, pixels, geometry.feature_layers, geometry.dpam_layers)
                arrays = {f"patches-{i}": layer.numpy() for i, layer in enumerate(features.patches)}
                arrays["image"] = features.image.numpy()
                arrays["masks"] = np.stack([load_mask(rows[i], geometry) for i in good])
                for name, array in arrays.items():
                    if name not in files:
                        shape = (len(rows), *array.shape[1:])
                        files[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", array.dtype, shape)
                    files[name][good] = array
                usable[good] = True
            advance(len(images))
    return usable


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
    return CachedFeatures(features, *(mapped(name) for name in ("masks", "labels", "has_mask", "usable")))


# --- learning ---------------------------------------------------------------------------------------------------------


def learn(
    plan: TrainingPlan,
    backbone: Backbone,
    cached: CachedFeatures,
    state_file: Path,
    on_epoch: Callable[[EpochLoss], None],
) -> tuple[PromptLearner, list[EpochLoss]]:
    """Learn prompts, going on from the state file where there is one; on_epoch also hears the epochs before it."""
    try:
        prompts = PromptLearner(
            backbone, plan.n_ctx, plan.depth, plan.deep_ctx, torch.Generator().manual_seed(plan.seed)
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    optimizer = make_optimizer(prompts, plan.lr)
    history = load_state(state_file, prompts, optimizer)
    for loss in history:
        on_epoch(loss)
    for epoch in range(len(history) + 1, plan.epochs + 1):
        losses = train_prompts(
            prompts, cached.features, cached.masks, cached.labels, epoch_batches(cached.usable, plan.seed, epoch),
            has_mask=cached.has_mask, optimizer=optimizer,
        )  # fmt: skip
        history.append(mean_loss(epoch, losses))
        save_state(state_file, prompts, optimizer, history)
        on_epoch(history[-1])
    return prompts, history


def epoch_batches(usable: torch.Tensor, seed: int, epoch: int) -> Iterator[list[int]]:
    """A shuffled pass over all usable images; the last batch may be short."""
    generator = torch.Generator().manual_seed(seed * 10_007 + epoch)
    return (batch.tolist() for batch in usable[torch.randperm(len(usable), generator=generator)].split(BATCH))


def mean_loss(epoch: int, losses: list[StepLoss]) -> EpochLoss:
    parts = np.array([np.sum(loss.parts, axis=0) if loss.parts else np.zeros(3) for loss in losses]).mean(axis=0)
    total, local, image = (
        float(np.mean(values)) for values in zip(*((loss, loss.local, loss.image_ce) for loss in losses), strict=True)
    )
    return EpochLoss(epoch, total, local, image, *(float(part) for part in parts))


def save_state(path: Path, prompts: PromptLearner, optimizer: torch.optim.Optimizer, history: list[EpochLoss]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "prompts": prompts.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": [asdict(h) for h in history],
    }
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    torch.save(state, partial)
    partial.replace(path)


def load_state(path: Path, prompts: PromptLearner, optimizer: torch.optim.Optimizer) -> list[EpochLoss]:
    """Restore prompts and optimiser; returns the epochs that are done, none where there is no state."""
    if not path.exists():
        return []
    state = torch.load(path, map_location="cpu", weights_only=True)
    prompts.load_state_dict(state["prompts"])
    optimizer.load_state_dict(state["optimizer"])
    return [EpochLoss(**loss) for loss in state["history"]]


def plan_key(plan: TrainingPlan, features: str) -> str:
    """Names a training run, for its state file."""
    return hashlib.sha256(json.dumps(asdict(plan) | {"features": features}, sort_keys=True).encode()).hexdigest()[:16]


def build_detector(plan: TrainingPlan, backbone: Backbone, prompts: PromptLearner, facts: dict[str, Any]) -> Detector:
    geometry = plan.geometry
    return Detector.build(
        backbone, prompts, geometry.image_size, geometry.feature_layers, geometry.dpam_layers, geometry.sigma,
        training=facts,
    )  # fmt: skip
