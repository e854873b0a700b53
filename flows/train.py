"""Train: learn the two prompts on labelled collections and register them as a model version."""

from dataclasses import dataclass

from prefect import flow

from flows.parameters import (
    Backbone,
    CollectionNames,
    DpamLayers,
    Epochs,
    FeatureLayers,
    ImageSize,
    LearningRate,
    MapDefinition,
    Patience,
    Seed,
    StoreUri,
    ValidationShare,
)
from tasks.artifacts import publish_links
from tasks.backbones import make_geometry, map_name
from tasks.features import compute_features
from tasks.registry import mlflow_links
from tasks.store import Store, default_store
from tasks.training import EpochLoss, TrainingPlan, learn_prompts


@dataclass(frozen=True)
class TrainSummary:
    """The registered version, and the mean losses of the epoch that its prompts are of: chosen_epoch, of those that ran.

    images: that were trained on; held_back_images: those of the validation. map: the name of its definition.
    """

    model: str
    version: str
    bundle_digest: str
    collections: list[str]
    images: int
    held_back_images: int
    epochs: int
    chosen_epoch: int
    map: str
    loss: EpochLoss


@flow(name="train", flow_run_name="train on {collections}")
def train(
    collections: CollectionNames,
    backbone: Backbone = "embedded",
    epochs: Epochs = 15,
    lr: LearningRate = 1e-3,
    seed: Seed = 111,
    validation_share: ValidationShare = 0.0,
    patience: Patience = 0,
    image_size: ImageSize = None,
    feature_layers: FeatureLayers = None,
    dpam_layers: DpamLayers = None,
    map_definition: MapDefinition = "last",
    store: StoreUri = None,
) -> TrainSummary:
    """Train prompts on one or more labelled collections and register a model version.

    The vision tower runs once over the images; its features are kept, and learning goes on where it was killed.
    Validation and patience are off in the published training. Where geometry is not given it is the backbone's own (the
    paper's, for ViT-L-14-336-quickgelu).
    """
    store = store or default_store()
    Store(store).check_writable()
    geometry = make_geometry(backbone, image_size, feature_layers, dpam_layers, map_definition)
    plan = TrainingPlan(backbone, geometry, epochs, lr, seed, validation_share, patience)
    features = compute_features(store, collections, backbone, plan.geometry)
    trained = learn_prompts(store, collections, plan, features)
    version, loss = trained.model, trained.loss
    publish_links("train", "-".join(collections), mlflow_links(Store(store), version))
    return TrainSummary(
        version.uri, version.version, version.digest, collections, trained.images, trained.held_back, trained.epochs,
        loss.epoch, map_name(backbone, geometry.feature_layers), loss,
    )  # fmt: skip
