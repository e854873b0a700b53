"""What can be known of the containers, the manifests and the policies without an engine, a cluster or an account."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import kubernetes_validate
import pytest
import s3fs
import yaml

from flows.cli import main
from infra.supervisor import free_port
from models import Detector
from models.backbone import load_backbone
from models.prompts import PromptLearner
from tasks.backbones import fetch
from tasks.errors import InputError
from tasks.registry import register_bundle, tracked_run
from tasks.store import Store
from tests.flows.conftest import serving, write_images

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text(encoding="utf-8"))
OURS = ("prefect", "mlflow", "setup", "worker")


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program of this Python's environment."""
    command = [str(Path(sys.executable).with_name(name)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# --- the image --------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, lines joined."""
    lines = (line for line in (INFRA / "Dockerfile").read_text(encoding="utf-8").splitlines() if line[:1] != "#")
    text = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions by stage, those of the stage that it starts from first."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for instruction, argument in instructions():
        if instruction == "FROM":
            base, name = argument.split(" AS ")
            found[name] = list(found.get(base, []))
        elif name:
            found[name].append((instruction, argument))
    return found


def test_the_dockerfile_has_no_fault_that_hadolint_knows():
    found = tool("hadolint", "--no-color", str(INFRA / "Dockerfile"))
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_runs_the_worker_as_a_user_with_a_number_that_is_not_root(target: str):
    stage = stages()[target]
    (user,) = [argument for instruction, argument in stage if instruction == "USER"]
    assert int(user) > 0
    (command,) = [json.loads(argument) for instruction, argument in stage if instruction == "CMD"]
    assert command[:5] == ["prefect", "worker", "start", "--pool", "anomalyclip"]
    copied = [argument for instruction, argument in stage if instruction == "COPY"]
    assert f"--from=installed-{target} /opt/venv /opt/venv" in copied
    assert "infra/*.py infra/*.yaml infra/" in copied  # what `python -m infra.deploy` applies


def test_what_is_copied_exists_and_is_let_into_the_context():
    copied = [source for instruction, argument in instructions() if instruction == "COPY" and "--from" not in argument
              for source in argument.split()[:-1]]  # fmt: skip
    assert {"models", "tasks", "flows", "constraints.txt", "infra/*.yaml"} <= set(copied)
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [line[1:] for line in lines if line.startswith("!")]
    assert lines[1] == "*"
    for source in copied:
        assert list(ROOT.glob(source)), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed), source


def test_the_image_has_the_versions_of_the_tests():
    defaults = dict(
        argument.split("=") for instruction, argument in instructions() if instruction == "ARG" and "=" in argument
    )
    assert defaults["TORCH"] == version("torch").partition("+")[0]
    assert defaults["TORCHVISION"] == version("torchvision").partition("+")[0]
    installs = [
        argument for instruction, argument in instructions() if instruction == "RUN" and "/wheel/*.whl" in argument
    ]
    assert len(installs) == 2
    assert len(set(installs)) == 1
    assert "--constraint /constraints.txt" in installs[0]


# --- compose ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_compose_is_valid(name: str):
    found = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(INFRA / name))
    assert found.returncode == 0, found.stdout + found.stderr


def test_with_a_gpu_one_image_is_built_and_the_worker_has_the_gpu():
    services = yaml.safe_load((INFRA / "compose.cuda.yaml").read_text(encoding="utf-8"))["services"]
    assert set(services) == set(OURS)
    for name, service in services.items():
        assert service["image"] == f"{COMPOSE['services'][name]['image']}-cuda"
        assert service["build"]["target"] in stages()
    (device,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 1, ["gpu"])


def test_compose_publishes_to_this_machine_alone_and_asks_for_every_password():
    services = COMPOSE["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY", variable):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{name}: {variable}"
            assert not re.search(r"://[^/@]+:[^/@]+@", str(value)), f"{name}: a password in the URL {variable}"


