"""Run records: what a run did and when. Times and hosts are kept here, so that the tables hold none."""

import json
import platform
import secrets
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from tasks.store import Store


def new_run_id() -> str:
    """Sorts by time: 20260131T235959-1a2b3c."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def write_run_record(store: Store, collection: str, step: str, summary: Any) -> str:
    """Write a summary (a dataclass with a run_id) to the collection's runs; returns its URI."""
    record = {"step": step, "ended": datetime.now(UTC).isoformat(), "host": platform.node(), **asdict(summary)}
    data = (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()
    return store.write(data, "collections", collection, "runs", f"{summary.run_id}.json")
