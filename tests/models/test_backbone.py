"""Features of the published code, any member of the ViT family, and every form in which weights come."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from benchmarks import published_form
from models.backbone import Backbone, build_backbone, encode_image, linear, load_backbone
from models.prompts import PromptLearner
from tests.models import seeded
from tests.models.conftest import DPAM_LAYERS, FEATURE_LAYERS, IMAGE_SIZE, relative_error

TINY = seeded.config(embed=32, vision_width=64, vision_blocks=2, patch=32, image=224, text_width=64)


def test_position_embedding_is_the_published_one(small_backbone: Backbone, golden: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(small_backbone.positions.numpy(), golden["pos_embed_after"], atol=1e-6)


def test_features_are_the_published_ones(small_backbone, golden, golden_images) -> None:
    with torch.inference_mode():
        features = small_backbone.encode_image(golden_images, FEATURE_LAYERS, DPAM_LAYERS)
    assert relative_error(features.image, golden["image_raw"]) < 3e-6
    for layer, patches in zip(FEATURE_LAYERS, features.patches, strict=True):
        assert relative_error(patches, golden[f"patch_l{layer}"][:, 1:]) < 3e-6


@pytest.mark.parametrize("dpam_layers", [0, 1, 19, 24])
def test_features_agree_with_the_plain_statement_on_24_blocks(dpam_layers: int) -> None:
    """Layers before, at the edge of and inside the V-V range, at weights and images of another seed."""
    backbone = seeded.backbone(seeded.NARROW_24, 126, seed=7)
    images = torch.randn(2, 3, 126, 126, generator=torch.Generator().manual_seed(7))
    layers = [3, 5, 6, 12, 18, 24]
    with torch.inference_mode():
        found = backbone.encode_image(images, layers, dpam_layers)
        image, patches = published_form.vision_tower(backbone, images, layers, dpam_layers)
    assert relative_error(found.image, image.numpy()) < 3e-6
    for ours, plain in zip(found.patches, patches, strict=True):
        assert relative_error(ours, plain[:, 1:].numpy()) < 3e-6


@pytest.mark.parametrize("image_size", [64, 96, 208])
def test_any_image_size_that_the_patch_divides(image_size: int) -> None:
    backbone = seeded.backbone(seeded.SMALL, image_size)
    images = torch.randn(1, 3, image_size, image_size)
    with torch.inference_mode():
        found = backbone.encode_image(images, (6,), 4).patches[0]
        _, (plain,) = published_form.vision_tower(backbone, images, [6], 4)
    assert found.shape == (1, (image_size // 16) ** 2, 128)
    assert relative_error(found, plain[:, 1:].numpy()) < 3e-6


def test_an_image_size_that_the_patch_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="100 is not a multiple of the patch size 16"):
        seeded.backbone(seeded.SMALL, 100)


@pytest.mark.parametrize(("layers", "dpam"), [((), 4), ((0,), 4), ((7,), 4), ((6,), 7), ((6,), -1)])
def test_layers_that_do_not_exist_are_refused(small_backbone, layers, dpam) -> None:
    with pytest.raises(ValueError, match="must"):
        small_backbone.encode_image(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE), layers, dpam)


def test_the_towers_graph_is_captured_whole() -> None:
    """With gradients the CPU takes CUDA's branches; eager: what the graph holds, not what a compiler makes of it."""
    backbone, images = seeded.backbone(seeded.NARROW_24, 126, seed=3), torch.randn(2, 3, 126, 126)
    arguments = (backbone.clip.visual, backbone.positions, images, (12, 24), 19)
    with torch.enable_grad():
        found = torch.compile(encode_image, fullgraph=True, backend="eager")(*arguments)
        expected = encode_image(*arguments)
    assert torch.equal(found.image, expected.image)
    assert all(map(torch.equal, found.patches, expected.patches))


def test_products_through_onednn_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(2, 50, 96, generator=generator), torch.randn(64, generator=generator)
    weight = torch.randn(192, 96, generator=generator)[64:128]  # a part of in_proj, as for the class token alone
    with torch.no_grad():
        torch.testing.assert_close(linear(x[:, :1], weight, bias), F.linear(x[:, :1], weight, bias), atol=2e-5, rtol=0)
        torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), atol=2e-5, rtol=0)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def b32_state() -> dict[str, torch.Tensor]:
    """Seeded weights with the shapes of a model that open_clip knows, ViT-S-32-alt, narrow enough for a test."""
    import open_clip

    model = open_clip.create_model("ViT-S-32-alt")
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(value.shape, generator=generator) * 0.02
        for name, value in model.state_dict().items()
        if name != "attn_mask"
    }


