"""The ensemble and WinCLIP's windows against loops over prompts, windows and images; CLIP against open_clip itself."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

from models.backbone import Backbone
from models.baselines import PROMPTS, Baseline, ClipDetector, baseline_config, harmonic_map
from models.stream import batch_size_for
from tests.models import seeded

TEMPERATURE = 0.07
STATES = {
    "normal": ["{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect",
               "{} without damage"],
    "abnormal": ["damaged {}", "{} with flaw", "{} with defect", "{} with damage"],
}  # fmt: skip
TEMPLATES = [
    "a cropped photo of the {}.", "a cropped photo of a {}.", "a close-up photo of a {}.", "a close-up photo of the {}.",
    "a bright photo of a {}.", "a bright photo of the {}.", "a dark photo of the {}.", "a dark photo of a {}.",
    "a jpeg corrupted photo of a {}.", "a jpeg corrupted photo of the {}.", "a blurry photo of the {}.",
    "a blurry photo of a {}.", "a photo of a {}.", "a photo of the {}.", "a photo of a small {}.",
    "a photo of the small {}.", "a photo of a large {}.", "a photo of the large {}.",
    "a photo of the {} for visual inspection.", "a photo of a {} for visual inspection.",
    "a photo of the {} for anomaly detection.", "a photo of a {} for anomaly detection.",
]  # fmt: skip


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """A grid of 6 x 6 patches, at an image size that is not the trained one."""
    return seeded.backbone(seeded.SMALL, 96, seed=3)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(3))


def plain_text(backbone: Backbone, prompts: list[str]) -> torch.Tensor:
    """One prompt after the other through open_clip's own text tower."""
    from open_clip import tokenize

    total = torch.zeros(backbone.embed_dim)
    for prompt in prompts:
        (feature,) = backbone.clip.encode_text(tokenize([prompt]))
        total += feature / feature.norm()
    return total / total.norm()


def plain_tokens(backbone: Backbone, image: torch.Tensor) -> torch.Tensor:
    """(1 + P, C) of one image before the first block, by open_clip's modules."""
    visual = backbone.clip.visual
    patches = visual.conv1(image[None]).flatten(2)[0].T
    return visual.ln_pre(torch.cat([visual.class_embedding[None], patches]) + backbone.positions)


def plain_features(backbone: Backbone, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens (N, C) -> features (N, D) through open_clip's whole transformer, ln_post and projection."""
    visual = backbone.clip.visual
    return (visual.ln_post(visual.transformer(tokens[None])) @ visual.proj)[0]


def plain_probability(feature: torch.Tensor, normal: torch.Tensor, abnormal: torch.Tensor) -> float:
    feature = feature / feature.norm()
    return float(torch.softmax(torch.stack([feature @ normal, feature @ abnormal]) / TEMPERATURE, dim=0)[1])


def plain_winclip(
    backbone: Backbone, image: torch.Tensor, normal: torch.Tensor, abnormal: torch.Tensor
) -> tuple[float, list[list[float]]]:
    """Window by window: each patch collects the inverse scores of the windows that cover it."""
    side = backbone.grid
    tokens = plain_tokens(backbone, image)
    score = plain_probability(plain_features(backbone, tokens)[0], normal, abnormal)
    inverse: dict[int, dict[tuple[int, int], list[float]]] = {}
    for size in (2, 3):
        inverse[size] = {(row, column): [] for row in range(side) for column in range(side)}
        for top in range(side - size + 1):
            for left in range(side - size + 1):
                patches = [(top + i, left + j) for i in range(size) for j in range(size)]
                window = torch.stack([tokens[0], *(tokens[1 + row * side + column] for row, column in patches)])
                found = plain_probability(plain_features(backbone, window)[0], normal, abnormal)
                for patch in patches:
                    inverse[size][patch].append(1 / found)
    grid = []
    for row in range(side):
        scales = [1 / score]  # of the harmonic means, inverted: the image, small and middle windows
        line = []
        for column in range(side):
            covering = [inverse[size][row, column] for size in (2, 3)]
            line.append(3 / (scales[0] + sum(sum(values) / len(values) for values in covering)))
        grid.append(line)
    return score, grid


@cache
def build(backbone: Backbone, name: str) -> Baseline:
    return Baseline(baseline_config(name, backbone), backbone, device="cpu")


@torch.no_grad()
def test_the_ensemble_is_every_state_in_every_template(backbone: Backbone) -> None:
    expected = []
    for states in STATES.values():
        prompts = []
        for state in states:
            for template in TEMPLATES:
                prompts.append(template.format(state.format("metal nut")))
        expected.append(plain_text(backbone, prompts))
    found = build(backbone, "winclip").for_class("metal_nut").text_features
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)
    assert [len(part) for part in PROMPTS["winclip"]] == [7 * 22, 4 * 22]


