"""Baselines in the store: each is a bundle without learned prompts, under its digest, and never in the registry."""

import tempfile
from pathlib import Path

from models.baselines import baseline_config
from models.detector import bundle_digest, write_bundle_config
from models.weights import EMBEDDED
from tasks.backbones import make_geometry, open_backbone
from tasks.errors import InputError
from tasks.registry import (
    BASELINES,
    CHAMPION_URI,
    ModelVersion,
    bundle_config,
    champion_version,
    resolve_model,
    use_tracking,
)
from tasks.store import Store


def make_baseline(store: Store, name: str, backbone: str | None) -> ModelVersion:
    """A baseline on a backbone (default: the champion's, else the embedded one): equal ones are the same version.

    Raises InputError where the backbone cannot be had.
    """
    spec, image_size = (backbone, make_geometry(backbone).image_size) if backbone else champions_backbone(store)
    try:
        config = baseline_config(name, open_backbone(spec, image_size, text_tower=False))
    except ValueError as error:
        raise InputError(f"the baseline {name} cannot be had on {spec!r}: {error}") from error
    with tempfile.TemporaryDirectory(prefix="anomalyclip-") as folder:
        write_bundle_config(Path(folder), config)
        digest = bundle_digest(folder)
        version = ModelVersion(f"{BASELINES}{name}/{digest[:12]}", name, digest[:12], digest)
        store.write((Path(folder) / "config.json").read_bytes(), "baselines", version.partition, "config.json")
    return version


def champions_backbone(store: Store) -> tuple[str, int]:
    """Backbone spec and image size of the champion, those of the embedded backbone where there is none."""
    if champion_version(use_tracking(store)) is None:
        return EMBEDDED, make_geometry(EMBEDDED).image_size
    config = bundle_config(store, resolve_model(store, CHAMPION_URI))
    return config.backbone, config.image_size