def test_safetensors_and_plain_state_dict_load_to_the_same_weights(b32_state, tmp_path: Path) -> None:
    save_file(b32_state, tmp_path / "weights.safetensors")
    torch.save(b32_state, tmp_path / "weights.pt")
    digests = {load_backbone(f"ViT-S-32-alt:{tmp_path / name}").weights_sha256 for name in
               ("weights.safetensors", "weights.pt")}  # fmt: skip
    assert len(digests) == 1


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_without_the_text_tower_digest_and_features_are_the_same(b32_state, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    half = {name: value.half() for name, value in b32_state.items()}
    save_file(half, path) if suffix == "safetensors" else torch.save(half, path)
    whole, vision = (load_backbone(f"ViT-S-32-alt:{path}", 64, text_tower=both) for both in (True, False))
    assert vision.weights_sha256 == whole.weights_sha256
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(vision.encode_image(images, (8,), 6).image, whole.encode_image(images, (8,), 6).image)
    assert not [name for name in vision.state_dict() if not name.startswith(("clip.visual.", "clip.logit_scale"))]
    with pytest.raises(ValueError, match="loaded without its text tower"):
        PromptLearner(vision)


def test_half_precision_weights_are_held_in_fp32(b32_state, tmp_path: Path) -> None:
    save_file({name: value.half() for name, value in b32_state.items()}, tmp_path / "half.safetensors")
    backbone = load_backbone(f"ViT-S-32-alt:{tmp_path / 'half.safetensors'}")
    assert {p.dtype for p in backbone.clip.parameters()} == {torch.float32}


class Archive(torch.nn.Module):
    """A module whose TorchScript archive holds a state dict, as OpenAI published its models."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in state.items():
            *path, leaf = name.split(".")
            module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            module.register_parameter(leaf, torch.nn.Parameter(value, requires_grad=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture(scope="module")
def openai_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full ViT-B-32 in fp16, as open_clip knows the name."""
    c = seeded.config(embed=512, vision_width=768, vision_blocks=12, patch=32, image=224, text_width=512)
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randn(s, generator=generator).half() * 0.02 for n, s in seeded.shapes(c).items()}
    path = tmp_path_factory.mktemp("openai") / "ViT-B-32.pt"
    torch.jit.script(Archive(state)).save(str(path))
    return path


