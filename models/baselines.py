"""The paper's training-free baselines: CLIP, CLIP-AC and WinCLIP, whose prompts name the class of the image.

CLIP has two hand-written prompts, CLIP-AC the same words in the templates that CLIP's authors recommend for ImageNet; both
read the image score off the class token of an unchanged CLIP and the map off its patch tokens. WinCLIP (Jeong et al., CVPR
2023; zero-shot) has a compositional ensemble, every state in every template, and its map comes from windows: the class token
is computed again from the patches of each window alone. Its image score is that of the whole image's class token, as section
4.1 has it. Temperature, preprocessing and smoothing are the detector's.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

from models.attention import multi_head_attention
from models.backbone import (
    Backbone,
    attend,
    embed_patches,
    mlp,
    project,
    project_qkv,
    two_streams,
)
from models.detector import Detector, DetectorConfig, check_weights, in_precision, resolve_device
from models.losses import patch_probabilities

Prompts = tuple[str, ...]

NORMAL_STATES = (
    *("{}", "flawless {}", "perfect {}", "unblemished {}"),
    *("{} without flaw", "{} without defect", "{} without damage"),
)
ABNORMAL_STATES = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
SCENES = (
    *("a cropped photo of {}.", "a close-up photo of {}.", "a bright photo of {}.", "a dark photo of {}."),
    *("a jpeg corrupted photo of {}.", "a blurry photo of {}.", "a photo of {}."),
    *("a photo of {} for visual inspection.", "a photo of {} for anomaly detection."),
)
TEMPLATES = (
    *(scene.format(subject) for scene in SCENES for subject in ("a {}", "the {}")),
    *("a photo of a small {}.", "a photo of the small {}.", "a photo of a large {}.", "a photo of the large {}."),
)


def recommended(subject: str) -> Prompts:
    return tuple(template(subject) for template in OPENAI_IMAGENET_TEMPLATES)


def composed(states: Prompts) -> Prompts:
    return tuple(template.format(state) for state in states for template in TEMPLATES)


ENSEMBLE = (composed(NORMAL_STATES), composed(ABNORMAL_STATES))
PROMPTS: dict[str, tuple[Prompts, Prompts]] = {  # of each baseline: normal, abnormal
    "clip": (("a photo of a normal {}",), ("a photo of an anomalous {}",)),
    "clip-ac": (recommended("normal {}"), recommended("anomalous {}")),
    "winclip": ENSEMBLE,
}
WINDOWS = (2, 3)  # sides in patches
WINDOW_TOKENS = 16_384  # of the windows that are run together


def baseline_config(name: str, backbone: Backbone) -> DetectorConfig:
    """The config of a baseline's bundle, prompts included, so that its digest covers them.

    ValueError where its windows are larger than the patch grid.
    """
    if name == "winclip" and backbone.grid < max(WINDOWS):
        raise ValueError(f"WinCLIP's windows of 3 x 3 patches do not fit an image of {backbone.image_size} pixels")
    return DetectorConfig(
        backbone.spec, backbone.weights_sha256, backbone.image_size, (backbone.layers,), dpam_layers=0,
        n_ctx=0, depth=0, deep_ctx=0, baseline=name, training={"prompts": PROMPTS[name]},
    )  # fmt: skip


class Baseline:
    """A baseline on one CLIP, text tower included, from which the detector of each class is made.

    Raises ValueError where the backbone's weights are not those of the config.
    """

    def __init__(
        self, config: DetectorConfig, backbone: Backbone, device: str = "auto", precision: str = "fp32"
    ) -> None:
        check_weights(config, backbone)
        backbone = backbone.to(resolve_device(device))
        self.config, self.backbone = config, backbone
        self.visual = in_precision(backbone.clip.visual, precision)
        self.detectors: dict[str, Detector] = {}

    def for_class(self, class_name: str) -> Detector:
        """The detector whose prompts name this class; underscores are read as spaces."""
        if class_name not in self.detectors:
            name = class_name.replace("_", " ")
            normal, abnormal = ([text.format(name) for text in part] for part in PROMPTS[str(self.config.baseline)])
            text = ensemble_features(self.backbone, normal, abnormal)
            kind = WinClipDetector if self.config.baseline == "winclip" else ClipDetector
            self.detectors[class_name] = kind(self.visual, self.backbone.positions, text, self.config, {}, "fp32")
        return self.detectors[class_name]


# --- text -------------------------------------------------------------------------------------------------------------


def ensemble_features(backbone: Backbone, normal: Sequence[str], abnormal: Sequence[str]) -> Tensor:
    """L2-normalised (2, D) normal, abnormal: of each, the mean over its prompts' L2-normalised features."""
    means = [encode_texts(backbone, texts).mean(dim=0) for texts in (normal, abnormal)]
    return F.normalize(torch.stack(means), dim=-1)


