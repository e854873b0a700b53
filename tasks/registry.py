"""Bundles in the MLflow registry: `anomalyclip`, its versions, and the alias `champion` of the one that scores."""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from models import Detector, load_detector
from models.baselines import Baseline
from models.detector import DetectorConfig, bundle_digest, read_bundle_config, read_bundle_tensors
from models.weights import first_sentence
from tasks.backbones import open_backbone
from tasks.errors import InputError
from tasks.pyfunc import save_pyfunc
from tasks.store import Store

MODEL_NAME = "anomalyclip"
CHAMPION = "champion"
CHAMPION_URI = f"models:/{MODEL_NAME}@{CHAMPION}"
HISTORY = "champions"  # tag of the registered model: see tasks.promotion
BASELINES = "baselines:/"  # NAME/VERSION: what a store keeps of a baseline, beside the registry
EXPERIMENT = "anomalyclip"
UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # what MLflow says of names, versions and aliases


@dataclass(frozen=True)
class ModelVersion:
    """A resolved model: uri names this very version for ever; partition is its name in the store's folders."""

    uri: str
    name: str
    version: str
    digest: str

    @property
    def partition(self) -> str:
        return f"{self.name}.v{self.version}"


_defaults: set[str] = set()


def configured_tracking_uri() -> str | None:
    """MLFLOW_TRACKING_URI as the operator set it: MLflow writes every URI that it is given there, ours too."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return None if uri in _defaults else uri


def use_tracking(store: Store) -> MlflowClient:
    """Point MLflow at MLFLOW_TRACKING_URI, else at SQLite under the (then local) store, and at our experiment."""
    root = store.local_root
    given = configured_tracking_uri()
    if not given and root is None:
        raise InputError(f"the store {store.uri!r} is remote: set MLFLOW_TRACKING_URI to an MLflow server or database")
    if root is not None:
        root.mkdir(parents=True, exist_ok=True)
    uri = given or f"sqlite:///{root}/mlflow.db"
    _defaults.update([] if given else [uri])
    mlflow.set_tracking_uri(without_user(uri))
    try:
        client = MlflowClient()
        known = client.get_experiment_by_name(EXPERIMENT)
    except (MlflowException, ImportError) as error:
        if isinstance(error, MlflowException) and error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        raise InputError(f"{tracking_name()} cannot be used: {without_password(first_sentence(error))}") from error
    if known is None:
        location = None if given or root is None else (root / "mlartifacts").as_uri()
        try:
            client.create_experiment(EXPERIMENT, artifact_location=location)
        except MlflowException:
            if client.get_experiment_by_name(EXPERIMENT) is None:  # else another run was first
                raise
    mlflow.set_experiment(EXPERIMENT)
    return client


def register_bundle(
    store: Store, folder: Path, run_id: str, description: str, for_comparison: bool = False
) -> ModelVersion:
    """Log a bundle to a run, as an MLflow pyfunc, and register it; the first version ever becomes the champion.

    for_comparison: what is registered never becomes the champion, and where a version has this bundle already, that one
    is returned.
    """
    client = use_tracking(store)
    digest = bundle_digest(folder)
    if for_comparison and (known := first_version(client, digest)):
        return known
    with tempfile.TemporaryDirectory(prefix="anomalyclip-") as work:
        client.log_artifacts(run_id, str(save_pyfunc(folder, Path(work) / "bundle")), "bundle")
    try:
        client.create_registered_model(MODEL_NAME, description="AnomalyCLIP prompts; the CLIP weights are not in it")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/bundle"
    created = client.create_model_version(
        MODEL_NAME, source, run_id, tags={"bundle_digest": digest}, description=description
    )
    version = str(created.version)
    if not for_comparison and never_had_a_champion(client):
        client.set_registered_model_alias(MODEL_NAME, CHAMPION, version)
        tag_model(client, HISTORY, version)
    return ModelVersion(f"models:/{MODEL_NAME}/{version}", MODEL_NAME, version, digest)


def never_had_a_champion(client: MlflowClient) -> bool:
    """A champion that was deleted had one: what follows it passes the gate."""
    return champion_version(client) is None and HISTORY not in client.get_registered_model(MODEL_NAME).tags


def tag_model(client: MlflowClient, key: str, value: str) -> None:
    """Two that set a tag at once for the first time collide in MLflow's database: the second try finds it there."""
    try:
        client.set_registered_model_tag(MODEL_NAME, key, value)
    except MlflowException:
        client.set_registered_model_tag(MODEL_NAME, key, value)