def test_services_wait_for_what_can_say_that_it_is_ready():
    services = COMPOSE["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            ready = "healthcheck" in services[other] or how["condition"] == "service_completed_successfully"
            assert ready, f"{name} waits for {other}"
        named = [volume.partition(":")[0] for volume in service.get("volumes", [])]
        assert set(named) <= set(COMPOSE["volumes"])
        if name not in OURS:
            assert re.search(r":v?\d+(\.\d+)+", service["image"]), f"{name}: the version of {service['image']}"
    for name in OURS:
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["volumes"] == [f"{name}:/home/anomalyclip"]
    pages = services["prefect"]["environment"]["PREFECT_SERVER_UI_STATIC_DIRECTORY"]
    assert pages.startswith("/home/anomalyclip/")  # by default they are written beside the code, and it does not start


def test_the_worker_is_told_what_the_code_reads():
    environment = COMPOSE["services"]["worker"]["environment"]
    of_its_own = {"TMPDIR": "/home/anomalyclip"}  # a volume: its /tmp is memory
    assert environment == COMPOSE["services"]["setup"]["environment"] | of_its_own
    assert {"ANOMALYCLIP_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY"} <= set(environment)  # fmt: skip
    buckets = COMPOSE["services"]["setup"]["command"][-1]
    for uri in (
        environment["ANOMALYCLIP_STORE"],
        COMPOSE["services"]["mlflow"]["environment"]["MLFLOW_ARTIFACTS_DESTINATION"],
    ):
        assert f"'{uri.removeprefix('s3://').partition('/')[0]}'" in buckets


# --- Kubernetes -------------------------------------------------------------------------------------------------------


KUBERNETES = INFRA / "kubernetes"
RESOURCES = {
    f"{path.parent.name}/{path.name}": yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted(KUBERNETES.glob("*/*.yaml"))
    if path.name not in ("kustomization.yaml", "images.yaml")
}


def pods(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """Templates of the pods that come of a resource."""
    spec = resource.get("spec", {})
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]] if "headGroupSpec" in spec else [spec]
    return [group["template"] for group in groups if "template" in group]


@pytest.mark.parametrize("name", RESOURCES)
def test_a_resource_is_one_that_kubernetes_takes(name: str):
    resource = RESOURCES[name]
    if resource["kind"] != "RayCluster":  # its own schema is KubeRay's, and not at hand
        kubernetes_validate.validate(resource, "1.37", strict=True)
    for pod in pods(resource):
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod"} | pod, "1.37", strict=True)


@pytest.mark.parametrize("name", [name for name in RESOURCES if pods(RESOURCES[name])])
def test_a_pod_is_restricted_and_its_secrets_are_references(name: str):
    for pod in pods(RESOURCES[name]):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] == int(dict(stages()["cpu"])["USER"])
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"/tmp", "/home/anomalyclip"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
        assert "memory" in container["resources"]["requests"]
        assert "memory" in container["resources"]["limits"]
        assert all("secretKeyRef" in variable["valueFrom"] for variable in container.get("env", []))
    assert not any(resource["kind"] == "Secret" for resource in RESOURCES.values())


def test_ray_has_the_version_of_the_tests_and_a_gpu_for_each_worker():
    cluster = RESOURCES["ray/cluster.yaml"]["spec"]
    assert cluster["rayVersion"] == version("ray")
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert cluster["authOptions"] == {"mode": "token"}
    (container,) = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl, which renders kustomizations, is not installed")
