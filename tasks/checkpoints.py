"""Checkpoints of the published code: their prompts as a registered bundle."""

import tempfile
from dataclasses import dataclass

from prefect import task
from prefect.cache_policies import NO_CACHE

from models import Detector
from models.prompts import PromptLearner, read_official
from tasks.backbones import Geometry, open_backbone
from tasks.errors import InputError
from tasks.registry import ModelVersion, register_bundle, tracked_run
from tasks.store import Store


@dataclass(frozen=True)
class Imported:
    """The registered version, and the tensors of the checkpoint that AnomalyCLIP never uses."""

    model: ModelVersion
    ignored: list[str]


@task(name="import checkpoint", cache_policy=NO_CACHE)
def import_published(
    store: str, file: str, backbone: str, geometry: Geometry, for_comparison: bool = False
) -> Imported:
    """Register the prompts of a published .pth file; how many and how deep they are is read from their shapes.

    for_comparison: as `register_bundle` has it.
    """
    target = Store(store)
    try:
        tensors = read_official(file)
        deep = [value for name, value in tensors.items() if name.startswith("compound_prompts_text.")]
        if "ctx_pos" not in tensors or tensors["ctx_pos"].ndim != 4 or any(value.ndim != 2 for value in deep):
            raise ValueError("it has no context vectors 'ctx_pos' (1, 1, n_ctx, width), or deep ones of another shape")
        clip = open_backbone(backbone, geometry.image_size)
        prompts = PromptLearner(
            clip, n_ctx=tensors["ctx_pos"].shape[-2], depth=len(deep) + 1, deep_ctx=deep[0].shape[0] if deep else 1
        )
        ignored = prompts.load_official({"prompt_learner": tensors})
        detector = Detector.build(
            clip, prompts, geometry.image_size, geometry.feature_layers, geometry.dpam_layers, geometry.sigma,
            training={"imported_from": file.replace("\\", "/").rpartition("/")[2]},
        )  # fmt: skip
    except ValueError as error:
        raise InputError(f"{file!r} cannot be imported: {error}") from error
    params = {"backbone": backbone, "backbone_sha256": clip.weights_sha256, "image_size": geometry.image_size}
    with tracked_run(target, f"import {file}", params) as run_id, tempfile.TemporaryDirectory() as folder:
        bundle = detector.save(folder)
        return Imported(register_bundle(target, bundle, run_id, f"imported from {file}", for_comparison), ignored)
