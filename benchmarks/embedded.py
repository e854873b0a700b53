"""What the embedded backbone is worth: AnomalyCLIP on it, on families that no training ever saw, and on real images.

    python -m benchmarks.embedded [--images 1000] [--labels NAME=FILE.json ...] [--json FILE]

Prompts are learned on the auxiliary families (360 images, 15 epochs, the published recipe) and read on the held-out
families (--images of each, half of them damaged), on solar cells (ELPV, labels beyond doubt) and on what --labels names.
Four detectors on the same images: learned or hand-written prompts, on V-V or on plain patch features. Hand-written is a
CLIP ensemble of the captions' phrases for normal and for damaged objects. The first is trained anew from other seeds
(--trainings), which tells how far its figures are those of one training. Intervals are 95 % bootstraps over images,
within classes; AUPRO has the published definition, and the standard one (to a false positive rate of 0.3) beside it.
Beside them, what labels of the very set would come to: a logistic regression on the same class tokens, taught on four
fifths of a set and read on the fifth, five times.
"""

import argparse
import json
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from models.backbone import Backbone, load_backbone, pack_matrices
from models.baselines import ensemble_features
from models.embedded import DPAM_LAYERS, IMAGE_SIZE
from models.embedded.captions import DAMAGED_STATES, GENERIC_NAMES, NORMAL_STATES, TEMPLATES
from models.embedded.generator import SPLIT, scene
from models.intervals import bootstrap_image_metrics, interval
from models.losses import TEMPERATURE, patch_probabilities
from models.maps import upsample
from models.metrics import aupro, image_metrics, pixel_metrics
from models.pixel_intervals import bootstrap_pixel_metrics
from models.preprocess import normalise, preprocess_mask, to_square
from models.prompts import PromptLearner
from models.training import Features, extract_features, train_prompts
from tasks.demo_data import FIRST_SEED, SIZE, solar_cell_files
from tasks.images import decode_image, read_mask
from tasks.layouts import read_layout
from tasks.store import read_uri
from tasks.training import epoch_batches

SEED, SIGMA = 111, 4.0
BATCH = 8  # the fastest on a CPU; scoring takes 32, which threads beside it prefer


@dataclass(frozen=True)
class Samples:
    """images (N, S, S, 3) uint8, labels (N,), masks (N, S, S) bool or None where there are none."""

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None


@dataclass(frozen=True)
class Found:
    """scores (N,) and patch grids (N, g, g) of one detector, and the class tokens (N, D) behind the scores."""

    scores: np.ndarray
    grids: Tensor
    tokens: np.ndarray


# --- images -----------------------------------------------------------------------------------------------------------


def draw(job: tuple[str, int, int]) -> tuple[np.ndarray, int, np.ndarray]:
    family, number, size = job
    made = scene(family, SIZE, FIRST_SEED + number, n_damaged=number % 2)
    image, mask = (made.damaged[0], made.masks[0]) if made.damaged else (made.normal, np.zeros((SIZE, SIZE), bool))
    return to_square(Image.fromarray(image), size), number % 2, preprocess_mask(Image.fromarray(mask), size)


def generated(split: str, images: int, size: int) -> dict[str, Samples]:
    """By family: the same scenes as those of the demo, and more of them."""
    with multiprocessing.get_context("spawn").Pool() as pool:
        return {
            family: stacked(pool.map(draw, [(family, number, size) for number in range(images)], chunksize=16))
            for family in SPLIT[split]
        }


def stacked(rows: list[tuple[np.ndarray, int, np.ndarray]]) -> Samples:
    images, labels, masks = zip(*rows, strict=True)
    return Samples(np.stack(images), np.array(labels), np.stack(masks))


def solar_cells(size: int) -> Samples:
    certain = [(path, label) for label in (0, 1) for path in solar_cell_files(certainty=float(label))]
    images = [to_square(Image.open(path), size) for path, _ in certain]
    return Samples(np.stack(images), np.array([label for _, label in certain]), None)


def labelled(file: str, size: int) -> Samples:
    """Images, labels and masks of the layout `labels`."""
    rows = []
    for entry in read_layout(file, "labels", "benchmark")[1]:
        image = decode_image(read_uri(entry.object.uri))
        mask = read_mask(entry.mask_uri) if entry.mask_uri else Image.new("L", image.size)
        rows.append((to_square(image, size), int(entry.label or 0), preprocess_mask(mask, size)))
    return stacked(rows)


# --- detectors --------------------------------------------------------------------------------------------------------


