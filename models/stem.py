"""A convolutional stem in the place of a vision transformer's patch embedding, as the embedded backbone has it.

Overlapping convolutions find edges and small marks that a patchify convolution of 16 x 16 pixels has to learn one position
at a time ("Early convolutions help transformers see better", Xiao et al. 2021). These are inverted residuals
("MobileNetV2", Sandler et al. 2018) of the widths, kernels and strides of EfficientNet-Lite0's first blocks, which teach
them (`embedded/distil.py`).
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# of the blocks behind the first: channels, kernel, stride
BLOCKS = (
    (24, 3, 2), (24, 3, 1), (40, 5, 2), (40, 5, 1), (80, 3, 2),
    (80, 3, 1), (80, 3, 1), (112, 5, 1), (112, 5, 1), (112, 5, 1),
)  # fmt: skip
EXPANSION = 6
CACHED = 1_000_000  # activations: larger images a CPU takes one at a time, in about half of the time
TAPS = (4, 7, 10)  # the blocks whose outputs, at strides 8, 16 and 16, become tokens
CHANNELS = 4 * 40 + 80 + 112  # of a token before its projection


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True) -> Any:
    """The batch norm's place is empty but while the stem is trained, see `with_norms` and `folded`."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
    return nn.Sequential(conv, nn.Identity(), nn.ReLU6(inplace=True) if active else nn.Identity())


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = EXPANSION * inputs
        self.inner = nn.Sequential(
            convolution(inputs, wide, 1),
            convolution(wide, wide, kernel, stride, groups=wide),
            convolution(wide, outputs, 1, active=False),
        )
        self.skip = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        wide = EXPANSION * x.shape[1:].numel()
        alone = wide > CACHED and x.device.type == "cpu" and not torch.is_grad_enabled()
        y = torch.cat([self.inner(image) for image in x.split(1)]) if alone else self.inner(x)
        return x + y if self.skip else y


class ConvStem(nn.Module):
    """(B, 3, S, S) -> (B, width, S/16, S/16): the blocks, and a 1 x 1 projection of three of them, standardised."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        first = (convolution(3, 32, 3, 2), convolution(32, 32, 3, groups=32), convolution(32, 16, 1, active=False))
        self.blocks = nn.ModuleList((nn.Sequential(*first),))
        inputs = 16
        for outputs, kernel, stride in BLOCKS:
            self.blocks.append(InvertedResidual(inputs, outputs, kernel, stride))
            inputs = outputs
        self.register_buffer("mean", torch.zeros(CHANNELS, 1, 1))
        self.register_buffer("std", torch.ones(CHANNELS, 1, 1))
        self.projection = nn.Conv2d(CHANNELS, width, 1)

    def forward(self, images: Tensor) -> Tensor:
        learns = torch.is_grad_enabled() and next(self.blocks.parameters()).requires_grad
        # backward of its depthwise convolutions in bf16 takes a CPU twice the time of fp32
        with torch.autocast(images.device.type, enabled=False) if learns else nullcontext():
            features = self.features(images)
        return self.projection((features - self.mean) / self.std)

    def features(self, images: Tensor) -> Tensor:
        """(B, CHANNELS, S/16, S/16) what the blocks of TAPS give, 2 x 2 positions of the first side by side."""
        x, found = images.contiguous(memory_format=torch.channels_last), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in TAPS:
                found.append(x)
        return torch.cat([F.pixel_unshuffle(found[0], 2), *found[1:]], dim=1)


def with_norms(stem: ConvStem) -> ConvStem:
    """The stem with a batch norm behind each convolution of its blocks, to train it."""
    for unit in units(stem):
        unit[1] = nn.BatchNorm2d(unit[0].out_channels)
    return stem


def folded(stem: ConvStem) -> ConvStem:
    """The stem with its batch norms' running statistics folded into the convolutions, which is the same function."""
    for unit in units(stem.eval()):
        unit[0], unit[1] = fuse_conv_bn_eval(unit[0], unit[1]), nn.Identity()
    return stem


def units(stem: ConvStem) -> list[Any]:
    """Convolution, norm or nothing, activation or nothing: of each convolution of the blocks."""
    return [m for m in stem.blocks.modules() if isinstance(m, nn.Sequential) and isinstance(m[0], nn.Conv2d)]
