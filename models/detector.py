"""The detector: a frozen vision tower, two text features, and what turns their cosines into scores and maps.

Text features are kept, not the text tower: scoring needs only the vision tower, and a bundle holds all the rest.
"""

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from models.backbone import Backbone, check_layers, encode_image, load_backbone, pack_matrices
from models.losses import TEMPERATURE, patch_probabilities
from models.maps import upsample
from models.preprocess import preprocess
from models.prompts import PromptLearner

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BUNDLE_FILES = ("config.json", "prompts.safetensors", "text_features.safetensors", "threshold.json")


class Prediction(NamedTuple):
    """score: (B,) P(abnormal | image) in [0, 1]; map: (B, S, S), summed over the feature layers, smoothed. On the CPU."""

    score: Tensor
    map: Tensor


@dataclass(frozen=True)
class DetectorConfig:
    """What a bundle's config.json holds; sigma is in pixels of the image_size x image_size map.

    baseline: one of models.baselines, whose prompts are not learned; None for AnomalyCLIP.
    """

    backbone: str
    weights_sha256: str
    image_size: int
    feature_layers: tuple[int, ...] = (24,)
    dpam_layers: int = 19
    sigma: float = 4.0
    temperature: float = TEMPERATURE
    n_ctx: int = 12
    depth: int = 9
    deep_ctx: int = 4
    training: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None


class Detector(nn.Module):
    """Scores batches of preprocessed images; build it from a backbone and prompts, or load it from a bundle."""

    positions: Tensor  # (1 + P, C), resized to the image size
    text_features: Tensor  # (2, D), L2-normalised: normal, abnormal

    def __init__(
        self,
        visual: Any,
        positions: Tensor,
        text_features: Tensor,
        config: DetectorConfig,
        prompt_tensors: dict[str, Tensor],
        precision: str,
    ) -> None:
        super().__init__()
        check_layers(config.feature_layers, config.dpam_layers, len(visual.transformer.resblocks))
        self.visual, self.config, self.prompt_tensors = in_precision(visual, precision), config, prompt_tensors
        self.encode = encode_image
        self.register_buffer("positions", positions)
        self.register_buffer("text_features", text_features)

    @classmethod
    def build(
        cls,
        backbone: Backbone,
        prompts: PromptLearner,
        image_size: int = 518,
        feature_layers: Sequence[int] = (24,),
        dpam_layers: int = 19,
        sigma: float = 4.0,
        precision: str = "fp32",
        training: dict[str, Any] | None = None,
    ) -> "Detector":
        """A detector on a backbone's device. Defaults are the paper's, for ViT-L/14@336 at 518 pixels.

        training: facts to keep in the bundle. Raises ValueError where sizes or layers do not fit the backbone, or the text
        features of the prompts are not finite.
        """
        if image_size != backbone.image_size:
            raise ValueError(f"image size {image_size} differs from the backbone's {backbone.image_size}")
        config = DetectorConfig(
            backbone.spec, backbone.weights_sha256, image_size, tuple(feature_layers), dpam_layers, sigma,
            n_ctx=prompts.n_ctx, depth=prompts.depth, deep_ctx=prompts.deep_ctx, training=training or {},
        )  # fmt: skip
        with torch.no_grad():
            text = prompts.text_features().detach()
        if not text.isfinite().all():
            raise ValueError("the prompts have no finite text features")
        tensors = {name: value.detach().cpu().clone() for name, value in prompts.state_dict().items()}
        return cls(backbone.clip.visual, backbone.positions, text, config, tensors, precision)

    def preprocess(self, image: Image.Image) -> Tensor:
        """(3, S, S) float32 on the CPU, as the published code prepares images."""
        return preprocess(image, self.config.image_size)

    @torch.inference_mode()
    def score_grids(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B,) and patch grids (B, g, g), float32, on the model's device: nothing here waits for the device.

        A grid is the abnormal probability of each patch, summed over the feature layers; maps of any size follow from it.
        """
        size = self.config.image_size
        if images.shape[1:] != (3, size, size):
            raise ValueError(f"images of shape {tuple(images.shape)} are not (B, 3, {size}, {size})")
        images = images.to(self.text_features.device, non_blocking=True)
        features = self.encode(self.visual, self.positions, images, self.config.feature_layers, self.config.dpam_layers)
        image = features.image / features.image.norm(dim=-1, keepdim=True)
        score = torch.softmax(image @ self.text_features.T / self.config.temperature, dim=-1)[:, 1]
        layers = [
            patch_probabilities(patches, self.text_features, self.config.temperature)[..., 1]
            for patches in features.patches
        ]
        side = math.isqrt(self.positions.shape[0] - 1)
        return score, torch.stack(layers).sum(dim=0).unflatten(1, (side, side))

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Prediction:
        """images: (B, 3, S, S), preprocessed; any B."""
        score, grids = self.score_grids(images)
        return Prediction(score.cpu(), upsample(grids, self.config.image_size, self.config.sigma).cpu())

    def pack(self) -> "Detector":
        """Bring the tower's matrices into the form in which a CPU multiplies fastest; whoever shares the tower shares it."""
        pack_matrices(self.visual, len(self.positions))
        return self

    def save(self, folder: str | Path) -> Path:
        """Write the bundle: config, learned prompts and text features, never the CLIP weights."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_bundle_config(folder, self.config)
        save_file(self.prompt_tensors, folder / "prompts.safetensors")
        save_file({"text_features": self.text_features.cpu().contiguous()}, folder / "text_features.safetensors")
        return folder


def in_precision(visual: nn.Module, precision: str) -> nn.Module:
    """The tower with the matrices of its blocks in the given precision; the given module is not changed.

    Layer norms, the residual stream, the patch embedding and the last projection stay fp32: they cost little and their
    rounding shows. fp32 shares the given module; the others are a copy, which holds no second set of fp32 matrices even
    while it is made.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return visual
    reduced: dict[int, Any] = {}  # what deepcopy takes instead of copying
    for module in visual.modules():
        if isinstance(module, (nn.Linear, nn.MultiheadAttention)):
            for tensor in module.parameters():
                reduced[id(tensor)] = nn.Parameter(tensor.detach().to(PRECISIONS[precision]), requires_grad=False)
    return copy.deepcopy(visual, reduced)


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def write_bundle_config(folder: Path, config: DetectorConfig) -> None:
    given = {name: value for name, value in asdict(config).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(given, indent=2, sort_keys=True) + "\n")


