"""CLIP weights and prompts from seeds: a random stream for each tensor, so that values depend on its name and seed alone.

Gains of layer norms and all biases differ from one and zero on purpose: an implementation that leaves one out is seen.
The golden values in data/ were computed on `weights(SMALL)`.
"""

import math
import zlib
from typing import Any

import numpy as np

from models.backbone import Backbone, build_backbone

VOCABULARY, CONTEXT, TEXT_BLOCKS = 49408, 77, 12


def config(
    embed: int, vision_width: int, vision_blocks: int, patch: int, image: int, text_width: int
) -> dict[str, Any]:
    """An open_clip config of the CLIP ViT family with heads of 64."""
    return {
        "embed_dim": embed,
        "quick_gelu": True,
        "vision_cfg": {"image_size": image, "layers": vision_blocks, "width": vision_width, "patch_size": patch,
                       "head_width": 64},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": text_width,
                     "heads": text_width // 64, "layers": TEXT_BLOCKS},
    }  # fmt: skip


SMALL = config(embed=128, vision_width=192, vision_blocks=6, patch=16, image=64, text_width=128)
NARROW_24 = config(embed=96, vision_width=128, vision_blocks=24, patch=14, image=56, text_width=128)
VIT_L_14_336 = config(embed=768, vision_width=1024, vision_blocks=24, patch=14, image=336, text_width=768)


def tower_shapes(prefix: str, width: int, blocks: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(blocks):
        block = f"{prefix}transformer.resblocks.{number}."
        shapes[f"{block}attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{block}attn.out_proj.weight"] = (width, width)
        shapes[f"{block}mlp.c_fc.weight"] = (4 * width, width)
        shapes[f"{block}mlp.c_proj.weight"] = (width, 4 * width)
        for name, length in {"attn.in_proj": 3, "attn.out_proj.": 1, "mlp.c_fc.": 4, "mlp.c_proj.": 1}.items():
            shapes[f"{block}{name}{'_' if name == 'attn.in_proj' else ''}bias"] = (length * width,)
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}{norm}.{part}": (width,) for part in ("weight", "bias")}
    return shapes


def shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    vision, text, embed = c["vision_cfg"], c["text_cfg"], c["embed_dim"]
    width, words = vision["width"], text["width"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    found = tower_shapes("visual.", width, vision["layers"]) | tower_shapes("", words, text["layers"])
    for norm, length in {"visual.ln_pre": width, "visual.ln_post": width, "ln_final": words}.items():
        found |= {f"{norm}.{part}": (length,) for part in ("weight", "bias")}
    return found | {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (patches + 1, width),
        "visual.proj": (width, embed),
        "visual.conv1.weight": (width, 3, vision["patch_size"], vision["patch_size"]),
        "token_embedding.weight": (text["vocab_size"], words),
        "positional_embedding": (text["context_length"], words),
        "text_projection": (words, embed),
        "logit_scale": (),
    }


def stream(name: str, seed: int) -> np.random.RandomState:
    return np.random.RandomState((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF)


def draw(name: str, shape: tuple[int, ...], c: dict[str, Any], seed: int) -> np.ndarray:
    if name == "logit_scale":
        return np.array(math.log(1 / 0.07), np.float32)
    z = stream(name, seed).standard_normal(shape).astype(np.float32)
    if ".ln_" in f".{name}":
        return (1 + 0.1 * z if name.endswith("weight") else 0.05 * z).astype(np.float32)
    if name.endswith("bias"):
        return (0.05 * z).astype(np.float32)
    tower = c["vision_cfg"] if name.startswith("visual.") else c["text_cfg"]
    width, depth = tower["width"], tower["layers"]
    if name.endswith("in_proj_weight"):
        deviation = np.full((3 * width, 1), 1.5 * width**-0.5, np.float32)
        deviation[2 * width :] = width**-0.5
        return z * deviation
    deviations = {
        "attn.out_proj.weight": width**-0.5 * (2 * depth) ** -0.5 * 2,
        "mlp.c_fc.weight": (2 * width) ** -0.5,
        "mlp.c_proj.weight": width**-0.5 * (2 * depth) ** -0.5,
        "class_embedding": width**-0.5,
        "visual.positional_embedding": width**-0.5,
        "visual.proj": width**-0.5,
        "text_projection": width**-0.5,
        "token_embedding.weight": 0.02,
        "visual.conv1.weight": (3 * c["vision_cfg"]["patch_size"] ** 2) ** -0.5 * 0.25,
        "positional_embedding": 0.01,
    }
    return z * np.float32(next(value for ending, value in deviations.items() if name.endswith(ending)))


def weights(c: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    return {name: draw(name, shape, c, seed) for name, shape in shapes(c).items()}


def prompt_tensors(
    c: dict[str, Any], seed: int = 0, n_ctx: int = 12, depth: int = 9, deep_ctx: int = 4
) -> dict[str, Any]:
    """Prompts of deviation 0.1: large enough for the rounding of the deep ones to fp16 to show."""
    width = c["text_cfg"]["width"]
    found = {"ctx_pos": (1, 1, n_ctx, width), "ctx_neg": (1, 1, n_ctx, width)}
    found |= {f"compound_prompts_text.{i}": (deep_ctx, width) for i in range(depth - 1)}
    return {name: (0.1 * stream(name, seed).standard_normal(shape)).astype(np.float32) for name, shape in found.items()}


def backbone(c: dict[str, Any], image_size: int, seed: int = 0) -> Backbone:
    return build_backbone(c, weights(c, seed), image_size=image_size)
