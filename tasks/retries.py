"""Trying again, with backoff: what failed for a while may work later, what is wrong stays wrong."""

import json
from typing import Any

import pyarrow as pa
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.states import State
from prefect.tasks import exponential_backoff

from tasks.errors import InputError
from tasks.progress import Stopped

RETRIES = 3
DELAYS = exponential_backoff(5)  # 5, 10 and 20 seconds
JITTER = 0.5
REFUSED = (InputError, Stopped, PermissionError)  # unusable input, Ctrl-C, refused credentials
STORAGE = (OSError, pa.ArrowInvalid, json.JSONDecodeError)  # the last two: an answer cut short is read whole next time
MISTAKES = (TypeError, AttributeError, NameError, AssertionError, LookupError, ArithmeticError, ValueError)


def may_pass(error: Any) -> bool:
    """Whether trying again may help: after storage that failed, yes; after what was refused, or is our mistake, no.

    Parquet and JSON that cannot be parsed are ValueErrors and count as storage all the same: objects are written whole, so
    that something was lost on the way is likelier than that they are damaged.
    """
    return not isinstance(error, REFUSED) and (isinstance(error, STORAGE) or not isinstance(error, MISTAKES))


def transient(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """may_pass, as Prefect asks for it."""
    return may_pass(state.result(raise_on_failure=False))


RETRIED: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": RETRIES,
    "retry_delay_seconds": DELAYS,
    "retry_jitter_factor": JITTER,
    "retry_condition_fn": transient,
}  # of the tasks that read or write collections
