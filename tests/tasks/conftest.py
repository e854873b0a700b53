"""A small registered model and stores to use it on."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import fsspec
import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from models import Detector
from models.backbone import load_backbone
from models.prompts import PromptLearner
from tasks.registry import ModelVersion, register_bundle, tracked_run
from tasks.store import Store


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in them: to make one takes seconds, to copy it none."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_registered_models()
    return path


class Registered(NamedTuple):
    store: Store
    model: ModelVersion
    bundle: Path


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained prompts on the embedded backbone: a detector that scores, not one that detects."""
    backbone = load_backbone("embedded", 96)
    detector = Detector.build(backbone, PromptLearner(backbone), 96, (6,), 4)
    return detector.save(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory, bundle: Path, empty_database: Path) -> Registered:
    """The bundle as version 1 in an MLflow database of the tests' own."""
    store = Store(str(tmp_path_factory.mktemp("registry")))
    shutil.copy(empty_database, store.uri)
    with tracked_run(store, "train", {}) as run_id:
        model = register_bundle(store, bundle, run_id, "of the tests")
    return Registered(store, model, bundle)


@pytest.fixture
def model(bundle: Path, registered: Registered) -> ModelVersion:
    """The bundle by its folder: scoring then needs no registry."""
    return ModelVersion(str(bundle), "bundle", "1", registered.model.digest)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def memory() -> Iterator[str]:
    """URI of an empty place in fsspec's memory: a store without folders, renames or file times."""
    yield "memory://tests"
    filesystem = fsspec.filesystem("memory")
    if filesystem.exists("/tests"):
        filesystem.rm("/tests", recursive=True)


@pytest.fixture
def tracked_store(store: Store, empty_database: Path) -> Store:
    """A store with an MLflow database in which nothing is."""
    Path(store.uri).mkdir()
    shutil.copy(empty_database, store.uri)
    return store


def photo(seed: int = 0, height: int = 40, width: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def write_photos(folder: Path, numbers: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        photo(number).save(folder / f"{number:03d}.png")
