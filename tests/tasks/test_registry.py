"""The registry: versions, the champion, and that what is loaded is what was registered."""

import os
import shutil
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR

from models import Detector
from models.detector import BUNDLE_FILES, bundle_digest
from models.prompts import PromptLearner
from tasks.errors import InputError
from tasks.registry import (
    CHAMPION_URI,
    MODEL_NAME,
    ModelVersion,
    bundle_folder,
    champion_version,
    open_detector,
    pages_of,
    register_bundle,
    resolve_model,
    tracked_run,
    tracking_name,
    use_tracking,
)
from tasks.store import Store
from tests.models import seeded
from tests.tasks.conftest import register_versions


@pytest.fixture(scope="module")
def two_versions(
    tmp_path_factory: pytest.TempPathFactory, bundle: Path, empty_database: Path
) -> tuple[Store, list[ModelVersion]]:
    store = Store(str(tmp_path_factory.mktemp("registry")))
    shutil.copy(empty_database, store.uri)
    return store, register_versions(store, bundle, 2)


@pytest.fixture
def store(tracked_store: Store) -> Store:
    return tracked_store


def test_the_first_version_is_the_champion_and_stays_it(two_versions) -> None:
    store, versions = two_versions
    assert [version.version for version in versions] == ["1", "2"]
    assert resolve_model(store, CHAMPION_URI) == versions[0]


def test_where_the_champion_was_deleted_the_next_version_does_not_take_its_place(store: Store, bundle: Path) -> None:
    register_versions(store, bundle, 1)
    use_tracking(store).delete_model_version("anomalyclip", "1")
    register_versions(store, bundle, 1)
    assert champion_version(use_tracking(store)) is None


def test_a_bundle_for_comparison_is_registered_once_and_never_the_champion(store: Store, bundle: Path) -> None:
    with tracked_run(store, "train", {}) as run_id:
        first, again = (register_bundle(store, bundle, run_id, "of the tests", for_comparison=True) for _ in range(2))
        assert again == first
        assert first.version == "1"
        assert champion_version(use_tracking(store)) is None
        trained = register_bundle(store, bundle, run_id, "of the tests")
        assert register_bundle(store, bundle, run_id, "of the tests", for_comparison=True) == first
    assert resolve_model(store, CHAMPION_URI) == trained
    assert trained.version == "2"


def test_a_version_is_named_by_its_number_for_ever(two_versions) -> None:
    store, versions = two_versions
    resolved = resolve_model(store, "models:/anomalyclip/2")
    assert resolved == versions[1]
    assert resolved.partition == "anomalyclip.v2"
    assert resolve_model(store, "models:/anomalyclip/latest") == versions[-1]
    with pytest.raises(InputError, match="there is no model"):
        resolve_model(store, "models:/nothing/latest")


def test_the_bundle_that_is_loaded_is_the_one_that_was_registered(two_versions, bundle: Path) -> None:
    store, versions = two_versions
    with bundle_folder(store, versions[0]) as folder:
        assert {name: (folder / name).read_bytes() for name in BUNDLE_FILES if (folder / name).exists()} == {
            path.name: path.read_bytes() for path in bundle.iterdir()
        }


def test_a_version_from_before_there_was_a_pyfunc_is_a_model_as_ever(store: Store, bundle: Path) -> None:
    client, digest = use_tracking(store), bundle_digest(bundle)
    with tracked_run(store, "train", {}) as run_id:
        client.log_artifacts(run_id, str(bundle), "bundle")
    client.create_registered_model(MODEL_NAME)
    source = f"{client.get_run(run_id).info.artifact_uri}/bundle"
    client.create_model_version(MODEL_NAME, source, run_id, tags={"bundle_digest": digest})
    model = resolve_model(store, "models:/anomalyclip/1")
    assert model.digest == digest
    assert open_detector(store, model).config.image_size == 96


def test_a_bundle_that_was_tampered_with_is_refused(store: Store, bundle: Path) -> None:
    with tracked_run(store, "train", {}) as run_id:
        version = register_bundle(store, bundle, run_id, "of the tests")
    (config,) = (Path(store.uri) / "mlartifacts").rglob("config.json")
    config.write_text(config.read_text().replace('"sigma": 4.0', '"sigma": 5.0'))
    with pytest.raises(InputError, match="registered is"):
        open_detector(store, version)


def test_a_bundle_folder_is_a_model_too(bundle: Path, store: Store) -> None:
    model = resolve_model(store, str(bundle))
    assert open_detector(store, model).config.image_size == 96
    assert model.partition == f"bundle.v{model.digest[:12]}"