def hand_written(backbone: Backbone) -> Tensor:
    """(2, D) normal, abnormal: the ensemble of all templates, states and generic names."""

    def texts(states: tuple[str, ...]) -> list[str]:
        return [t.format(s.format(name)) for t in TEMPLATES for s in states for name in GENERIC_NAMES]

    return ensemble_features(backbone, texts(NORMAL_STATES), texts(DAMAGED_STATES))


def learned(backbone: Backbone, features: Features, auxiliary: Samples, epochs: int, seed: int) -> Tensor:
    """(2, D) text features after the published training on features of the auxiliary images."""
    assert auxiliary.masks is not None
    prompts = PromptLearner(backbone, generator=torch.Generator().manual_seed(seed))
    images = torch.arange(len(auxiliary.labels))
    batches = (batch for epoch in range(1, epochs + 1) for batch in epoch_batches(images, seed, epoch))
    train_prompts(prompts, features, torch.from_numpy(auxiliary.masks), torch.from_numpy(auxiliary.labels), batches)
    return prompts.text_features().detach()


@torch.no_grad()
def detect(backbone: Backbone, images: np.ndarray, dpam_layers: int, texts: list[Tensor]) -> list[Found]:
    """One result a pair of text features, from one pass of the vision tower."""
    parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in texts]
    tokens = []
    for pixels in torch.from_numpy(images).split(BATCH):
        features = backbone.encode_image(normalise(pixels), (backbone.layers,), dpam_layers)
        image = F.normalize(features.image, dim=-1)
        tokens.append(image)
        for text, found in zip(texts, parts, strict=True):
            score = torch.softmax(image @ text.T / TEMPERATURE, dim=-1)[:, 1]
            grid = patch_probabilities(features.patches[0], text)[..., 1]
            found.append((score, grid.unflatten(1, (backbone.grid, backbone.grid))))
    scored = [(torch.cat([s for s, _ in found]).numpy(), torch.cat([g for _, g in found])) for found in parts]
    return [Found(scores, grids, torch.cat(tokens).numpy()) for scores, grids in scored]


# --- figures ----------------------------------------------------------------------------------------------------------


def figures(samples: Samples, found: Found, size: int) -> dict[str, float | None]:
    row = {f"image_{name}": value for name, value in image_metrics(samples.labels, found.scores).items()}
    row["image_auroc_probe"] = taught_on_itself(samples.labels, found.tokens)
    if samples.masks is not None:
        maps = upsample(found.grids, size, SIGMA).numpy()
        row["pixel_auroc"] = pixel_metrics(samples.masks, maps)["auroc"]
        row["aupro_official"] = aupro(samples.masks, maps, "official")
        row["aupro_standard"] = aupro(samples.masks, maps, "standard")
    return row


def taught_on_itself(labels: np.ndarray, tokens: np.ndarray) -> float | None:
    """Image AUROC of a linear probe of class tokens (N, D) that learns from labels of the same set, five-fold."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=SEED)
    scores = cross_val_predict(probe, tokens, labels, cv=folds, method="decision_function")
    return image_metrics(labels, scores)["auroc"]


def image_resamples(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(RESAMPLES,) image AUROC; those of two detectors are paired."""
    resamples = bootstrap_image_metrics(labels, scores, seed=SEED)
    assert resamples, "every set has both classes"
    return resamples["auroc"]


def pixel_resamples(samples: Samples, found: Found, size: int) -> np.ndarray:
    """(RESAMPLES,) pixel AUROC; those of two detectors are paired."""
    maps = upsample(found.grids, size, SIGMA).numpy()
    return bootstrap_pixel_metrics(samples.labels, samples.masks, maps, seed=SEED)["auroc"]


def compare(sets: dict[str, Samples], found: dict[str, dict[str, Found]], size: int) -> dict[str, Any]:
    """By detector: the mean over the sets, with intervals, and the differences from the first detector."""
    summary: dict[str, Any] = {}
    draws: dict[str, dict[str, np.ndarray]] = {}
    for method in next(iter(found.values())):
        rows = {name: figures(samples, found[name][method], size) for name, samples in sets.items()}
        keys = next(iter(rows.values()))
        draws[method] = {
            "image_auroc": mean_over(sets, lambda n, m=method: image_resamples(sets[n].labels, found[n][m].scores))
        }
        if "pixel_auroc" in keys:
            draws[method]["pixel_auroc"] = mean_over(
                sets, lambda n, m=method: pixel_resamples(sets[n], found[n][m], size)
            )
        first = next(iter(draws.values()))
        summary[method] = {
            "mean": {key: float(np.mean([row[key] for row in rows.values()])) for key in keys},
            "interval": {key: interval(values) for key, values in draws[method].items()},
            "minus_first": {key: interval(values - first[key]) for key, values in draws[method].items()},
            "sets": rows,
        }
    return summary