def test_openai_archive_loads_under_the_quick_gelu_name(openai_archive: Path) -> None:
    backbone = load_backbone(f"ViT-B-32-quickgelu:{openai_archive}", image_size=64)
    assert type(backbone.clip.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


class Writing(torch.nn.Module):
    """TorchScript that writes a file into the working directory when it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.weight, self.training = state
        torch.save(self.weight, "written.pt")

    def forward(self) -> torch.Tensor:
        return self.weight


def test_an_archive_whose_code_would_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.script(Writing()).save(str(tmp_path / "clip.pt"))
    torch.jit.load(str(tmp_path / "clip.pt"))
    assert (tmp_path / "written.pt").exists()  # torch does run it
    (tmp_path / "written.pt").unlink()
    with pytest.raises(ValueError, match="code that runs when it is loaded"):
        load_backbone(f"ViT-B-32-quickgelu:{tmp_path / 'clip.pt'}")
    assert not (tmp_path / "written.pt").exists()


def test_openai_weights_under_the_exact_gelu_name_are_refused_with_the_right_name(openai_archive: Path) -> None:
    with pytest.raises(ValueError, match=r"use 'ViT-B-32-quickgelu:"):
        load_backbone(f"ViT-B-32:{openai_archive}")


def test_openais_own_state_dict_and_tag_are_known_under_whatever_file_name(
    openai_archive: Path, tmp_path: Path
) -> None:
    state = dict(torch.jit.load(str(openai_archive)).state_dict())
    facts = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    torch.save(state | {name: torch.tensor(value) for name, value in facts.items()}, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=r"use 'ViT-B-32-quickgelu:"):
        load_backbone(f"ViT-B-32:{tmp_path / 'clip.pt'}")
    with pytest.raises(ValueError, match=r"use 'ViT-L-14-336-quickgelu:openai'"):
        load_backbone("ViT-L-14-336:openai")


@pytest.mark.parametrize(
    "content", [b"", b"not weights at all", [1, 2], torch.zeros(3), {"visual.proj": "text"}], ids=str
)
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_file_that_holds_no_weights_is_said_in_a_sentence(content: Any, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"cannot be read safely|are no state dict|are no tensors"):
        load_backbone(f"ViT-B-32-quickgelu:{path}")


def test_a_state_dict_of_the_older_file_format_loads(b32_state, tmp_path: Path) -> None:
    torch.save(b32_state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert load_backbone(f"ViT-S-32-alt:{tmp_path / 'old.pt'}").layers == 12


@pytest.mark.parametrize(
    "changed",
    [
        {"vision_cfg": {"no_ln_pre": True}}, {"vision_cfg": {"attentional_pool": True}},
        {"vision_cfg": {"patch_size": [16, 16]}}, {"vision_cfg": {"timm_model_name": "eva02_large"}},
        {"text_cfg": {"hf_model_name": "roberta-base"}}, {"text_cfg": {"no_causal_mask": True}},
    ],
    ids=str,
)  # fmt: skip
def test_other_towers_than_clips_own_are_refused(changed: dict[str, dict[str, Any]]) -> None:
    config = {**TINY, **{tower: TINY[tower] | other for tower, other in changed.items()}}
    with pytest.raises(ValueError, match="describes another tower"):
        build_backbone(config, seeded.weights(TINY), image_size=64)


def test_a_pickle_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    torch.save({"visual.proj": Evil()}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="cannot be read safely"):
        load_backbone(f"ViT-B-32-quickgelu:{tmp_path / 'weights.pt'}")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonsense", "neither 'embedded' nor"),
        ("ViT-L-14-337:openai", "did you mean"),
        ("ViT-B-32-quickgelu:/nowhere/weights.safetensors", "do not exist"),
        ("ViT-B-32-quickgelu:nonsense", "no pretrained tag or local file"),
        ("RN50-quickgelu:openai", "only plain CLIP vision transformers"),
        ("ViT-L-14-CLIPA:nonsense", "only plain CLIP vision transformers"),
        ("coca_ViT-B-32:nonsense", "only plain CLIP vision transformers"),
        ("ViT-B-32-quickgelu:s3://weights/b32.pt", "flows and commands fetch them"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_a_sentence(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_backbone(spec)


def test_a_hub_tag_without_a_network_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="give a local file or URI"):
        load_backbone("ViT-L-14-336-quickgelu:openai")


def test_weights_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit the model config"):
        build_backbone(TINY, seeded.weights(seeded.SMALL), image_size=224)


def test_the_digest_of_the_weights_changes_with_one_value() -> None:
    state = seeded.weights(TINY)
    before = build_backbone(TINY, state, image_size=64).weights_sha256
    state["visual.proj"] = state["visual.proj"].copy()
    state["visual.proj"][0, 0] += 1e-3
    assert build_backbone(TINY, state, image_size=64).weights_sha256 != before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ViT-B-16:metaclip_400m", "use 'ViT-B-16-quickgelu:metaclip_400m'"),
        ("ViT-H-14:dfn5b", "use 'ViT-H-14-quickgelu:dfn5b'"),
        ("ViT-L-14-336:weights.safetensors", "use 'ViT-L-14-336-quickgelu:weights.safetensors'"),  # OpenAI's alone
        ("ViT-L-14:laion2b_s32b_b82k", "not normalised with OpenAI's mean"),
    ],
)
def test_weights_that_were_trained_otherwise_are_refused_before_they_are_read(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_backbone(spec)


def test_weights_of_distributed_training_lose_their_prefix(b32_state, tmp_path: Path) -> None:
    torch.save(b32_state, tmp_path / "plain.pt")
    torch.save({"state_dict": {f"module.{name}": value for name, value in b32_state.items()}}, tmp_path / "module.pt")
    plain, module = (load_backbone(f"ViT-S-32-alt:{tmp_path / name}.pt", 64) for name in ("plain", "module"))
    assert plain.weights_sha256 == module.weights_sha256


def test_a_config_that_no_tower_can_have_is_refused() -> None:
    config = copy.deepcopy(seeded.SMALL)
    config["text_cfg"]["heads"] = 3
    with pytest.raises(ValueError, match="describes no CLIP"):
        build_backbone(config, seeded.weights(seeded.SMALL), 96)