@torch.no_grad()
def encode_texts(backbone: Backbone, texts: Sequence[str]) -> Tensor:
    """(n, D), L2-normalised. The tower is causal: it is run up to the longest text's end alone."""
    clip = backbone.clip
    ids = tokenizer(clip.context_length)(list(texts)).to(clip.positional_embedding.device)
    ends = ids.argmax(dim=-1)  # the end token has the largest id
    length = int(ends.max()) + 1
    x = clip.token_embedding(ids[:, :length]) + clip.positional_embedding[:length]  # n T W
    for block in clip.transformer.resblocks:
        x = block(x, attn_mask=clip.attn_mask[:length, :length].to(x.device))
    x = clip.ln_final(x[torch.arange(len(ids)), ends])
    return F.normalize(x @ clip.text_projection, dim=-1)


@lru_cache(maxsize=1)
def tokenizer(context_length: int) -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=context_length)


# --- images -----------------------------------------------------------------------------------------------------------


class ClipDetector(Detector):
    """An unchanged CLIP: class token and patch tokens of the last block, after ln_post."""

    @torch.inference_mode()
    def score_grids(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(self.text_features.device, non_blocking=True)
        layers = self.config.feature_layers
        _, (tokens,) = two_streams(self.visual, self.positions, images, layers, 0, multi_head_attention)  # B 1+P C
        abnormal = patch_probabilities(project(self.visual, tokens), self.text_features)[..., 1]
        side = math.isqrt(abnormal.shape[1] - 1)
        return abnormal[:, 0], abnormal[:, 1:].unflatten(1, (side, side))


class WinClipDetector(Detector):
    """The map is the harmonic mean of the image score and of a map for each size of windows (WinCLIP, section 4.2)."""

    @torch.inference_mode()
    def score_grids(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(self.text_features.device, non_blocking=True)
        tokens = embed_patches(self.visual, self.positions, images)  # B 1+P C
        score = self.abnormal(class_token(self.visual, tokens))
        maps = [harmonic_map(self.score_windows(tokens, size), size) for size in WINDOWS]
        inverse = torch.stack([1 / part for part in (score[:, None, None].expand_as(maps[0]), *maps)])
        return score, 1 / inverse.mean(dim=0)

    def abnormal(self, features: Tensor) -> Tensor:
        """(…, D) raw features -> (…) probability of the abnormal prompts."""
        return patch_probabilities(features, self.text_features)[..., 1]

    def score_windows(self, tokens: Tensor, size: int) -> Tensor:
        """(B, W) of the embedded tokens (B, 1+P, C): one score a window of size x size patches, in rows from the top."""
        index = window_tokens(math.isqrt(tokens.shape[1] - 1), size).to(tokens.device)
        at_once = max(1, WINDOW_TOKENS // (len(tokens) * index.shape[1]))
        parts = []
        for part in index.split(at_once):
            features = class_token(self.visual, tokens[:, part].flatten(0, 1))
            parts.append(self.abnormal(features.unflatten(0, (len(tokens), len(part)))))
        return torch.cat(parts, dim=1)


def window_tokens(side: int, size: int) -> Tensor:
    """(W, 1 + size*size): of each window on a grid of side x side patches its tokens, the class token (0) first."""
    patches = 1 + torch.arange(side * side).unflatten(0, (side, side))
    return F.pad(patches.unfold(0, size, 1).unfold(1, size, 1).reshape(-1, size * size), (1, 0))


def class_token(visual: Any, tokens: Tensor) -> Tensor:
    """Embedded tokens (B, N, C), the class token first -> its feature (B, D) after all blocks, ln_post and projection."""
    last = visual.transformer.resblocks[-1]
    for block in visual.transformer.resblocks:
        q, k, v = project_qkv(block, tokens, class_token_only=block is last)
        tokens = tokens[:, : q.shape[1]] + attend(block, q, k, v, F.scaled_dot_product_attention)
        tokens = tokens + mlp(block, tokens)
    return project(visual, tokens[:, 0])


def harmonic_map(scores: Tensor, size: int) -> Tensor:
    """(B, W) scores of all windows -> (B, g, g): of each patch the harmonic mean over the windows that cover it."""
    side = math.isqrt(scores.shape[1]) + size - 1

    def sum_over_patch(windows: Tensor) -> Tensor:
        return F.fold(windows[:, None].expand(-1, size * size, -1), side, size)[:, 0]

    return sum_over_patch(torch.ones_like(scores)) / sum_over_patch(1 / scores)
