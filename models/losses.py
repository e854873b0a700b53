"""The training loss of AnomalyCLIP (section 3.4): focal and dice on the upsampled map, cross-entropy on the image."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07
LOCAL_WEIGHT = 4.0  # lambda of the published code since April 2025; before, four identical maps gave the same sum


class LocalLoss(NamedTuple):
    focal: Tensor
    dice_abnormal: Tensor
    dice_normal: Tensor

    def total(self) -> Tensor:
        return self.focal + self.dice_abnormal + self.dice_normal


def local_loss(abnormal: Tensor, normal: Tensor, masks: Tensor, by_row: bool) -> LocalLoss:
    """Losses of one feature layer. abnormal, normal: probabilities (B, S, S), upsampled; masks: (B, S, S), 0 or 1."""
    return LocalLoss(
        focal_loss(abnormal, normal, masks), dice_loss(abnormal, masks, by_row), dice_loss(normal, 1 - masks, by_row)
    )


def focal_loss(abnormal: Tensor, normal: Tensor, masks: Tensor) -> Tensor:
    """Mean of -(1 - pt)^2 log pt, pt the probability of the true class; targets clamped to [1e-5, 1 - 1e-5], no weights."""
    low, high = 1e-5, 1 - 1e-5
    pt = masks.clamp(low, high) * abnormal + (1 - masks).clamp(low, high) * normal + 1e-5
    return (-((1 - pt) ** 2) * pt.log()).mean()


def dice_loss(probability: Tensor, target: Tensor, by_row: bool) -> Tensor:
    """1 - mean over images of the smoothed dice coefficient (smooth 1). Both (B, S, S).

    by_row: mean over the rows of all images instead. The published code drops the batch axis of a batch of one image, and
    agreeing with its training to rounding includes that last odd batch.
    """
    axes = 2 if by_row else (1, 2)
    overlap = (probability * target).sum(axes)
    return 1 - ((2 * overlap + 1) / (probability.sum(axes) + target.sum(axes) + 1)).mean()


def image_loss(image: Tensor, text: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the image's two-way softmax. image: (B, D), text: (2, D), both L2-normalised; labels: (B,) 0 or 1."""
    return F.cross_entropy(image @ text.T / TEMPERATURE, labels.long())


def patch_probabilities(patches: Tensor, text: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Softmax over (normal, abnormal) of every patch: (B, P, D) raw patches, (2, D) normalised text -> (B, P, 2)."""
    patches = patches / patches.norm(dim=-1, keepdim=True)
    return torch.softmax(patches @ text.T / temperature, dim=-1)