def test_the_kustomization_puts_images_settings_and_rays_address_everywhere():
    done = subprocess.run(["kubectl", "kustomize", str(KUBERNETES / "ray")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    rendered = {(found["kind"], found["metadata"]["name"]): found for found in yaml.safe_load_all(done.stdout)}
    assert {namespace for found in rendered.values() if (namespace := found["metadata"].get("namespace"))} == {
        "anomalyclip"
    }
    (settings,) = [found for (kind, _), found in rendered.items() if kind == "ConfigMap"]
    assert {"PREFECT_API_URL", "MLFLOW_TRACKING_URI", "ANOMALYCLIP_STORE"} <= set(settings["data"])
    containers = [pod["spec"]["containers"][0] for found in rendered.values() for pod in pods(found)]
    assert len(containers) == 4
    assert all(re.fullmatch(r".+/anomalyclip-batch:0\.1\.0(-cuda)?", container["image"]) for container in containers)
    names = {source["configMapRef"]["name"] for container in containers for source in container.get("envFrom", [])}
    assert names == {settings["metadata"]["name"]}
    (worker,) = rendered["Deployment", "worker"]["spec"]["template"]["spec"]["containers"]
    environment = {variable["name"]: variable for variable in worker["env"]}
    cluster = RESOURCES["ray/cluster.yaml"]["metadata"]["name"]
    assert environment["RAY_ADDRESS"]["value"] == f"ray://{cluster}-head-svc:10001"
    assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == cluster


# --- policies ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def account() -> Iterator[str]:
    """An S3 and IAM server that asks of every request whether the policies of its user allow it."""
    port = free_port()
    with serving(port, "moto.server", "-H", "127.0.0.1", "-p", str(port)):
        yield f"http://127.0.0.1:{port}"


def policy(name: str) -> str:
    """As an operator attaches it, with the names of the buckets put in."""
    text = (INFRA / "iam" / f"{name}.json").read_text(encoding="utf-8")
    names = {"IMAGES": "images", "STORE": "results", "MLFLOW": "mlflow", "WEIGHTS": "weights"}
    return re.sub(r"([A-Z]+)-BUCKET", lambda found: names[found[1]], text)


def user(account: str, *policies: str) -> dict[str, str]:
    """The AWS variables of a new user with these policies."""
    iam = boto3.client(
        "iam", endpoint_url=account, region_name="us-east-1", aws_access_key_id="root", aws_secret_access_key="root"
    )
    name = "-".join(policies)
    iam.create_user(UserName=name)
    for policy_name in policies:
        iam.put_user_policy(UserName=name, PolicyName=policy_name, PolicyDocument=policy(policy_name))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            "AWS_ENDPOINT_URL": account, "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip


def filesystem(who: dict[str, str]) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(
        key=who["AWS_ACCESS_KEY_ID"], secret=who["AWS_SECRET_ACCESS_KEY"], endpoint_url=who["AWS_ENDPOINT_URL"],
        skip_instance_cache=True,
    )  # fmt: skip


def test_a_night_needs_no_more_than_its_policies_and_a_reviewer_reads_reports_alone(
    account: str,
    prefect_server: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    owner = filesystem({"AWS_ACCESS_KEY_ID": "root", "AWS_SECRET_ACCESS_KEY": "root", "AWS_ENDPOINT_URL": account})
    for bucket in ("images", "results", "weights"):
        owner.call_s3("create_bucket", Bucket=bucket)
    write_images(tmp_path / "images", range(4))
    owner.put(str(tmp_path / "images"), "images/line-4", recursive=True)
    owner.pipe("weights/clip.safetensors", b"weights")
    worker = user(account, "source-read", "store-write", "weights-read")
    reviewer = user(account, "store-review")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("ANOMALYCLIP_STORE", "s3://results/store")
    monkeypatch.setattr("tasks.backbones.CACHE", tmp_path / "cache")
    for name, value in worker.items():
        monkeypatch.setenv(name, value)
    backbone = load_backbone("embedded", 96)
    bundle = Detector.build(backbone, PromptLearner(backbone), 96, (4,), 2).save(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    with tracked_run(Store("s3://results/store"), "train", {}) as run_id:
        register_bundle(Store("s3://results/store"), bundle, run_id, "of the tests")
    urlopen(Request(f"{account}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})).close()  # now it asks

    s3fs.S3FileSystem.clear_instance_cache()
    assert main(["nightly", "s3://images/line-4", "--collection", "line-4", "--json"]) == 0, capsys.readouterr().err
    night = json.loads(capsys.readouterr().out)
    assert (night["images"], night["scored"]) == (4, 4)

    assert fetch("s3://weights/clip.safetensors").read_bytes() == b"weights"
    with pytest.raises(InputError, match="do not exist"):
        fetch("s3://weights/other.safetensors")

    ours = filesystem(worker)
    for path in ("images/line-4/new.png", "weights/clip.safetensors"):
        with pytest.raises(PermissionError):
            ours.pipe(path, b"")
    with pytest.raises(PermissionError):
        ours.rm_file(night["report"].removeprefix("s3://"))

    theirs = filesystem(reviewer)
    assert theirs.cat(night["report"]).startswith(b"<!doctype html>")
    manifest = ours.find("results/store/collections/line-4/manifest")[0]
    for forbidden in (
        lambda: theirs.cat(manifest),
        lambda: theirs.pipe(night["report"], b""),
        lambda: theirs.cat("images/line-4/good/000.png"),
    ):
        with pytest.raises(PermissionError):
            forbidden()


@pytest.mark.parametrize("path", sorted((INFRA / "iam").glob("*.json")), ids=lambda path: path.stem)
def test_a_policy_names_actions_and_resources_one_by_one(path: Path):
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert document["Version"] == "2012-10-17"
    for statement in document["Statement"]:
        assert set(statement) <= {"Sid", "Effect", "Action", "Resource", "Condition"}
        actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        assert all(re.fullmatch(r"s3:[A-Za-z]+", action) for action in actions)
        resources = [statement["Resource"]] if isinstance(statement["Resource"], str) else statement["Resource"]
        assert all(re.match(r"arn:aws:s3:::[A-Z]+-BUCKET(/|$)", resource) for resource in resources)
        if statement["Effect"] == "Allow":
            assert not any("Delete" in action for action in actions)
