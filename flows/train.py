"""Train: learn the two prompts on labelled collections and register them as a model version."""

from dataclasses import dataclass

from prefect import flow

from tasks.backbones import make_geometry
from tasks.features import compute_features
from tasks.store import default_store
from tasks.training import EpochLoss, TrainingPlan, learn_prompts


@dataclass(frozen=True)
class TrainSummary:
    """The registered version, and the mean losses of its epoch."""

    model: str
    version: str
    bundle_digest: str
    collections: list[str]
    epochs: int
    loss: EpochLoss


@flow(name="train", flow_run_name="train on {collections}")
def train(
    collections: list[str],
    backbone: str = "embedded",
    epochs: int = 15,
    lr: float = 1e-3,
    seed: int = 111,
    validation_share: float = 0.0,
    patience: int = 0,
    image_size: int | None = None,
    feature_layers: list[int] | None = None,
    dpam_layers: int | None = None,
    store: str | None = None,
) -> TrainSummary:
    """Train prompts on one or more labelled collections and register a model version.

    The vision tower runs once over the images; its features are kept, and learning goes on where it was killed.
    validation_share: of the classes, held back for a validation curve; patience: stop after so many epochs without a
    better one, 0 never. Both are off in the published training.
    Where geometry is not given it is the backbone's own (the paper's, for ViT-L-14-336-quickgelu).
    """
    store = store or default_store()
    geometry = make_geometry(backbone, image_size, feature_layers, dpam_layers)
    plan = TrainingPlan(backbone, geometry, epochs, lr, seed, validation_share, patience)
    features = compute_features(store, collections, backbone, plan.geometry)
    version, loss = learn_prompts(store, collections, plan, features)
    return TrainSummary(version.uri, version.version, version.digest, collections, epochs, loss)
