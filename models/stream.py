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

UNLIMITED = 1 << 30


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
    at_once = UNLIMITED
    for pixels in batches:
        current, at_once = launch(detector, torch.from_numpy(pixels), at_once)
        if before:
            yield before.wait()
        before = current
    if before:
        yield before.wait()


@torch.inference_mode()
def launch(detector: Detector, pixels: Tensor, at_once: int = UNLIMITED) -> tuple[InFlight, int]:
    """Queue one batch (of any length, none included) and the copies to the device and back; see score_in_parts."""
    device = detector.text_features.device
    if not len(pixels):
        side = math.isqrt(detector.positions.shape[0] - 1)
        return InFlight(torch.empty(0), torch.empty(0, side, side), done=None), at_once
    scores, grids, at_once = score_in_parts(detector, send(pixels, device), at_once)
    if device.type != "cuda":
        return InFlight(scores, grids, done=None), at_once
    scores, grids = (result.to("cpu", non_blocking=True) for result in (scores, grids))  # into pinned memory
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(device))  # by itself it takes the current device's, which may be another
    return InFlight(scores, grids, done), at_once


def send(pixels: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; to a GPU from pinned memory, without waiting for it."""
    return pixels.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else pixels.to(device)


def score_in_parts(detector: Detector, pixels: Tensor, at_once: int) -> tuple[Tensor, Tensor, int]:
    """Scores and grids of one batch, at most at_once images at a time, and the number that fitted.

    at_once is halved whenever the device's memory runs out; a single image that does not fit raises OutOfMemoryError.
    """
    while True:
        try:
            parts = [detector.score_grids(normalise(part)) for part in pixels.split(at_once)]
            return torch.cat([scores for scores, _ in parts]), torch.cat([grids for _, grids in parts]), at_once
        except torch.OutOfMemoryError:
            if min(at_once, len(pixels)) == 1:
                raise
        at_once = (min(at_once, len(pixels)) + 1) // 2  # out here, where the failed attempt's tensors are gone


def batch_size_for(detector: Detector) -> int:
    """Images a batch, at most 256: as many as have 65,536 tokens on a GPU, 1.6 million activations on a CPU.

    On a CPU, ViT-L's images at 518 pixels are 6 % faster one at a time than eight together. Those of the embedded backbone
    are 7 % faster by 7 than by 32 in a bare loop, but `score`, whose threads read and write beside it, is 5 to 13 % faster
    by 32.
    """
    tokens, width = detector.positions.shape
    budget = 65_536 if detector.text_features.device.type == "cuda" else 1_600_000 // width
    return max(1, min(256, budget // tokens))
