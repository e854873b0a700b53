"""Trying again, with backoff: what failed for a while may work later, what is wrong stays wrong."""

from typing import Any

from prefect.client.schemas.objects import TaskRun
from prefect.states import State
from prefect.tasks import exponential_backoff

from tasks.errors import InputError
from tasks.progress import Stopped

RETRIES = 3
DELAYS = exponential_backoff(5)  # 5, 10 and 20 seconds
JITTER = 0.5
PERMANENT = (InputError, Stopped, PermissionError)  # unusable input, Ctrl-C, refused credentials


def transient(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again may help: after storage that failed, yes; after what is PERMANENT, no."""
    return not isinstance(state.result(raise_on_failure=False), PERMANENT)