@torch.no_grad()
def test_clip_ac_has_the_words_of_clip_in_the_templates_for_imagenet(backbone: Backbone) -> None:
    words = ("normal metal nut", "anomalous metal nut")
    expected = [plain_text(backbone, [template(word) for template in OPENAI_IMAGENET_TEMPLATES]) for word in words]
    found = build(backbone, "clip-ac").for_class("metal_nut").text_features
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)
    assert PROMPTS["clip-ac"][1][0] == "a bad photo of a anomalous {}."


@torch.no_grad()
@pytest.mark.parametrize("name", ["clip", "clip-ac"])
def test_clip_is_open_clips_own_class_token_and_patch_tokens(backbone: Backbone, images, name: str) -> None:
    detector = build(backbone, name).for_class("nut")
    normal, abnormal = detector.text_features
    if name == "clip":
        torch.testing.assert_close(normal, plain_text(backbone, ["a photo of a normal nut"]), atol=1e-5, rtol=0)
        torch.testing.assert_close(abnormal, plain_text(backbone, ["a photo of an anomalous nut"]), atol=1e-5, rtol=0)
    scores, grids = detector.score_grids(images)
    for image, score, grid in zip(images, scores, grids, strict=True):
        features = plain_features(backbone, plain_tokens(backbone, image))
        expected = torch.tensor([plain_probability(feature, normal, abnormal) for feature in features])
        torch.testing.assert_close(torch.cat([score[None], grid.flatten()]), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_winclip_is_the_loop_over_images_and_windows(backbone: Backbone, images, monkeypatch) -> None:
    monkeypatch.setattr("models.baselines.WINDOW_TOKENS", 200)  # several parts of each size, the last one shorter
    detector = build(backbone, "winclip").for_class("nut")
    scores, grids = detector.score_grids(images)
    for image, score, grid in zip(images, scores, grids, strict=True):
        expected, expected_grid = plain_winclip(backbone, image, *detector.text_features)
        assert float(score) == pytest.approx(expected, abs=1e-5)
        torch.testing.assert_close(grid, torch.tensor(expected_grid), atol=1e-5, rtol=0)


def test_winclips_image_score_is_that_of_the_whole_image_and_its_map_is_not_that_of_the_patches(
    backbone: Backbone, images
) -> None:
    windows = build(backbone, "winclip").for_class("nut")
    whole = ClipDetector(windows.visual, windows.positions, windows.text_features, windows.config, {}, "fp32")
    (score, grid), (other_score, other_grid) = windows.score_grids(images), whole.score_grids(images)
    torch.testing.assert_close(score, other_score, atol=1e-6, rtol=0)
    assert (grid - other_grid).abs().max() > 1e-3


def test_a_patch_has_the_harmonic_mean_of_the_windows_that_cover_it() -> None:
    grid = harmonic_map(torch.tensor([[1.0, 0.75, 0.5, 0.25]]), size=2)[0]
    middle = 4 / (1 + 1 / 0.75 + 2 + 4)
    expected = [[1, 2 / (1 + 1 / 0.75), 0.75], [2 / (1 + 2), middle, 2 / (1 / 0.75 + 4)], [0.5, 2 / (2 + 4), 0.25]]
    torch.testing.assert_close(grid, torch.tensor(expected))


@pytest.mark.parametrize("name", PROMPTS)
def test_each_class_has_its_own_prompts_and_an_image_is_scored_the_same_in_any_company(
    backbone: Backbone, images, name: str
) -> None:
    baseline = build(backbone, name)
    nut, tile = baseline.for_class("nut"), baseline.for_class("tile")
    together, of_tile = nut(images), tile(images)
    assert not torch.allclose(together.score, of_tile.score, atol=1e-5)
    for i, image in enumerate(images):
        alone = nut(image[None])
        torch.testing.assert_close(together.score[i], alone.score[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(together.map[i], alone.map[0], atol=1e-6, rtol=0)
    assert batch_size_for(nut) > 1


@pytest.mark.parametrize("name", ["clip", "winclip"])
def test_reduced_precision_stays_near(backbone: Backbone, images, name: str) -> None:
    near = Baseline(baseline_config(name, backbone), backbone, "cpu", "bf16").for_class("nut")(images[:1])
    assert 0 < (build(backbone, name).for_class("nut")(images[:1]).map - near.map).abs().max() < 0.05


def test_weights_and_sizes_that_do_not_fit_are_refused(backbone: Backbone) -> None:
    config = baseline_config("winclip", backbone)
    with pytest.raises(ValueError, match="made on other weights"):
        Baseline(replace(config, weights_sha256="0" * 64), backbone)
    small = Backbone(backbone.clip, backbone.config, 32, backbone.spec, backbone.weights_sha256)
    with pytest.raises(ValueError, match="do not fit an image of 32 pixels"):
        baseline_config("winclip", small)
