"""Import: prompts that were trained by the authors' published code, as a model version."""

from dataclasses import dataclass

from prefect import flow

from tasks.backbones import MapDefinition, make_geometry, map_name
from tasks.checkpoints import import_published
from tasks.store import default_store

PAPER_BACKBONE = "ViT-L-14-336-quickgelu:openai"


@dataclass(frozen=True)
class ImportSummary:
    """map: the name of its definition; ignored: tensors of the checkpoint that AnomalyCLIP never uses."""

    model: str
    version: str
    bundle_digest: str
    map: str
    ignored: list[str]


@flow(name="import-checkpoint")
def import_checkpoint(
    file: str,
    backbone: str = PAPER_BACKBONE,
    image_size: int | None = None,
    feature_layers: list[int] | None = None,
    dpam_layers: int | None = None,
    map_definition: MapDefinition = "last",
    store: str | None = None,
) -> ImportSummary:
    """Register the prompts of a .pth file of the published code, on the backbone that they were trained on.

    The file is read without executing anything in it. Where geometry is not given it is the paper's.
    """
    geometry = make_geometry(backbone, image_size, feature_layers, dpam_layers, map_definition)
    done = import_published(store or default_store(), file, backbone, geometry)
    return ImportSummary(
        done.model.uri, done.model.version, done.model.digest, map_name(backbone, geometry.feature_layers), done.ignored
    )
