"""Calibrate: thresholds from the scores of an unlabelled reference, for what is ingested from then on."""

from prefect import flow

from flows.parameters import CollectionName, FalseAlarmRate, Model, Nights, StoreUri
from tasks.calibration import CalibrateSummary, calibrate_collection
from tasks.registry import CHAMPION_URI, resolve_model
from tasks.store import Store, default_store


@flow(name="calibrate", flow_run_name="calibrate {collection}")
def calibrate(
    collection: CollectionName,
    false_alarm_rate: FalseAlarmRate = 0.01,
    model: Model = CHAMPION_URI,
    nights: Nights = None,
    store: StoreUri = None,
) -> CalibrateSummary:
    """Set thresholds of images and of pixels from what a model has scored of a collection so far, class by class.

    After a drift, take the nights since: older scores are no reference any more. Nothing that is scored is changed: the
    thresholds count for images that are ingested afterwards.
    """
    store = store or default_store()
    return calibrate_collection(store, collection, resolve_model(Store(store), model), false_alarm_rate, nights)