def champion_version(client: MlflowClient) -> str | None:
    try:
        return str(client.get_model_version_by_alias(MODEL_NAME, CHAMPION).version)
    except MlflowException as error:
        if error.error_code not in UNKNOWN:
            raise
        return None


def resolve_model(store: Store, model: str) -> ModelVersion:
    """What a MODEL names now: `models:/name@alias`, `models:/name/version`, a baseline, or the folder of a bundle."""
    if model.startswith(BASELINES):
        return resolve_baseline(store, model)
    if not model.startswith("models:/"):
        folder = Store(model).local_root or Path(model)
        if not (folder / "config.json").is_file():
            raise InputError(f"the model {model!r} is neither a models:/ URI nor the folder of a bundle")
        check_bundle(folder)
        digest = bundle_digest(folder)
        return ModelVersion(str(folder.resolve()), folder.resolve().name, digest[:12], digest)
    client = use_tracking(store)
    try:
        found = find_version(client, model)
    except MlflowException as error:
        if error.error_code not in UNKNOWN:
            raise
        hint = "train one with `anomalyclip train`" if model == CHAMPION_URI else "see `mlflow ui` for those there are"
        raise InputError(f"there is no model {model!r} in {tracking_name()}: {hint}") from error
    uri = f"models:/{found.name}/{found.version}"
    digest = found.tags.get("bundle_digest")
    if digest is None:
        raise InputError(f"{uri} was not registered by anomalyclip: it has no tag bundle_digest")
    return ModelVersion(uri, found.name, str(found.version), digest)


def check_bundle(folder: Path) -> None:
    """InputError where a file of a bundle is missing or cannot be read; a baseline has no tensors."""
    try:
        if not read_bundle_config(folder).baseline:
            read_bundle_tensors(folder)
    except ValueError as error:
        raise InputError(str(error)) from error


def resolve_baseline(store: Store, uri: str) -> ModelVersion:
    name, _, version = uri.removeprefix(BASELINES).partition("/")
    found = ModelVersion(uri, name, version, digest="")
    with tempfile.TemporaryDirectory(prefix="anomalyclip-") as folder:
        return replace(found, digest=bundle_digest(fetch_baseline(store, found, Path(folder))))


def fetch_baseline(store: Store, model: ModelVersion, folder: Path) -> Path:
    try:
        data = store.read("baselines", model.partition, "config.json")
    except FileNotFoundError:
        raise InputError(
            f"there is no {model.uri} in {store.uri}: `anomalyclip evaluate --baseline` makes it"
        ) from None
    (folder / "config.json").write_bytes(data)
    return folder


def find_version(client: MlflowClient, model: str) -> Any:
    name = model.removeprefix("models:/")
    if "@" in name:
        return client.get_model_version_by_alias(*name.split("@", 1))
    name, separator, version = name.partition("/")
    if not separator:
        raise InputError(f"{model!r} must name a version or an alias: models:/NAME/VERSION or models:/NAME@ALIAS")
    if version == "latest":
        found = client.search_model_versions(f"name = '{name}'")
        version = str(max((int(one.version) for one in found), default=1))
    return client.get_model_version(name, version)


def first_version(client: MlflowClient, digest: str) -> ModelVersion | None:
    """The first registered version with this bundle: learning it again gives another number, not other scores."""
    found = client.search_model_versions(f"name = '{MODEL_NAME}' and tag.bundle_digest = '{digest}'")
    versions = sorted(int(version.version) for version in found)
    return (
        ModelVersion(f"models:/{MODEL_NAME}/{versions[0]}", MODEL_NAME, str(versions[0]), digest) if versions else None
    )


