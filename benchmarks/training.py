"""What an epoch of prompt learning costs beside one pass of the vision tower over the same images.

    python -m benchmarks.training [--images 64] [--json FILE]

ViT-B/16 at 224 pixels, seeded random weights, batches of 8, on the machine it runs on. The published training runs the
tower in every epoch; here it runs once, and an epoch from its cached features should cost at most a tenth of that pass.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from models.prompts import PromptLearner
from models.training import extract_features, train_prompts
from tests.models import seeded

VIT_B_16 = seeded.config(embed=512, vision_width=768, vision_blocks=12, patch=16, image=224, text_width=512)
SIZE, LAYERS, DPAM_LAYERS, BATCH = 224, (12,), 10, 8


def measure(images: int) -> dict[str, float]:
    """Seconds of one pass of the tower, of one epoch from its features, and their quotient."""
    backbone = seeded.backbone(VIT_B_16, SIZE)
    pixels = torch.randn(images, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(images) % 2
    masks = torch.zeros(images, SIZE, SIZE, dtype=torch.uint8)
    masks[labels == 1, 50:120, 80:160] = 1
    extract_features(backbone, pixels[:BATCH], LAYERS, DPAM_LAYERS)  # warm
    started = time.perf_counter()
    features = extract_features(backbone, pixels, LAYERS, DPAM_LAYERS, BATCH)
    tower = time.perf_counter() - started
    prompts = PromptLearner(backbone)
    batches = [batch.tolist() for batch in torch.randperm(images).split(BATCH)]
    train_prompts(prompts, features, masks, labels, batches[:1])  # warm
    started = time.perf_counter()
    train_prompts(prompts, features, masks, labels, batches)
    epoch = time.perf_counter() - started
    return {"images": images, "tower_seconds": tower, "epoch_seconds": epoch, "share": epoch / tower}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.images)
    print(
        f"{result['images']} images, ViT-B/16 at {SIZE} px: tower {result['tower_seconds']:.2f} s, "
        f"one epoch from its features {result['epoch_seconds']:.2f} s ({100 * result['share']:.1f} %)"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
