"""`make stack` as a test starts and uses it."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import psutil
import s3fs

from infra.supervisor import free_port
from models.embedded.generator import SPLIT
from tasks.demo_data import generated_files, png
from tests.flows.conftest import hear_ctrl_c

ROOT = Path(__file__).parents[2]
SOURCE = "s3://images/line-4"
CLASSES = SPLIT["held_out"]
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Running:
    """`make stack` in a folder of its own, and the ways in that its user has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("prefect", "mlflow", "s3", "database")}
        self.prefect, self.mlflow = (f"http://127.0.0.1:{self.ports[name]}" for name in ("prefect", "mlflow"))
        self.api = httpx.Client(base_url=f"{self.prefect}/api", timeout=60)

    def start(self) -> None:
        quick = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2"}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_LOGGING")}
        with (self.folder / "said").open("w") as said:
            self.process = subprocess.Popen(
                self.command("stack"), cwd=ROOT, env=environment | quick | {"OMP_NUM_THREADS": "1"},
                stdout=said, stderr=said, start_new_session=True, preexec_fn=hear_ctrl_c,
            )  # fmt: skip
        wait_for(lambda: "Ctrl-C stops everything" in self.said() or self.process.poll() is not None)
        assert self.process.poll() is None, self.said()
        lines = (self.folder / "stack" / "environment").read_text().splitlines()
        self.variables = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        self.files = s3fs.S3FileSystem(
            endpoint_url=self.variables["AWS_ENDPOINT_URL"], key=self.variables["AWS_ACCESS_KEY_ID"],
            secret=self.variables["AWS_SECRET_ACCESS_KEY"], use_listings_cache=False, skip_instance_cache=True,
        )  # fmt: skip

    def command(self, folder: str) -> list[str]:
        ports = [f"--{name}-port={port}" for name, port in self.ports.items()]
        return [sys.executable, "-m", "infra.stack", "--folder", str(self.folder / folder), *ports]

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def stop(self) -> None:
        """As Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(120)

    def anomalyclip(self, *arguments: str) -> Any:
        """What the command says in a second shell, which has read the environment's file."""
        command = [sys.executable, "-m", "flows.cli", *arguments, "--json"]
        environment = os.environ | self.variables | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    def upload(self, numbers: range) -> None:
        """Generated images into the bucket: SOURCE/<class>/<state>/<number>.png."""
        for family in CLASSES:
            for number in numbers:
                for name, pixels in generated_files(family, number).items():
                    if "ground_truth" not in name:
                        self.files.pipe_file(f"{SOURCE}/{name.replace('/test/', '/')}", png(pixels))

    def post(self, path: str, **content: Any) -> Any:
        return self.api.post(path, json=content).raise_for_status().json()

    @property
    def nightly(self) -> dict[str, Any]:
        return next(found for found in self.post("/deployments/filter") if found["name"] == "nightly")

    def unlimited(self) -> str:
        """A copy of the deployment that does not wait for the slots of the dead."""
        copied = ("flow_id", "entrypoint", "work_pool_name", "job_variables", "tags", "parameters",
                  "parameter_openapi_schema")  # fmt: skip
        deployment = {name: value for name, value in self.nightly.items() if name in copied}
        return str(self.post("/deployments/", name="unlimited", **deployment)["id"])

    def runs(self, **parameters: Any) -> list[dict[str, Any]]:
        """Of nightly, the first one first."""
        runs = self.post("/flow_runs/filter", sort="EXPECTED_START_TIME_ASC", flows={"name": {"any_": ["nightly"]}})
        return [run for run in runs if parameters.items() <= run["parameters"].items()]

    def run(self, collection: str) -> str:
        """Starts a night of many small shards; returns its id."""
        path = f"/deployments/{self.unlimited()}/create_flow_run"
        parameters = {"source": SOURCE, "collection": collection, "layout": "folders", "shard_size": 1}
        return str(self.post(path, parameters=parameters, state={"type": "SCHEDULED"})["id"])

    def state(self, run: str) -> dict[str, Any]:
        return dict(self.api.get(f"/flow_runs/{run}").raise_for_status().json()["state"])

    def end_of(self, run: str, seconds: float = 240) -> dict[str, Any]:
        return dict(wait_for(lambda: state if (state := self.state(run))["type"] in ENDED else None, seconds))

    def parts(self, collection: str) -> list[str]:
        return list(self.files.glob(f"anomalyclip/store/collections/{collection}/scores/*/part-*.parquet"))

    def scores(self, collection: str) -> pd.DataFrame:
        """Of all images, by their ids: what does not depend on the name of the collection."""
        tables = [pd.read_parquet(io.BytesIO(self.files.cat_file(part))) for part in self.parts(collection)]
        rows = pd.concat(tables).sort_values("image_id", ignore_index=True)
        assert rows["image_id"].is_unique
        return rows[["image_id", "uri", "etag", "class_name", "score", "bundle_digest", "error_kind"]]

    def count_masks(self, collection: str) -> int:
        """Rows of scores that name a mask."""
        return sum(
            pd.read_parquet(io.BytesIO(self.files.cat_file(part)), columns=["mask_uri"])["mask_uri"].notna().sum()
            for part in self.parts(collection)
        )

    def child(self, words: str) -> psutil.Process:
        """The server whose command line has these words."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if words in " ".join(child.cmdline()))

    def run_process(self, run: str) -> psutil.Process:
        """The process in which the worker has this run."""
        children = self.child("worker start").children(recursive=True)
        return next(child for child in children if child.environ().get("PREFECT__FLOW_RUN_ID") == run)

    def is_half_way(self, collection: str) -> bool:
        return 3 <= len(self.parts(collection)) <= 30


def wait_for(condition: Callable[[], Any], seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := condition():
                return found
        except (httpx.TransportError, httpx.HTTPStatusError, StopIteration, psutil.Error):
            pass  # a server that restarts; a process that is not there yet, or no longer
        assert time.monotonic() < deadline, f"nothing after {seconds:.0f} s"
        time.sleep(0.2)
