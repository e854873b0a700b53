"""Ingest: list a source and write what is new or changed to the collection's manifest."""

from dataclasses import asdict

from prefect import flow

from flows.parameters import CollectionName, LayoutName, Probe, Source, Split, StoreUri
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
    split: Split = None,
) -> IngestSummary:
    """List SOURCE (a folder or any fsspec URI) and add new and changed images to the collection's manifest.

    split: where the layout has splits, only the images of this one; the others count as not listed.
    """
    target = Store(store or default_store())
    target.check_writable()
    summary = ingest_source(target.uri, collection, source, layout, probe, split)
    publish_table("ingest", collection, [asdict(summary)], f"{source} in {collection}")
    return summary
