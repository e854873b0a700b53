"""Export: the decisions of a scored collection in the formats of other tools."""

from prefect import flow

from flows.parameters import CollectionName, Format, Model, Output, StoreUri
from tasks.exports import ExportSummary, export_collection
from tasks.registry import CHAMPION_URI, resolve_model
from tasks.store import Store, default_store


@flow(name="export", flow_run_name="export {collection} {format}")
def export(
    collection: CollectionName,
    format: Format,
    model: Model = CHAMPION_URI,
    output: Output = None,
    store: StoreUri = None,
) -> ExportSummary:
    """Write one file with the decisions, regions and reasons of a collection's images, as the scores table has them."""
    store = store or default_store()
    return export_collection(store, collection, resolve_model(Store(store), model), format, output)