def mean_over(names: Any, resamples: Any) -> np.ndarray:
    return np.mean([resamples(name) for name in names], axis=0)


def measure_speed(backbone: Backbone, text: Tensor, size: int, images: int = 240) -> float:
    """Images a second from decoded 256-pixel images to scores and smoothed maps, in batches, on all cores.

    As in scoring, the backbone's matrices are packed first, after which it is good for that alone.
    """
    pack_matrices(backbone.clip.visual, backbone.grid**2 + 1)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))

    def run(n: int) -> None:
        pixels = np.stack([to_square(image, size) for _ in range(n)])
        (found,) = detect(backbone, pixels, DPAM_LAYERS, [text])
        upsample(found.grids, size, SIGMA)

    run(32)
    started = time.perf_counter()
    run(images)
    return images / (time.perf_counter() - started)


# --- the table --------------------------------------------------------------------------------------------------------


def show(title: str, summary: dict[str, Any]) -> None:
    heads = "image AUROC          AP     F1     pixel AUROC          AUPRO (official) (standard)  linear probe"
    print(f"\n{title}\n{'':38}{heads}")
    for method, part in summary.items():
        print(line(method, part["mean"], part["interval"]))
        if part is not next(iter(summary.values())):
            spans = (f"{key} {low:+.3f} to {high:+.3f}" for key, (low, high) in part["minus_first"].items())
            print(f"    minus the first: {', '.join(spans)}")
    first = next(iter(summary.values()))
    if len(first["sets"]) > 1:
        for name, row in first["sets"].items():
            print(line(f"  {name}", row, {}))


def line(name: str, row: dict[str, float | None], intervals: dict[str, list[float]]) -> str:
    def cell(key: str, width: int) -> str:
        value = row.get(key)
        text = "–" if value is None else f"{value:.3f}"
        if key in intervals:
            text += " [{:.3f}, {:.3f}]".format(*intervals[key])
        return f"{text:{width}}"

    widths = {"image_auroc": 21, "image_ap": 7, "image_f1_max": 7, "pixel_auroc": 21, "aupro_official": 17}
    widths |= {"aupro_standard": 12, "image_auroc_probe": 5}
    return f"{name:38}" + "".join(cell(key, width) for key, width in widths.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="of each held-out family")
    parser.add_argument("--auxiliary", type=int, default=60, help="images of each auxiliary family")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--trainings", type=int, default=3, help="of the prompts on V-V features")
    parser.add_argument("--size", type=int, default=IMAGE_SIZE, help="pixels of the detectors' square input")
    parser.add_argument("--labels", nargs="*", default=[], metavar="NAME=FILE", help="labelled real images")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(SEED)
    backbone = load_backbone("embedded", args.size)
    families = generated("auxiliary", args.auxiliary, args.size).values()
    auxiliary = Samples(
        np.concatenate([f.images for f in families]),
        np.concatenate([f.labels for f in families]),
        np.concatenate([f.masks for f in families if f.masks is not None]),
    )
    by_hand = hand_written(backbone)
    texts: dict[int, dict[str, Tensor]] = {}
    for layers, name, trainings in ((DPAM_LAYERS, "V-V", args.trainings), (0, "plain", 1)):
        features = extract_features(backbone, normalise(auxiliary.images), (backbone.layers,), layers, 32)
        trained = [learned(backbone, features, auxiliary, args.epochs, SEED + n) for n in range(trainings)]
        again = {f"learned prompts again, seed {SEED + n}": trained[n] for n in range(1, trainings)}
        texts[layers] = {
            f"learned prompts, {name} features": trained[0],
            f"hand-written prompts, {name} features": by_hand,
        } | again

    def judge(sets: dict[str, Samples]) -> dict[str, Any]:
        found: dict[str, dict[str, Found]] = {name: {} for name in sets}
        for layers, methods in texts.items():
            for name, samples in sets.items():
                found[name] |= zip(
                    methods, detect(backbone, samples.images, layers, list(methods.values())), strict=True
                )
        return compare(sets, found, args.size)

    real = {"solar cells": solar_cells(args.size)}
    real |= {name: labelled(file, args.size) for name, _, file in (text.partition("=") for text in args.labels)}
    result = {"held-out families": judge(generated("held_out", args.images, args.size))}
    result |= {name: judge({name: samples}) for name, samples in real.items()}
    for title, summary in result.items():
        show(title, summary)
    speed = measure_speed(backbone, by_hand, args.size)
    print(f"\n{speed:.0f} images a second from decoded 256-pixel images to map, at {args.size} pixels")
    if args.json:
        args.json.write_text(json.dumps({"images_per_second": speed, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
