"""Prompt learning from features that are computed once.

The vision tower is frozen and there is no augmentation, so its features do not change between epochs: `extract_features`
runs it once, `train_prompts` takes any number of Adam steps on the result. Losses and prompts are those of training that
runs the tower at every step (a test holds it).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.backbone import Backbone
from models.losses import LOCAL_WEIGHT, LocalLoss, image_loss, local_loss, patch_probabilities
from models.maps import upsample
from models.prompts import PromptLearner

BETAS = (0.5, 0.999)


@dataclass(frozen=True)
class Features:
    """Raw vision features of N images: image (N, D), and (N, P, D) patches for each feature layer."""

    image: Tensor
    patches: list[Tensor]

    def __len__(self) -> int:
        return len(self.image)


class StepLoss(float):
    """The loss of one step, lambda * local + image, with its parts (all Python floats)."""

    local: float  # 4 x the sum over layers of focal + dice abnormal + dice normal
    image_ce: float
    parts: tuple[tuple[float, float, float], ...]  # (focal, dice abnormal, dice normal) of each feature layer

    def __new__(cls, layers: Sequence[LocalLoss], image_ce: Tensor) -> "StepLoss":
        local = LOCAL_WEIGHT * sum(layer.total().item() for layer in layers)
        loss = super().__new__(cls, local + float(image_ce))
        loss.local, loss.image_ce = local, float(image_ce)
        loss.parts = tuple((f.item(), a.item(), n.item()) for f, a, n in layers)
        return loss


@torch.no_grad()  # not inference_mode: training differentiates through products with these tensors
def extract_features(
    backbone: Backbone, images: Tensor, feature_layers: Sequence[int], dpam_layers: int, batch_size: int = 8
) -> Features:
    """Features of preprocessed images (N, 3, S, S), on the CPU in fp32, batch_size images at a time."""
    device = backbone.positions.device
    parts = torch.as_tensor(images).split(batch_size)
    batches = [backbone.encode_image(batch.to(device), feature_layers, dpam_layers) for batch in parts]
    patches = zip(*(batch.patches for batch in batches), strict=True)
    return Features(torch.cat([batch.image for batch in batches]).cpu(), [torch.cat(layer).cpu() for layer in patches])


def make_optimizer(prompts: PromptLearner, lr: float = 1e-3) -> torch.optim.Adam:
    return torch.optim.Adam(prompts.parameters(), lr=lr, betas=BETAS)


def train_prompts(
    prompts: PromptLearner,
    features: Features,
    masks: Tensor,
    labels: Tensor,
    batches: Iterable[Sequence[int]],
    lr: float = 1e-3,
    has_mask: Tensor | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[StepLoss]:
    """One Adam step for each list of image indices in `batches`; changes `prompts` in place and returns the losses.

    masks: (N, S, S) or (N, 1, S, S), a defect where above 0.5; labels: (N,), 0 or 1; both tensors or arrays. has_mask: (N,)
    bool, which images take part in the local loss (default: all); an image without ground truth trains on the image loss
    alone. Give `optimizer` to go on with its state.
    """
    optimizer = optimizer or make_optimizer(prompts, lr)
    truth = GroundTruth.of(masks, labels, has_mask)
    losses = []  # tensors until the end: to read one is to wait for the device
    for batch in batches:
        layers, image_ce = batch_loss(prompts, features, truth, torch.as_tensor(batch), by_row=len(batch) == 1)
        total = LOCAL_WEIGHT * sum(layer.total() for layer in layers) + image_ce
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(([LocalLoss(*(part.detach() for part in layer)) for layer in layers], image_ce.detach()))
    return [StepLoss(*each) for each in losses]


class GroundTruth(NamedTuple):
    """masks (N, S, S), labels (N,), and has_mask (N,) bool: which images take part in the local loss."""

    masks: Tensor
    labels: Tensor
    has_mask: Tensor

    @classmethod
    def of(cls, masks: Any, labels: Any, has_mask: Any = None) -> "GroundTruth":
        masks, labels = torch.as_tensor(masks), torch.as_tensor(labels)
        if masks.ndim == 4 and masks.shape[1] == 1:
            masks = masks[:, 0]
        if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or len(masks) != len(labels):
            raise ValueError(f"masks of shape {tuple(masks.shape)} are not ({len(labels)}, S, S)")
        return cls(masks, labels, torch.ones(len(labels)).bool() if has_mask is None else torch.as_tensor(has_mask))


def batch_loss(
    prompts: PromptLearner, features: Features, truth: GroundTruth, batch: Tensor, by_row: bool
) -> tuple[list[LocalLoss], Tensor]:
    """Local losses of each feature layer (none where no image of the batch has a mask) and the image loss.

    by_row: see dice_loss.
    """
    text = prompts.text_features()
    device = text.device
    image = features.image[batch].to(device)
    image_ce = image_loss(image / image.norm(dim=-1, keepdim=True), text, truth.labels[batch].to(device))
    masked = batch[truth.has_mask[batch]]
    if not len(masked):
        return [], image_ce
    targets = (truth.masks[masked].to(device) > 0.5).float()
    layers = []
    for patches in features.patches:
        probabilities = patch_probabilities(patches[masked].to(device), text)  # B P 2
        side = round(probabilities.shape[1] ** 0.5)
        maps = upsample(probabilities.movedim(-1, 1).unflatten(-1, (side, side)), targets.shape[-1])  # B 2 S S
        layers.append(local_loss(maps[:, 1], maps[:, 0], targets, by_row))
    return layers, image_ce


@torch.no_grad()
def validation_loss(
    prompts: PromptLearner,
    features: Features,
    masks: Tensor,
    labels: Tensor,
    has_mask: Tensor | None,
    held_back: Tensor,
    batch_size: int = 8,
) -> float:
    """Mean image loss over the images held_back (indices, at least one) and mean local loss over those with masks, added.

    However the images fall into batches, and without the published code's exception for a batch of one (see dice_loss).
    """
    truth, image_ce, local = GroundTruth.of(masks, labels, has_mask), 0.0, 0.0
    for batch in held_back.split(batch_size):
        loss = StepLoss(*batch_loss(prompts, features, truth, batch, by_row=False))
        image_ce += loss.image_ce * len(batch)
        local += loss.local * int(truth.has_mask[batch].sum())
    return image_ce / len(held_back) + local / max(1, int(truth.has_mask[held_back].sum()))
