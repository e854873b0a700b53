"""Train: learn the two prompts on labelled collections and register them as a model version."""

from dataclasses import dataclass

from prefect import flow

from tasks.backbones import make_geometry
from tasks.store import default_store
from tasks.training import EpochLoss, TrainingPlan, compute_features, learn_prompts


@dataclass(frozen=True)
class TrainSummary:
    """The registered version, and the mean losses of the last epoch."""

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
    image_size: int | None = None,
    feature_layers: list[int] | None = None,
    dpam_layers: int | None = None,
    store: str | None = None,
) -> TrainSummary:
    """Train prompts on one or more labelled collections and register a model version.

    The vision tower runs once over the images; its features are kept, and learning goes on where it was killed.
    Where geometry is not given it is the backbone's own (the paper's, for ViT-L-14-336-quickgelu).
    """
    store = store or default_store()
    plan = TrainingPlan(backbone, make_geometry(backbone, image_size, feature_layers, dpam_layers), epochs, lr, seed)
    features = compute_features(store, collections, plan)
    version, loss = learn_prompts(store, collections, plan, features)
    return TrainSummary(version.uri, version.version, version.digest, collections, epochs, loss)
