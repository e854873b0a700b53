"""The detector's mathematics stated plainly, in the way of the published code: the slow twin of the tests, the yardstick of
the benchmark.

Attention is spelled out in both streams, every block runs on all tokens, maps go through interpolation and SciPy's
Gaussian one by one. Nothing is skipped and nothing is fused.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from models.backbone import Backbone


def attention(block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads = block.attn.num_heads
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # B H N d
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)  # B H N N
    return block.attn.out_proj((weights @ v).transpose(1, 2).flatten(2))


def vision_tower(backbone: Backbone, images: Tensor, feature_layers: list[int], dpam_layers: int) -> Any:
    """Raw image features (B, D) and raw patch features of each layer with the class token's row, (B, N, D)."""
    visual: Any = backbone.clip.visual
    x = visual.conv1(images).flatten(2).transpose(1, 2)  # B P C
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + positions(backbone)
    x = p = visual.ln_pre(x)
    collected = {}
    for number, block in enumerate(visual.transformer.resblocks, start=1):
        q, k, v = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)
        in_range = number > len(visual.transformer.resblocks) - dpam_layers
        if in_range:
            p = p + attention(block, v, v, v)
        x = x + attention(block, q, k, v)
        x = x + block.mlp(block.ln_2(x))
        p = p if in_range else x
        collected[number] = p
    return x[:, 0] @ visual.proj, [visual.ln_post(collected[layer]) @ visual.proj for layer in feature_layers]


def positions(backbone: Backbone) -> Tensor:
    table: Tensor = backbone.clip.visual.positional_embedding
    side = int((len(table) - 1) ** 0.5)
    grid = table[1:].T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, (backbone.grid, backbone.grid), mode="bilinear", align_corners=False)
    return torch.cat([table[:1], grid.flatten(2)[0].T])


@torch.inference_mode()
def detect(
    backbone: Backbone, text: Tensor, images: Tensor, feature_layers: list[int], dpam_layers: int, sigma: float = 4.0
) -> tuple[Tensor, np.ndarray]:
    """Scores (B,) and smoothed maps (B, S, S); text (2, D), normalised."""
    image, layers = vision_tower(backbone, images, feature_layers, dpam_layers)
    image = image / image.norm(dim=-1, keepdim=True)
    scores = (image @ text.T / 0.07).softmax(-1)[:, 1]
    total = torch.zeros(len(images), *images.shape[-2:], device=images.device)
    for patches in layers:
        patches = patches / patches.norm(dim=-1, keepdim=True)
        similarity = (patches @ text.T / 0.07).softmax(-1)[:, 1:]  # B P 2
        grid = similarity.transpose(1, 2).unflatten(-1, (backbone.grid, backbone.grid))
        up = F.interpolate(grid, images.shape[-1], mode="bilinear", align_corners=False)
        total += (up[:, 1] + 1 - up[:, 0]) / 2
    return scores, np.stack([gaussian_filter(one, sigma=sigma) for one in total.cpu().numpy()])
