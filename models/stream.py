"""Scoring of a stream of batches without making the device wait for the host.

On a GPU, pixels go over as uint8 from pinned memory, results come back into pinned memory, and a batch is read only when
the next one has been queued. On the CPU the same code runs batch after batch.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.detector import Detector
from models.preprocess import normalise


class Scored(NamedTuple):
    """scores (B,) and patch grids (B, g, g), float32."""

    scores: np.ndarray
    grids: np.ndarray


class InFlight(NamedTuple):
    scores: Tensor
    grids: Tensor
    done: torch.cuda.Event | None

    def wait(self) -> Scored:
        if self.done:
            self.done.synchronize()
        return Scored(self.scores.numpy(), self.grids.numpy())


def score_stream(detector: Detector, batches: Iterable[np.ndarray]) -> Iterator[Scored]:
    """One result a batch, in order; a batch is (B, S, S, 3) uint8 as models.preprocess.to_square makes it."""
    before: InFlight | None = None
    for pixels in batches:
        current = launch(detector, torch.from_numpy(pixels))
        if before:
            yield before.wait()
        before = current
    if before:
        yield before.wait()


@torch.inference_mode()
def launch(detector: Detector, pixels: Tensor) -> InFlight:
    """Queue one batch (of any length, none included) and the copies to the device and back."""
    device = detector.text_features.device
    if not len(pixels):
        side = math.isqrt(detector.positions.shape[0] - 1)
        return InFlight(torch.empty(0), torch.empty(0, side, side), done=None)
    if device.type != "cuda":
        scores, grids = detector.score_grids(normalise(pixels.to(device)))
        return InFlight(scores, grids, done=None)
    pixels = pixels.pin_memory().to(device, non_blocking=True)
    scores, grids = (result.to("cpu", non_blocking=True) for result in detector.score_grids(normalise(pixels)))
    done = torch.cuda.Event()
    done.record()
    return InFlight(scores, grids, done)


def batch_size_for(detector: Detector) -> int:
    """Images a batch: about 8,192 tokens on a CPU, eight times that on a GPU, at most 256 images."""
    tokens = detector.positions.shape[0]
    budget = 65_536 if detector.text_features.device.type == "cuda" else 8_192
    return max(1, min(256, budget // tokens))
