"""Prompts learned from cached features, and registered.

Learning is resumable: after every epoch its whole state is on disk, and an epoch's order of images depends on the seed and
its number alone, so a run that was killed ends with the prompts of one that was not.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import torch
from prefect import task
from torch import Tensor

from models.backbone import Backbone
from models.detector import Detector, resolve_device
from models.prompts import PromptLearner
from models.training import StepLoss, make_optimizer, train_prompts, validation_loss
from tasks.backbones import Geometry, kept_backbone, map_name
from tasks.errors import InputError
from tasks.features import CachedFeatures, cache_folder, open_features
from tasks.progress import advance, progress
from tasks.registry import ModelVersion, end_killed_runs, register_bundle, tracked_run
from tasks.retries import RETRIED
from tasks.store import Store, replacing

BATCH = 8  # images a step, as published
SEEDS = 2**32


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that the learned prompts depend on beside the images and the weights; the defaults are the published ones.

    validation_share: of the classes, held back for a validation curve; the published training holds back none.
    patience: stop after so many epochs without a better validation loss, and take the best one; 0: never.
    Raises InputError for values that nothing can be learned with.
    """

    backbone: str
    geometry: Geometry
    epochs: int = 15
    lr: float = 1e-3
    seed: int = 111
    validation_share: float = 0.0
    patience: int = 0
    n_ctx: int = 12
    depth: int = 9
    deep_ctx: int = 4

    def __post_init__(self) -> None:
        share = self.validation_share
        for fits, told in (
            (self.epochs >= 1, f"epochs must be at least 1, not {self.epochs}"),
            (0 < self.lr < math.inf, f"the learning rate must be a number above 0, not {self.lr}"),
            (0 <= self.seed < SEEDS, f"the seed must lie between 0 and {SEEDS - 1}, not {self.seed}"),
            (0 <= share < 1, f"the validation share must be at least 0 and below 1, not {share}"),
            (self.patience >= 0, f"patience must be at least 1, or 0 for never, not {self.patience}"),
            (
                share or not self.patience,
                "early stopping needs a validation share: give a --validation-share of the classes, e.g. 0.2",
            ),
        ):
            if not fits:
                raise InputError(told)


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
    validation: float | None = None


class Trained(NamedTuple):
    """The registered version and the losses of the epoch that its prompts are of; epochs: how many ran.

    images were trained on, held_back are those of the validation.
    """

    model: ModelVersion
    loss: EpochLoss
    epochs: int
    images: int
    held_back: int


@task(name="learn prompts", **RETRIED)
def learn_prompts(
    store: str, collections: list[str], plan: TrainingPlan, features: str, for_comparison: bool = False
) -> Trained:
    """Learn prompts from cached features, log the losses to MLflow, register the bundle.

    Where a run of the same plan was killed, this one goes on from its last epoch, and that one is ended in MLflow.
    for_comparison: as `register_bundle` has it.
    """
    backbone = kept_backbone(plan.backbone, plan.geometry.image_size).to(resolve_device("auto"))
    cache = cache_folder(Store(store))
    folder = cache / "features" / features
    cached = open_features(folder)
    images, held_back = map(len, split_by_class(cached, plan))
    facts = {
        "collections": collections, "manifest_digests": cached.digests, "images": images, "held_back_images": held_back,
        "max_epochs": plan.epochs, "lr": plan.lr, "seed": plan.seed, "validation_share": plan.validation_share,
        "patience": plan.patience,
        "map": map_name(plan.backbone, plan.geometry.feature_layers), "features": features,
    }  # fmt: skip
    lists = {"collections": ",".join(collections), "manifest_digests": ",".join(cached.digests)}
    params = asdict(plan) | facts | lists | {"backbone_sha256": backbone.weights_sha256}
    del params["epochs"]  # how many ran is known at the end
    key, names = plan_key(plan, folder), ", ".join(collections)
    end_killed_runs(Store(store), "training", key)
    with tracked_run(Store(store), f"train {names}", params, {"step": "train", "training": key}) as run_id:
        with progress("training", plan.epochs, "epochs"):
            prompts, loss, epochs = learn(plan, backbone, cached, cache / "training" / f"{key}.pt", log_epoch)
        outcome = {"epochs": epochs, "chosen_epoch": loss.epoch}
        mlflow.log_params(outcome)
        with tempfile.TemporaryDirectory(prefix="anomalyclip-") as work:
            bundle = build_detector(plan, backbone, prompts, facts | outcome).save(work)
            version = register_bundle(Store(store), bundle, run_id, f"prompts learned on {names}", for_comparison)
    return Trained(version, loss, epochs, images, held_back)


def log_epoch(loss: EpochLoss) -> None:
    parts = {f"loss_{name}": value for name, value in asdict(loss).items() if name != "epoch" and value is not None}
    mlflow.log_metrics(parts, step=loss.epoch)
    advance()


def build_detector(plan: TrainingPlan, backbone: Backbone, prompts: PromptLearner, facts: dict[str, Any]) -> Detector:
    geometry = plan.geometry
    return Detector.build(
        backbone, prompts, geometry.image_size, geometry.feature_layers, geometry.dpam_layers, geometry.sigma,
        training=facts,
    )  # fmt: skip


# --- learning ---------------------------------------------------------------------------------------------------------


