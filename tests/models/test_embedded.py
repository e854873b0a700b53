"""The backbone that ships: what it is, that it sees defects on families it never met, and that its training resumes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.backbone import build_backbone, load_backbone, project_patches, resize_positions, two_streams
from models.embedded import DPAM_LAYERS, FOLDER, IMAGE_SIZE, embedded_config, expand_vocabulary
from models.embedded.captions import state_pairs, tokens
from models.embedded.distil import Teacher, distil
from models.embedded.generator import SPLIT, scene
from models.embedded.pool import Pool, make_chunk
from models.embedded.pretrain import Phase, build_clip, compact_ids, encode_text, export, train, used_tokens
from models.metrics import pixel_metrics
from models.preprocess import normalise
from models.stem import ConvStem, units
from tests.models.conftest import relative_error


def test_it_ships_in_less_than_30_megabytes() -> None:
    assert (FOLDER / "weights.safetensors").stat().st_size < 30e6
    assert (FOLDER / "README.md").is_file()


def test_it_is_an_ordinary_open_clip_model_with_clips_vocabulary() -> None:
    backbone = load_backbone("embedded")
    assert backbone.clip.token_embedding.weight.shape == (49408, embedded_config()["text_cfg"]["width"])
    assert backbone.image_size == IMAGE_SIZE
    images = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert backbone.clip(images, tokens(["a photo of an object"]).new_zeros(1, 77))[0].shape == (1, 192)


def test_it_localises_defects_of_families_that_no_training_saw() -> None:
    """By hand-written captions alone, at its default size; chance is 0.5."""
    backbone = load_backbone("embedded", IMAGE_SIZE)
    scenes = [scene(family, IMAGE_SIZE, seed=n, n_damaged=1) for n in range(4) for family in SPLIT["held_out"]]
    images = normalise(np.stack([made.damaged[0] for made in scenes]))
    normal, damaged = state_pairs(np.random.default_rng(0), ["object"], 8)
    with torch.inference_mode():
        depth = backbone.layers
        _, (stream,) = two_streams(backbone.clip.visual, backbone.positions, images, (depth,), DPAM_LAYERS)
        patches = torch.nn.functional.normalize(project_patches(backbone.clip.visual, stream), dim=-1)
        texts = backbone.clip.encode_text(pad(tokens(normal + damaged)), normalize=True)
        direction = texts[8:].mean(0) - texts[:8].mean(0)
        maps = (patches @ direction).unflatten(1, (backbone.grid, backbone.grid))
    masks = np.stack([made.masks[0] for made in scenes])
    found = torch.nn.functional.interpolate(maps[:, None], IMAGE_SIZE, mode="bilinear")[:, 0].numpy()
    assert pixel_metrics(masks, found)["auroc"] > 0.75


def pad(ids: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(ids, (0, 77 - ids.shape[1]))


def test_tokens_that_training_never_met_share_one_row() -> None:
    ids = torch.tensor([[0, 320, 49405]])
    rows = compact_ids(ids)
    assert int(rows[0, 2]) == len(used_tokens())
    assert torch.equal(used_tokens()[rows[0, :2]], ids[0, :2])


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    path = tmp_path_factory.mktemp("pool") / "chunk-0000.npz"
    make_chunk((path, 0, 28))
    return Pool([path])


@pytest.fixture
def stem() -> ConvStem:
    torch.manual_seed(0)
    stem = ConvStem(192)
    stem.blocks.requires_grad_(False)
    return stem


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def draws(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for each batch that is drawn."""
    drawn, draw = list[int](), Pool.draw

    def noted(*arguments: Any) -> Any:
        drawn.append(len(drawn))
        return draw(*arguments)

    monkeypatch.setattr(Pool, "draw", noted)
    return drawn


