"""A convolutional stem in the place of a vision transformer's patch embedding, as the embedded backbone has it.

Overlapping convolutions find edges and small marks that a patchify convolution of 16 x 16 pixels has to learn one position
at a time ("Early convolutions help transformers see better", Xiao et al. 2021).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

STRIDES = (4, 8, 16)  # of the three stages
WIDTHS = (64, 96, 192)  # their channels


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """The batch norm's place is empty but while the stem is trained, see `with_norms` and `folded`."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.Identity(), nn.ReLU(inplace=True))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(convolution(width, width), convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class ConvStem(nn.Module):
    """(B, 3, S, S) -> (B, width, S/16, S/16): three stages of convolutions and a 1 x 1 projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        quarter, eighth, sixteenth = WIDTHS
        self.stages = nn.ModuleList(
            (
                nn.Sequential(convolution(3, 32, stride=2), convolution(32, quarter, stride=2)),
                nn.Sequential(convolution(quarter, eighth, stride=2), Residual(eighth)),
                nn.Sequential(convolution(eighth, sixteenth, stride=2), Residual(sixteenth), Residual(sixteenth)),
            )
        )
        self.projection = nn.Conv2d(sixteenth, width, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(self.outputs(images)[-1])

    def outputs(self, images: Tensor) -> list[Tensor]:
        """What each stage gives, (B, WIDTHS[i], S / STRIDES[i], S / STRIDES[i])."""
        x, found = images.contiguous(memory_format=torch.channels_last), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


def with_norms(stem: ConvStem) -> ConvStem:
    """The stem with a batch norm behind each 3 x 3 convolution, to train it."""
    for unit in units(stem):
        unit[1] = nn.BatchNorm2d(unit[0].out_channels)
    return stem


def folded(stem: ConvStem) -> ConvStem:
    """The stem with its batch norms' running statistics folded into the convolutions, which is the same function."""
    for unit in units(stem.eval()):
        unit[0], unit[1] = fuse_conv_bn_eval(unit[0], unit[1]), nn.Identity()
    return stem


def units(stem: ConvStem) -> list[Any]:
    """Convolution, norm or nothing, activation: of each 3 x 3 convolution."""
    return [m for m in stem.modules() if isinstance(m, nn.Sequential) and isinstance(m[0], nn.Conv2d)]