def learn(
    plan: TrainingPlan,
    backbone: Backbone,
    cached: CachedFeatures,
    state_file: Path,
    on_epoch: Callable[[EpochLoss], None],
) -> tuple[PromptLearner, EpochLoss, int]:
    """The learned prompts, the losses of their epoch (the last one; with patience the best one), and how many ran.

    Goes on from the state file where there is one; on_epoch also hears the epochs before it.
    """
    try:
        prompts = PromptLearner(
            backbone, plan.n_ctx, plan.depth, plan.deep_ctx, torch.Generator().manual_seed(plan.seed)
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    training, held_back = split_by_class(cached, plan)
    state = TrainingState(prompts, make_optimizer(prompts, plan.lr), state_file)
    for loss in state.history:
        on_epoch(loss)
    while len(state.history) < plan.epochs and not state.out_of_patience(plan.patience):
        epoch = len(state.history) + 1
        losses = train_prompts(
            prompts, cached.features, cached.masks, cached.labels, epoch_batches(training, plan.seed, epoch),
            has_mask=cached.has_mask, optimizer=state.optimizer,
        )  # fmt: skip
        validation = None
        if len(held_back):
            validation = validation_loss(
                prompts, cached.features, cached.masks, cached.labels, cached.has_mask, held_back
            )
        mean = mean_loss(epoch, losses, validation)
        with torch.no_grad():
            finite = bool(prompts.text_features().isfinite().all())
        if not finite or not np.isfinite([mean.total, validation or 0.0]).all():
            raise InputError(
                f"training diverged in epoch {epoch} at a learning rate of {plan.lr:g}: take a smaller one"
            )
        state.end_epoch(mean)
        on_epoch(state.history[-1])
    if not plan.patience:
        return prompts, state.history[-1], len(state.history)
    prompts.load_state_dict(state.best_prompts)
    return prompts, state.best, len(state.history)


def split_by_class(cached: CachedFeatures, plan: TrainingPlan) -> tuple[Tensor, Tensor]:
    """Indices of the usable images to train on, and of those of the classes that are held back."""
    classes = np.unique(cached.classes[cached.usable.numpy()])
    count = round(plan.validation_share * len(classes)) or int(plan.validation_share > 0)
    if count and count >= len(classes):
        raise InputError(
            f"a validation share of {plan.validation_share} leaves none of {len(classes)} classes to train on"
        )
    chosen = np.random.default_rng(plan.seed).permutation(classes)[:count]
    held_back = torch.from_numpy(np.isin(cached.classes, chosen))[cached.usable]
    return cached.usable[~held_back], cached.usable[held_back]


def epoch_batches(images: Tensor, seed: int, epoch: int) -> Iterator[list[int]]:
    """A shuffled pass over the given indices; the last batch may be short."""
    generator = torch.Generator().manual_seed(seed * 10_007 + epoch)
    return (batch.tolist() for batch in images[torch.randperm(len(images), generator=generator)].split(BATCH))


def mean_loss(epoch: int, losses: list[StepLoss], validation: float | None) -> EpochLoss:
    parts = np.array([np.sum(loss.parts, axis=0) if loss.parts else np.zeros(3) for loss in losses]).mean(axis=0)
    focal, dice_abnormal, dice_normal = (float(part) for part in parts)
    return EpochLoss(
        epoch=epoch,
        total=float(np.mean(losses)),
        local=float(np.mean([loss.local for loss in losses])),
        image=float(np.mean([loss.image_ce for loss in losses])),
        focal=focal,
        dice_abnormal=dice_abnormal,
        dice_normal=dice_normal,
        validation=validation,
    )


class TrainingState:
    """What learning needs to go on: prompts, optimiser, losses so far, and the best prompts by validation loss."""

    def __init__(self, prompts: PromptLearner, optimizer: torch.optim.Optimizer, file: Path) -> None:
        self.prompts, self.optimizer, self.file = prompts, optimizer, file
        self.history: list[EpochLoss] = []
        self.best_prompts: dict[str, Tensor] = {}
        if file.exists():
            saved = torch.load(file, map_location="cpu", weights_only=True)
            prompts.load_state_dict(saved["prompts"])
            optimizer.load_state_dict(saved["optimizer"])
            self.best_prompts, self.history = saved["best_prompts"], [EpochLoss(**loss) for loss in saved["history"]]

    @property
    def best(self) -> EpochLoss:
        """The epoch of the lowest validation loss, the first of equals; without validation the first of all."""
        return min(self.history, key=lambda loss: loss.validation or 0.0)

    def out_of_patience(self, patience: int) -> bool:
        return bool(patience and self.history) and self.history[-1].epoch - self.best.epoch >= patience

    def end_epoch(self, loss: EpochLoss) -> None:
        """Record an epoch and write everything to the state file, atomically."""
        self.history.append(loss)
        if self.best is loss:
            self.best_prompts = {name: value.clone() for name, value in self.prompts.state_dict().items()}
        state = {
            "prompts": self.prompts.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_prompts": self.best_prompts,
            "history": [asdict(loss) for loss in self.history],
        }
        with replacing(self.file) as partial:
            torch.save(state, partial)


def plan_key(plan: TrainingPlan, features: Path) -> str:
    """Names a training run on the features of a folder, for its state file. Masks may be rewritten under their old names."""
    with (features / "masks.npy").open("rb") as file:
        masks = hashlib.file_digest(file, "sha256").hexdigest()
    facts = asdict(plan) | {"features": features.name, "masks": masks}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
