"""Backbones by SPEC: `embedded`, or `<open_clip model>:<tag, path or URI>`; weights behind a URI are fetched once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from models.backbone import Backbone, check_layers, load_backbone
from models.embedded import DPAM_LAYERS, IMAGE_SIZE, embedded_config
from models.weights import EMBEDDED, check_plain_vit, model_config
from tasks.errors import InputError
from tasks.store import CACHE, open_filesystem, replacing

MapDefinition = Literal["last", "multi-layer"]


@dataclass(frozen=True)
class Geometry:
    """Where the detector looks: see Detector.build."""

    image_size: int
    feature_layers: tuple[int, ...]
    dpam_layers: int
    sigma: float = 4.0


def make_geometry(
    spec: str,
    image_size: int | None = None,
    feature_layers: Sequence[int] | None = None,
    dpam_layers: int | None = None,
    map_definition: MapDefinition = "last",
) -> Geometry:
    """What is not given is the backbone's own: the paper's for ViT-L/14@336, its like for others.

    That is 518 pixels, the last layer alone, and V-V attention in 19 of 24 blocks. Feature layers are given by number or
    by the name of a map's definition. Raises InputError where the backbone has no such layers.
    """
    vision = backbone_config(spec)["vision_cfg"]
    depth = vision["layers"]
    size, dpam = (IMAGE_SIZE, DPAM_LAYERS) if spec == EMBEDDED else (vision["image_size"], round(depth * 19 / 24))
    if spec != EMBEDDED and vision["patch_size"] == 14:
        size = 518
    if feature_layers is not None and map_definition != "last":
        raise InputError(f"the map {map_definition!r} has layers of its own: leave out the feature layers")
    named = quarters(depth) if map_definition == "multi-layer" else (depth,)
    layers = named if feature_layers is None else tuple(feature_layers)
    size, dpam = size if image_size is None else image_size, dpam if dpam_layers is None else dpam_layers
    try:
        check_layers(layers, dpam, depth)
    except ValueError as error:
        raise InputError(f"the backbone {spec!r} has {depth} blocks: {error}") from error
    if len(set(layers)) < len(layers):
        raise InputError(f"a feature layer is named twice: {', '.join(map(str, layers))}")
    if size < vision["patch_size"]:
        raise InputError(f"images of {size} pixels are less than one patch of {vision['patch_size']}")
    return Geometry(size, layers, dpam)


def quarters(depth: int) -> tuple[int, ...]:
    """Feature layers of the multi-layer map: 6, 12, 18 and 24 of 24 blocks."""
    return tuple(dict.fromkeys(max(1, round(depth * quarter / 4)) for quarter in (1, 2, 3, 4)))


def map_name(spec: str, layers: tuple[int, ...]) -> str:
    """The definition of a backbone's map by its layers: `last` (the published one), `multi-layer`, or others' numbers."""
    depth = backbone_config(spec)["vision_cfg"]["layers"]
    definitions = {(depth,): "last", quarters(depth): "multi-layer"}
    return definitions.get(layers, f"layers {', '.join(map(str, layers))}")


def backbone_config(spec: str) -> dict[str, Any]:
    """open_clip's config of a backbone, without its weights."""
    try:
        config = embedded_config() if spec == EMBEDDED else model_config(spec.partition(":")[0])
        check_plain_vit(config)
        return config
    except ValueError as error:
        raise InputError(f"the backbone {spec!r} cannot be loaded: {error}") from error


def open_backbone(spec: str, image_size: int | None = None, text_tower: bool = True) -> Backbone:
    """The backbone on the CPU, for scoring without its text tower; InputError where it cannot be had."""
    name, _, source = spec.partition(":")
    try:
        local = f"{name}:{fetch(source)}" if "://" in source else spec
        backbone = load_backbone(local, image_size, text_tower)
    except ValueError as error:
        raise InputError(f"the backbone {spec!r} cannot be loaded: {error}") from error
    backbone.spec = spec if "://" in source or not Path(source).is_file() else f"{name}:{Path(source).absolute()}"
    return backbone


@lru_cache(maxsize=1)
def kept_backbone(spec: str, image_size: int) -> Backbone:
    """open_backbone for the steps of training, which use the same one."""
    return open_backbone(spec, image_size)


def fetch(uri: str) -> Path:
    """A local copy of an object, kept in the user's cache for as long as the object does not change."""
    filesystem, path = open_filesystem(uri)
    try:
        version = f"{uri}\n{filesystem.ukey(path)}"
    except FileNotFoundError:
        raise InputError(f"the weights {uri!r} do not exist") from None
    local = CACHE / "weights" / hashlib.sha256(version.encode()).hexdigest()[:16] / path.rpartition("/")[2]
    if not local.exists():
        with replacing(local) as partial:
            filesystem.get_file(path, str(partial))
    return local
