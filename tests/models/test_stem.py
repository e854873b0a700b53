"""The convolutional stem: its shapes, its batch norms, and the place that it takes in a backbone."""

import pytest
import torch

from models.backbone import build_backbone, load_backbone
from models.detector import in_precision
from models.stem import CHANNELS, ConvStem, folded, with_norms


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def stem() -> ConvStem:
    torch.manual_seed(0)
    return ConvStem(48)


def test_one_vector_for_each_16_pixels(stem: ConvStem, images: torch.Tensor) -> None:
    assert stem(images).shape == (2, 48, 4, 6)
    assert stem.features(images).shape == (2, CHANNELS, 4, 6)


def test_large_images_taken_one_at_a_time_give_the_same(stem: ConvStem) -> None:
    images = torch.randn(3, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    expected = stem(images).detach()  # where gradients are asked for, the batch stays one
    with torch.no_grad():
        torch.testing.assert_close(stem(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("learns", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_under_autocast_it_learns_in_fp32(
    stem: ConvStem, images: torch.Tensor, learns: bool, dtype: torch.dtype
) -> None:
    stem.blocks.requires_grad_(learns)
    seen = []
    stem.blocks[-1].register_forward_hook(lambda _block, _inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert stem(images).dtype == torch.bfloat16
    assert seen == [dtype]


def test_folding_the_norms_does_not_change_what_it_computes(stem: ConvStem, images: torch.Tensor) -> None:
    with_norms(stem).train()
    for _ in range(3):
        stem(images)  # the running statistics move
    expected = stem.eval()(images)
    names = ConvStem(48).state_dict().keys()
    assert folded(stem).state_dict().keys() == names
    torch.testing.assert_close(stem(images), expected, rtol=1e-4, atol=1e-5)


def test_a_config_without_it_does_not_take_its_weights() -> None:
    backbone = load_backbone("embedded", 96)
    plain = backbone.config | {"conv_stem": False}
    with pytest.raises(ValueError, match="do not fit"):
        build_backbone(plain, backbone.clip.state_dict(), 96)


def test_reduced_precision_leaves_it_as_it_is() -> None:
    visual = load_backbone("embedded", 96).clip.visual
    reduced = in_precision(visual, "bf16")
    assert all(value.dtype == torch.float32 for value in reduced.conv1.state_dict().values())
