"""Ingest: list a source and write what is new or changed to the collection's manifest."""

from prefect import flow

from tasks.layout_names import Layout
from tasks.manifest import IngestSummary, ingest_source
from tasks.store import default_store


@flow(name="ingest", flow_run_name="ingest {collection}")
def ingest(
    source: str, collection: str, layout: Layout = "flat", probe: bool = False, store: str | None = None
) -> IngestSummary:
    """List SOURCE (a folder or any fsspec URI) and add new and changed images to the collection's manifest.

    probe: also read every image's header, to fill in size and mode and to find what cannot be read.
    """
    return ingest_source(store or default_store(), collection, source, layout, probe)
