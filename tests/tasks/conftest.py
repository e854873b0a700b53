"""A small registered model and stores to use it on."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import fsspec
import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import s3fs
from mlflow import MlflowClient
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer
from PIL import Image

from models import Detector
from models.backbone import load_backbone
from models.detector import DetectorConfig
from models.prompts import PromptLearner
from tasks.evaluation import EvaluatedClass, evaluate_class, save_pixel_draws, with_truth
from tasks.registry import ModelVersion, register_bundle, tracked_run, use_tracking
from tasks.shards import model_folder
from tasks.store import Store
from tasks.tables import read_parquet, to_parquet


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
    detector = Detector.build(backbone, PromptLearner(backbone), 96, (4,), 2)
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
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    """An S3 server in this process, with an empty bucket `photos`."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = s3fs.S3FileSystem()
    filesystem.call_s3("create_bucket", Bucket="photos")
    yield filesystem
    s3fs.S3FileSystem.clear_instance_cache()
    s3_backends.reset()
    server.stop()


@pytest.fixture
def tracked_store(store: Store, empty_database: Path) -> Store:
    """A store with an MLflow database in which nothing is."""
    Path(store.uri).mkdir()
    shutil.copy(empty_database, store.uri)
    return store


WRITE_ONLY = Path("/proc/sys/vm/compact_memory")  # even root may not read it


def photo(seed: int = 0, height: int = 40, width: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def write_photos(folder: Path, numbers: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        photo(number).save(folder / f"{number:03d}.png")


def register_versions(store: Store, bundle: Path, count: int) -> list[ModelVersion]:
    versions = []
    for _ in range(count):
        with tracked_run(store, "train", {"epochs": 1}) as run_id:
            versions.append(register_bundle(store, bundle, run_id, "of the tests"))
    return versions


class Versions(NamedTuple):
    """Three versions of one model, the first of which is the champion."""

    store: Store
    client: MlflowClient
    models: list[ModelVersion]

    def evaluated(
        self, model: ModelVersion, rows: pd.DataFrame, collection: str = "reference", state: str = "a",
        grids: dict[str, np.ndarray] | None = None,
    ) -> str:  # fmt: skip
        """An evaluation run with what promotion and comparison read of one; rows: image_id, class_name, label, score.

        grids: by image, of rows with a mask_uri; without them it is a run of before pixel metrics had intervals.
        """
        params = {
            "collection": collection, "model": model.uri, "bundle_digest": model.digest, "manifest_digest": state,
            "aupro_definition": "official",
        }  # fmt: skip
        with tracked_run(self.store, f"evaluate {collection}", params) as run_id:
            mlflow.set_tag("step", "evaluate")
            with TemporaryDirectory() as folder:
                rows.to_parquet(Path(folder) / "scores.parquet")
                if grids:
                    classes = evaluated_classes(rows, grids)
                    save_pixel_draws(classes, with_truth(rows), Path(folder) / "pixel_resamples.parquet")
                mlflow.log_artifacts(folder)
        return run_id


@pytest.fixture(scope="session")
def three_versions(
    tmp_path_factory: pytest.TempPathFactory, bundle: Path, empty_database: Path
) -> tuple[Path, list[ModelVersion]]:
    """An MLflow database with them, to be copied: each test moves the champion."""
    store = Store(str(tmp_path_factory.mktemp("versions")))
    shutil.copy(empty_database, store.uri)
    return Path(store.uri) / "mlflow.db", register_versions(store, bundle, 3)


@pytest.fixture
def versions(store: Store, three_versions: tuple[Path, list[ModelVersion]]) -> Versions:
    database, models = three_versions
    Path(store.uri).mkdir()
    shutil.copy(database, store.uri)
    return Versions(store, use_tracking(store), models)


def scored_images(count: int, noise: float, classes: str = "a", seed: int = 0) -> pd.DataFrame:
    """Every second image anomalous and scored the better the less noise; the images are the same for every noise."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    return pd.DataFrame(
        {
            "image_id": [f"{number:016x}" for number in range(count)],
            "class_name": [classes[number // 2 % len(classes)] for number in range(count)],
            "label": label.astype(np.int8),
            "score": label + rng.normal(0, 0.5, count) + noise * rng.normal(0, 1, count),
        }
    )


def give_to_another_bundle(store: Store, collection: str, model: ModelVersion) -> None:
    """The scores of a model, as if a registry before this one had had another bundle under its number."""
    folder = model_folder(collection, model.partition)
    for name in store.find(*folder):
        table = read_parquet(store, *folder, name)
        place = table.column_names.index("bundle_digest")
        others = table.set_column(place, table.schema.field(place), pa.array(["0" * 64] * len(table)))
        store.write(to_parquet(others), *folder, name)


def segmented_images(
    count: int, noise: float, folder: Path, classes: str = "a"
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """As scored_images, all of them anomalous and with a mask, and their grids: found in them the better the less noise."""
    mask = np.zeros((8, 8), np.uint8)
    mask[:4, 2:6] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    rng, rows = np.random.default_rng(1), scored_images(count, noise, classes).assign(label=np.int8(1))
    grids = {
        image: ((mask > 0) + rng.normal(0, 0.5, (8, 8)) + noise * rng.normal(0, 1, (8, 8))).astype(np.float32)
        for image in rows["image_id"]
    }
    return rows.assign(mask_uri=(folder / "mask.png").as_uri()), grids


def evaluated_classes(rows: pd.DataFrame, grids: dict[str, np.ndarray]) -> list[EvaluatedClass]:
    config = DetectorConfig("embedded", "0" * 64, image_size=16, sigma=0.5)
    return [
        evaluate_class(str(name), members, grids, config, [0, number])
        for number, (name, members) in enumerate(rows.groupby("class_name", sort=True))
    ]
