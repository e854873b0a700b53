"""Ingest: list a source and write what is new or changed to the collection's manifest."""

from dataclasses import asdict

from prefect import flow

from flows.parameters import CollectionName, LayoutName, Probe, Source, StoreUri
from tasks.artifacts import publish_table
from tasks.manifest import IngestSummary, ingest_source
from tasks.store import Store, default_store


@flow(name="ingest", flow_run_name="ingest {collection}")
def ingest(
    source: Source,
    collection: CollectionName,
    layout: LayoutName = "flat",
    probe: Probe = False,
    store: StoreUri = None,
) -> IngestSummary:
    """List SOURCE (a folder or any fsspec URI) and add new and changed images to the collection's manifest."""
    target = Store(store or default_store())
    target.check_writable()
    summary = ingest_source(target.uri, collection, source, layout, probe)
    publish_table("ingest", collection, [asdict(summary)], f"{source} in {collection}")
    return summary
