"""What is tried again: storage that failed, not what was refused and not a mistake of the program."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from botocore.exceptions import EndpointConnectionError

from tasks.errors import InputError
from tasks.progress import Stopped
from tasks.retries import may_pass


def raised(call) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return caught.value


@pytest.mark.parametrize(
    "call",
    [
        lambda: Path("/nowhere/at/all").read_bytes(),
        lambda: pq.read_table(io.BytesIO(b"PAR1 and no more")),
        lambda: json.loads('{"cut": '),
    ],
    ids=["missing", "half a Parquet file", "half a JSON file"],
)
def test_what_storage_may_do_is_tried_again(call) -> None:
    assert may_pass(raised(call))


def test_connections_that_fail_are_tried_again() -> None:
    assert may_pass(EndpointConnectionError(endpoint_url="http://127.0.0.1:1"))
    assert may_pass(TimeoutError())


@pytest.mark.parametrize(
    "error",
    [InputError("no"), Stopped("on request"), PermissionError("refused")],
    ids=lambda error: type(error).__name__,
)
def test_what_was_refused_is_not_tried_again(error: Exception) -> None:
    assert not may_pass(error)


@pytest.mark.parametrize(
    "call",
    [lambda: len(1), lambda: "".nothing, lambda: {}["a"], lambda: [][0], lambda: 1 / 0, lambda: int("a"), lambda: undefined],  # noqa: F821
    ids=["type", "attribute", "key", "index", "division", "value", "name"],
)  # fmt: skip
def test_mistakes_of_the_program_are_not_tried_again(call) -> None:
    assert not may_pass(raised(call))