@contextmanager
def bundle_folder(store: Store, model: ModelVersion) -> Iterator[Path]:
    """A local folder with the bundle's files, checked against its digest."""
    with tempfile.TemporaryDirectory(prefix="anomalyclip-") as folder:
        if model.uri.startswith("models:/"):
            use_tracking(store)
            local = Path(mlflow.artifacts.download_artifacts(model.uri, dst_path=folder))
        elif model.uri.startswith(BASELINES):
            local = fetch_baseline(store, model, Path(folder))
        else:
            local = Path(model.uri)
        if not (local / "config.json").is_file():
            raise InputError(f"the files of {model.uri} are not where they were registered: was the store moved?")
        found = bundle_digest(local)
        if found != model.digest:
            raise InputError(f"the bundle of {model.uri} has SHA-256 {found[:16]}…, registered is {model.digest[:16]}…")
        yield local


def bundle_config(store: Store, model: ModelVersion) -> DetectorConfig:
    with bundle_folder(store, model) as folder:
        return read_bundle_config(folder)


def open_detector(
    store: Store, model: ModelVersion, device: str = "auto", precision: str = "fp32"
) -> Detector | Baseline:
    """The model, ready to score; InputError where its backbone cannot be had or is another one."""
    with bundle_folder(store, model) as folder:
        try:
            config = read_bundle_config(folder)
            backbone = open_backbone(config.backbone, config.image_size, text_tower=config.baseline is not None)
            if config.baseline:
                return Baseline(config, backbone, device, precision)
            return load_detector(folder, device=device, precision=precision, backbone=backbone).pack()
        except ValueError as error:
            raise InputError(f"{model.uri} cannot be loaded: {error}") from error


@contextmanager
def tracked_run(
    store: Store, name: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None
) -> Iterator[str]:
    """An MLflow run of our experiment; yields its id."""
    use_tracking(store)
    with mlflow.start_run(run_name=name, tags=dict(tags or {})) as run:
        mlflow.log_params(dict(params))
        yield run.info.run_id


def end_killed_runs(store: Store, tag: str, value: str) -> None:
    """End as KILLED the runs with this tag that are RUNNING still: nobody did it when their process died.

    One that is alive after all ends as FINISHED all the same: its own end is written later.
    """
    client = use_tracking(store)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment, "use_tracking has made it"
    found = client.search_runs([experiment.experiment_id], f"tags.{tag} = '{value}' and attributes.status = 'RUNNING'")
    for run in found:
        client.set_terminated(run.info.run_id, "KILLED")


def mlflow_links(store: Store, model: ModelVersion, run_id: str | None = None) -> dict[str, str]:
    """Pages of the model and of a run, where MLflow is a server."""
    experiment = use_tracking(store).get_experiment_by_name(EXPERIMENT)
    server = pages_of(mlflow.get_tracking_uri())
    if server is None or experiment is None:
        return {}
    links = {"model": f"{server}/models/{model.name}/versions/{model.version}"}
    return links | ({"mlflow-run": f"{server}/experiments/{experiment.experiment_id}/runs/{run_id}"} if run_id else {})


def tracking_name() -> str:
    """What MLflow is connected to, as messages may name it: without its password."""
    return without_password(mlflow.get_tracking_uri())


def without_password(text: str) -> str:
    return re.sub(r"(?<=://)[^/]*@", "", text)


def without_user(uri: str) -> str:
    """A server's URI, whose user and password go where MLflow looks for them too: its errors repeat the URI."""
    server = urlsplit(uri)
    if server.scheme not in ("http", "https") or server.username is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(server.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(server.password or "")
    return without_password(uri)


def pages_of(tracking_uri: str) -> str | None:
    """Where the pages of an MLflow server begin, without its password; None for a database, which is nobody's business."""
    uri = urlsplit(tracking_uri)
    address = f"{uri.scheme}://{uri.netloc.rpartition('@')[2]}{uri.path.rstrip('/')}/#"
    return address if uri.scheme in ("http", "https") else None