def read_bundle_config(folder: str | Path) -> DetectorConfig:
    """config.json of a bundle folder; ValueError where there is none or it is not one of ours."""
    path = Path(folder) / "config.json"
    try:
        content = json.loads(path.read_text())
        return DetectorConfig(**content | {"feature_layers": tuple(content["feature_layers"])})
    except FileNotFoundError:
        raise ValueError(f"{str(folder)!r} is no bundle: it has no config.json") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is no bundle config: {error}") from error


def load_detector(
    bundle_dir: str | Path,
    device: str = "auto",
    precision: str = "fp32",
    backbone: Backbone | None = None,
    compiled: bool = False,
) -> Detector:
    """Load a bundle and the backbone it names (or the given one), ready to score.

    compiled: the vision tower runs through `torch.compile`, on CUDA; the first batch then takes a minute or two. Raises
    ValueError where the backbone's weights are not the ones that the prompts were learned on, or the bundle is damaged.
    """
    config = read_bundle_config(bundle_dir)
    own = backbone is None
    backbone = backbone or load_backbone(config.backbone, config.image_size, text_tower=False)
    check_weights(config, backbone)
    text, prompts = read_bundle_tensors(bundle_dir)
    visual: Any = backbone.clip.visual
    detector = Detector(visual, backbone.positions, text, config, prompts, precision).to(resolve_device(device))
    if compiled:
        detector.encode = torch.compile(encode_image)
    return detector.pack() if own else detector


def read_bundle_tensors(folder: str | Path) -> tuple[Tensor, dict[str, Tensor]]:
    """Text features (2, D) and prompts of a bundle; ValueError where they are missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors = {}
    for name in ("text_features.safetensors", "prompts.safetensors"):
        try:
            tensors[name] = load_file(Path(folder) / name)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"the bundle {str(folder)!r} is damaged: {name} cannot be read: {error}") from error
    found, prompts = tensors.values()
    text = found.get("text_features", torch.empty(0))
    if text.ndim != 2 or len(text) != 2 or not torch.allclose(text.float().norm(dim=1), torch.ones(2), atol=1e-3):
        raise ValueError(f"the bundle {str(folder)!r} is damaged: its text features are no two vectors of length 1")
    return text.float(), prompts


def check_weights(config: DetectorConfig, backbone: Backbone) -> None:
    """ValueError where a backbone is not the one that a bundle was made on."""
    if backbone.weights_sha256 != config.weights_sha256:
        raise ValueError(
            f"the bundle was made on other weights: it needs SHA-256 {config.weights_sha256[:16]}…, "
            f"'{backbone.spec}' has {backbone.weights_sha256[:16]}…"
        )
    if backbone.image_size != config.image_size:
        raise ValueError(
            f"the bundle is for images of {config.image_size} pixels, the backbone for {backbone.image_size}"
        )


def bundle_digest(folder: str | Path) -> str:
    """SHA-256 over the names and contents of a bundle's files."""
    digest = hashlib.sha256()
    for name in BUNDLE_FILES:
        path = Path(folder) / name
        if path.is_file():
            digest.update(f"{name}\n{path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()
