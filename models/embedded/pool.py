"""The images of pre-training: scenes that are drawn once, kept in memory, and warped anew every time."""

import multiprocessing
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from models.embedded.generator import DEFECTS, SPLIT, scene
from models.preprocess import normalise

SCENE_SIZE = 192
CHUNK = 256  # scenes a file
FAMILIES = SPLIT["pretrain"]
SHARE = {"part": 14, "pattern": 6, "photograph": 3, "kaleidoscope": 8, "hybrid": 9}  # scenes for each of a named family
DEFECT_NAMES = tuple(DEFECTS)


def make_chunk(job: tuple[Path, int, int]) -> None:
    """Write one file of n scenes: images (n, 3, S, S, 3) uint8, masks (n, 2, S, S), family (n,), defect (n, 2)."""
    path, first_seed, n = job
    if path.exists():
        return
    turns = [name for name in FAMILIES for _ in range(SHARE.get(name, 1))]
    names = [turns[i % len(turns)] for i in range(n)]
    scenes = [scene(name, SCENE_SIZE, first_seed + i) for i, name in enumerate(names)]
    partial = path.with_suffix(".tmp.npz")
    np.savez(
        partial,
        images=np.stack([np.stack([s.normal, *s.damaged]) for s in scenes]),
        masks=np.stack([np.stack(s.masks) for s in scenes]),
        family=np.array([FAMILIES.index(s.family) for s in scenes]),
        defect=np.array([[DEFECT_NAMES.index(kind) for kind in s.defects] for s in scenes]),
    )
    partial.rename(path)


def make_pool(folder: Path, scenes: int, seed: int) -> list[Path]:
    """Generate what is missing of the pool, on all cores; returns its files."""
    folder.mkdir(parents=True, exist_ok=True)
    key = zlib.crc32(repr((FAMILIES, SHARE)).encode())  # chunks hold numbers of families
    jobs = [
        (folder / f"chunk-{key:08x}-{chunk:04d}.npz", seed + chunk * CHUNK, CHUNK)
        for chunk in range(-(-scenes // CHUNK))
    ]
    context = multiprocessing.get_context("spawn")
    with context.Pool() as pool:
        for done, _ in enumerate(pool.imap_unordered(make_chunk, jobs), start=1):
            print(f"scenes {done * CHUNK}/{len(jobs) * CHUNK}", flush=True)
    return [path for path, _, _ in jobs]


@dataclass
class Batch:
    images: Tensor  # (3n, 3, S, S) normalised; normal, damaged, damaged of each scene
    masks: Tensor  # (3n, S, S) in [0, 1]
    family: Tensor  # (3n,)
    state: Tensor  # (3n,) -1 normal, else the defect's index


class Pool:
    """All scenes in memory (about 440 KB each), drawn at random and warped anew every time."""

    def __init__(self, files: list[Path]) -> None:
        def everything(name: str) -> np.ndarray:
            first = np.load(files[0])[name]
            whole = np.empty((len(files) * len(first), *first.shape[1:]), first.dtype)
            for i, path in enumerate(files):
                whole[i * len(first) : (i + 1) * len(first)] = np.load(path)[name]
            return whole

        self.images, self.masks, family, defect = map(everything, ("images", "masks", "family", "defect"))
        self.family, self.defect = torch.from_numpy(family), torch.from_numpy(defect)

    def draw(self, scenes: int, size: int, generator: torch.Generator) -> Batch:
        index = torch.randint(len(self.images), (scenes,), generator=generator)
        images = torch.empty(scenes, 3, size, size, 3, dtype=torch.uint8)
        masks = torch.zeros(scenes, 3, size, size)  # the first, of the flawless image, stays empty
        for i, warp in enumerate(random_warps(scenes, size, self.images.shape[2], generator)):
            for j, image in enumerate(self.images[index[i]]):
                images[i, j] = torch.from_numpy(warped(image, warp, size))
            for j, mask in enumerate(self.masks[index[i]], start=1):
                masks[i, j] = torch.from_numpy(warped(mask.astype(np.float32), warp, size))
        images = images[torch.arange(scenes)[:, None], :, :, :, random_channels(scenes, generator)]  # n 3(rgb) 3 S S
        images = normalise(images.permute(0, 2, 3, 4, 1).flatten(0, 1)).unflatten(0, (scenes, 3))
        gain = 1 + 0.15 * torch.randn(scenes, 1, 3, 1, 1, generator=generator)
        gain = gain * torch.where(torch.rand(scenes, 1, 1, 1, 1, generator=generator) < 0.2, -1.0, 1.0)  # a negative
        shift = 0.2 * torch.randn(scenes, 1, 3, 1, 1, generator=generator)
        state = torch.cat([torch.full((scenes, 1), -1), self.defect[index]], dim=1)
        state[masks.sum((2, 3)) < 3] = -1  # the crop left the defect out
        return Batch(
            (images * gain + shift).flatten(0, 1), masks.flatten(0, 1),
            self.family[index].repeat_interleave(3), state.flatten(),
        )  # fmt: skip


def random_channels(n: int, generator: torch.Generator) -> Tensor:
    """(n, 3) an order of the colour channels for each scene: hues are no clue to a family or a defect."""
    return torch.rand(n, 3, generator=generator).argsort(dim=1)


def random_warps(n: int, size: int, source: int, generator: torch.Generator) -> list[np.ndarray]:
    """Matrices (2, 3) from pixels of the result to those of the scene: zoom, rotation, flips, shift."""
    uniform = torch.rand(n, 5, generator=generator).numpy()
    zoom = np.minimum(np.exp((uniform[:, 0] - 0.5) * 0.8), source / size)  # pixels of the scene for one of the result
    quarter = torch.randint(4, (n,), generator=generator).numpy() * (np.pi / 2)
    angle = quarter + (uniform[:, 1] - 0.5) * 0.3
    flip = np.where(uniform[:, 2] < 0.5, -1.0, 1.0)
    shift = (uniform[:, 3:] - 0.5) * (source - zoom * size)[:, None]
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    turn = np.stack([np.stack([cos * flip, -sin], 1), np.stack([sin * flip, cos], 1)], 1)  # n 2 2
    middle = source / 2 - 0.5 + shift - turn.sum(2) * (size / 2 - 0.5)
    return list(np.concatenate([turn, middle[:, :, None]], 2))


def warped(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT)
