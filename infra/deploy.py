"""Apply the work pool, the deployments and the automations to the server of PREFECT_API_URL; again, it changes nothing.

python -m infra.deploy
"""

import subprocess
import sys
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from prefect import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

POOL = "anomalyclip"
FOLDER = Path(__file__).parent


def main() -> None:
    if not PREFECT_API_URL.value():
        sys.exit(
            "PREFECT_API_URL names no server to deploy to, e.g. http://127.0.0.1:4200/api of `prefect server start`"
        )
    make_pool()
    apply_deployments()
    apply_automations()


def prefect(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", *arguments], check=True)


def make_pool() -> None:
    """Once: what somebody has set in it since, a pause or a limit, stays."""
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            prefect("work-pool", "create", POOL, "--type", "process")


def apply_deployments() -> None:
    """Those of prefect.yaml. `prefect deploy` resumes a deployment that is paused as a whole; here it stays paused."""
    file = FOLDER / "prefect.yaml"
    names = [deployment["name"] for deployment in yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"]]
    ours = DeploymentFilter(name=DeploymentFilterName(any_=names))
    with get_client(sync_client=True) as client:
        paused = [found.id for found in client.read_deployments(deployment_filter=ours) if found.paused]
        try:
            prefect("deploy", "--all", "--prefect-file", str(file))
        finally:
            for deployment in paused:
                client.pause_deployment(deployment)


def apply_automations() -> None:
    """Those of automations.yaml, each once by its name."""
    with get_client(sync_client=True) as client:
        for content in yaml.safe_load((FOLDER / "automations.yaml").read_text(encoding="utf-8"))["automations"]:
            automation = AutomationCore.model_validate(content)
            known = client.read_automations_by_name(automation.name)
            if known:
                client.update_automation(known[0].id, automation)
            else:
                client.create_automation(automation)


if __name__ == "__main__":
    main()
