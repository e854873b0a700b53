"""Shared by all tests: no telemetry, no network, one ephemeral Prefect server for the tests that run flows."""

import os
from collections.abc import Iterator

for name, value in {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}.items():
    os.environ.setdefault(name, value)
for name in ("ANOMALYCLIP_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
    os.environ.pop(name, None)

import pytest  # noqa: E402
from prefect.logging.configuration import setup_logging  # noqa: E402
from prefect.testing.utilities import prefect_test_harness  # noqa: E402


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A database and an ephemeral server of the tests' own."""
    setup_logging()  # the first call takes pytest's own handler away: not in the first test that listens to it
    with prefect_test_harness(server_startup_timeout=120):
        yield