def test_a_bundle_on_other_weights_is_refused(tmp_path: Path, store: Store) -> None:
    backbone = seeded.backbone(seeded.SMALL, 96)
    backbone.spec = "embedded"
    folder = Detector.build(backbone, PromptLearner(backbone), 96, (4,), 2).save(tmp_path / "bundle")
    with pytest.raises(InputError, match="made on other weights"):
        open_detector(store, resolve_model(store, str(folder)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("models:/anomalyclip/7", "there is no model 'models:/anomalyclip/7'"),
        ("models:/other@champion", "there is no model"),
        ("models:/anomalyclip", "name a version or an alias"),
        ("/nowhere", "neither a models:/ URI nor the folder of a bundle"),
    ],
)
def test_a_model_that_does_not_exist_is_said(two_versions, model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_model(two_versions[0], model)


@pytest.mark.parametrize("name", ["prompts.safetensors", "text_features.safetensors", "config.json"])
@pytest.mark.parametrize("content", [None, b"", b"junk that is no table of tensors"], ids=["missing", "empty", "junk"])
def test_a_damaged_bundle_is_refused_before_anything_is_scored(
    tmp_path: Path, bundle: Path, store: Store, name: str, content: bytes | None
) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(InputError, match="neither a models" if (name, content) == ("config.json", None) else name):
        resolve_model(store, str(folder))


def test_without_any_model_the_way_to_one_is_said(store: Store) -> None:
    with pytest.raises(InputError, match="train one with `anomalyclip train`"):
        resolve_model(store, CHAMPION_URI)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("foo://user:secret@host", "foo://host cannot be used: .*unsupported URI"),
        ("file:///nowhere/mlruns", "cannot be used: The filesystem tracking backend"),
        ("postgresql://user:secret@127.0.0.1/x", "postgresql://127.0.0.1/x cannot be used: No module named 'psycopg2'"),
    ],
)
def test_a_tracking_uri_that_mlflow_cannot_use_is_said(
    store: Store, uri: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=message) as refused:
        use_tracking(store)
    assert "secret" not in str(refused.value)


def test_a_store_that_was_moved_is_said_to_be(store: Store, bundle: Path, tmp_path: Path) -> None:
    with tracked_run(store, "train", {}) as run_id:
        model = register_bundle(store, bundle, run_id, "of the tests")
    artifacts = Path(store.uri) / "mlartifacts"
    artifacts.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="was the store moved"), bundle_folder(store, model):
        pass


def test_a_remote_store_needs_a_tracking_server() -> None:
    with pytest.raises(InputError, match="set MLFLOW_TRACKING_URI"):
        use_tracking(Store("memory://bucket"))


def test_a_model_that_somebody_else_registered_is_refused(two_versions, tmp_path: Path) -> None:
    store, _ = two_versions
    client: MlflowClient = use_tracking(store)
    client.create_registered_model("other")
    client.create_model_version("other", str(tmp_path))
    with pytest.raises(InputError, match="was not registered by anomalyclip"):
        resolve_model(store, "models:/other/1")


def test_scores_are_the_same_through_registry_and_folder(two_versions, bundle: Path, store: Store) -> None:
    images = torch.randn(2, 3, 96, 96)
    registered = open_detector(two_versions[0], two_versions[1][0], device="cpu")(images)
    local = open_detector(store, resolve_model(store, str(shutil.copytree(bundle, store.uri + "/copy"))), device="cpu")
    assert torch.equal(registered.score, local(images).score)


def test_a_bundle_folder_that_changed_since_it_was_resolved_is_refused(
    tmp_path: Path, bundle: Path, store: Store
) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    model = resolve_model(store, str(folder))
    (folder / "text_features.safetensors").write_bytes((folder / "prompts.safetensors").read_bytes())
    with pytest.raises(InputError, match="has SHA-256"):
        open_detector(store, model)


def test_a_registry_that_cannot_be_reached_is_no_missing_model(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken for one, the next version to be registered would move the champion."""
    client = use_tracking(store)

    def unreachable(*arguments: object) -> None:
        raise MlflowException("API request failed", error_code=INTERNAL_ERROR)

    monkeypatch.setattr(MlflowClient, "get_model_version_by_alias", unreachable)
    for ask in (lambda: resolve_model(store, CHAMPION_URI), lambda: champion_version(client)):
        with pytest.raises(MlflowException, match="API request failed"):
            ask()


def test_each_store_has_its_own_registry_in_one_process(two_versions, tmp_path: Path, bundle: Path) -> None:
    store = Store(str(tmp_path / "a store, 100% + #1 größe"))
    with tracked_run(store, "train", {}) as run_id:
        version = register_bundle(store, bundle, run_id, "of the tests")
    assert version.version == "1"
    assert open_detector(store, version).config.image_size == 96
    assert (tmp_path / "a store, 100% + #1 größe" / "mlflow.db").is_file()
    assert resolve_model(two_versions[0], "models:/anomalyclip/2") == two_versions[1][1]


def test_a_run_that_fails_is_marked_as_failed(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), tracked_run(store, "train", {"epochs": 1}) as run_id:
        raise ZeroDivisionError
    run = use_tracking(store).get_run(run_id)
    assert (run.info.status, run.data.params) == ("FAILED", {"epochs": "1"})


@pytest.mark.parametrize(
    ("uri", "pages"),
    [
        ("https://me:secret@mlflow.plant:5000/", "https://mlflow.plant:5000/#"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000/#"),
        ("postgresql+psycopg://me:secret@db/mlflow", None),
        ("sqlite:////store/mlflow.db", None),
    ],
)
def test_pages_are_those_of_a_server_without_its_password(uri: str, pages: str | None) -> None:
    assert pages_of(uri) == pages


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("postgresql+psycopg://me:hidden@db:5432/mlflow", "postgresql+psycopg://db:5432/mlflow"),
        ("http://me:hidden@mlflow.example/", "http://mlflow.example/"),
        ("sqlite:////store/mlflow.db", "sqlite:////store/mlflow.db"),
    ],
)
def test_messages_name_the_registry_without_its_password(uri: str, name: str, monkeypatch) -> None:
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: uri)
    assert tracking_name() == name


def test_an_error_of_the_server_does_not_repeat_its_password(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://line%204:hunter2@127.0.0.1:9/base")
    with pytest.raises(MlflowException, match=r"127\.0\.0\.1") as down:
        use_tracking(store)
    assert "hunter2" not in str(down.value)
    assert [os.environ[f"MLFLOW_TRACKING_{name}"] for name in ("USERNAME", "PASSWORD")] == ["line 4", "hunter2"]