def test_the_stem_could_be_all_that_its_teacher_is(stem: ConvStem) -> None:
    """With the teacher's own convolutions, turned like the images that it sees, every block gives the same."""
    teacher = Teacher(len(stem.blocks))
    convolutions = [(teacher.net._conv_stem, teacher.net._bn0)]
    for block in teacher.blocks:
        expand = [(block._expand_conv, block._bn0)] if hasattr(block, "_expand_conv") else []
        convolutions += [*expand, (block._depthwise_conv, block._bn1), (block._project_conv, block._bn2)]
    for unit, (conv, norm) in zip(units(stem.eval()), convolutions, strict=True):
        fused = fuse_conv_bn_eval(conv, norm)
        unit[0].weight, unit[0].bias = nn.Parameter(fused.weight.flip(2, 3)), fused.bias
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    x = images * teacher.gain + teacher.shift
    with torch.inference_mode():
        for block, expected in zip(stem.blocks, teacher(images), strict=True):
            x = block(x)
            assert relative_error(x, expected.numpy()) < 1e-5


def test_a_stem_whose_teaching_was_stopped_goes_on_as_if_it_had_not(pool: Pool, draws, tmp_path: Path) -> None:
    """Two steps with the blocks apart, one with them chained, one with settled norms; a last draw standardises."""

    def taught(stop: int) -> dict[str, torch.Tensor]:
        return distil(pool, 192, (2, 1, 1), 4, 0, tmp_path / "stopped", stop).state_dict()

    quiet = distil(pool, 192, (2, 1, 1), 4, 0, tmp_path / "quiet").state_dict()
    assert len(draws) == 4 + 1
    assert not same(taught(1), quiet)
    assert not same(taught(3), quiet)
    assert same(taught(4), quiet)
    assert len(draws) == 4 + 1 + 4 + 3  # none a second time


@pytest.mark.parametrize("stem_lr", [0.0, 0.1])
def test_pretraining_that_was_stopped_goes_on_as_if_it_had_not(
    pool: Pool, draws, stem: ConvStem, stem_lr: float, tmp_path: Path
) -> None:
    phase = Phase("smoke", 0, 4, whole=0.25, peak_lr=1e-3, stem_lr=stem_lr)
    taught = {name: value.clone() for name, value in stem.blocks.state_dict().items()}
    clip = build_clip(stem, seed=0)
    start = {name: value.clone() for name, value in clip.state_dict().items()}
    quiet = train(pool, clip, phase, 2, 0, tmp_path / "quiet.pt").state_dict()
    assert same(stem.blocks.state_dict(), taught) is (stem_lr == 0)
    clip.load_state_dict(start)
    train(pool, clip, phase, 2, 0, tmp_path / "stopped.pt", stop=2)
    clip.load_state_dict(start)
    resumed = train(pool, clip, phase, 2, 0, tmp_path / "stopped.pt").state_dict()
    for name, value in quiet.items():
        torch.testing.assert_close(resumed[name], value, msg=name)
    assert len(draws) == 4 + 2 + 2


def test_what_is_exported_is_what_was_trained(stem: ConvStem, tmp_path: Path) -> None:
    """To the rounding of fp16, but for the constant vector in the patch features."""
    clip = build_clip(stem, seed=0).eval()
    images = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    ids = tokens(["a photo of a scratched object"])
    export(clip.state_dict(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    state = expand_vocabulary(load_file(tmp_path / "weights.safetensors"), config["text_cfg"]["vocab_size"])
    backbone = build_backbone(config, state, IMAGE_SIZE)
    with torch.inference_mode():
        positions = resize_positions(clip.visual.positional_embedding, IMAGE_SIZE // 16)
        trained, _ = two_streams(clip.visual, positions, images, (4,), DPAM_LAYERS)
        found = backbone.encode_image(images, (4,), DPAM_LAYERS).image
        assert relative_error(found, (trained @ clip.visual.proj).numpy()) < 5e-3
        text = backbone.clip.encode_text(F.pad(ids, (0, 77 - ids.shape[1])), normalize=True)
        assert relative_error(text, encode_text(clip, ids).numpy()) < 5e-3
