"""Artifacts of a run in Prefect's UI: tables, Markdown and links. Without a server that people look at there are none.

Names and labels are hostile: in Markdown every character of theirs that could mean something has a backslash before it.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from tasks.progress import dispensable, watched


def publish_table(step: str, collection: str, rows: Sequence[Mapping[str, Any]], description: str) -> None:
    """Rows with the same columns; cells are shown as text."""
    if watched():
        with dispensable(f"the table of {step}"):
            create_table_artifact([dict(row) for row in rows], artifact_key(step, collection), as_text(description))


def publish_markdown(step: str, collection: str, name: str, markdown: str, description: str) -> None:
    if watched():
        create_markdown_artifact(markdown, artifact_key(step, collection, name), as_text(description))


def publish_links(step: str, collection: str, links: Mapping[str, str]) -> None:
    """One artifact a link, under the link's name."""
    for name, link in links.items() if watched() else ():
        with dispensable(f"the link to {name}"):
            create_link_artifact(quote(link, safe=":/#?=&%@"), name, artifact_key(step, collection, name))


def artifact_key(*words: str) -> str:
    """Prefect allows lowercase letters, digits and dashes: what it allows nothing of gets a checksum."""
    whole = "-".join(words)
    key = re.sub(r"[^a-z0-9]+", "-", whole.lower())
    return key if whole.isascii() else f"{key.rstrip('-')}-{zlib.crc32(whole.encode()):08x}"


def as_text(value: str) -> str:
    """Markdown that shows a value as it is, on one line."""
    return re.sub(r"[!-,./:-@\[-`{-~]", r"\\\g<0>", " ".join(value.split()))
