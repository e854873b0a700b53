"""Reproduce: the paper's protocol over the data sets that are at hand, and its numbers beside ours."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from prefect import flow

from flows.evaluate import evaluate
from flows.import_checkpoint import PAPER_BACKBONE
from flows.ingest import ingest
from flows.score import score
from tasks.backbones import MapDefinition, make_geometry
from tasks.checkpoints import import_published
from tasks.errors import InputError
from tasks.evaluation import AUPRO_DEFINITION, ClassMetrics
from tasks.features import compute_features
from tasks.layout_names import Layout
from tasks.layouts import DATASETS, find_datasets
from tasks.paper import METRICS, RELEASED, auxiliary_of, released, reported
from tasks.store import default_store
from tasks.training import TrainingPlan, learn_prompts


@dataclass(frozen=True)
class ReproducedClass:
    """A class, or the mean, beside the authors' released checkpoint (paper); as in Reproduced."""

    class_name: str
    images: int
    paper: dict[str, float | None]
    ours: dict[str, float | None]
    difference: dict[str, float | None]


@dataclass(frozen=True)
class Reproduced:
    """One data set; paper, ours and difference by metric in percent, None where there is no number. model: its URI.

    classes: of the sets of which the authors' numbers by class are known, the mean last; empty for the others.
    images: that took part; unscored: that could not be read.
    """

    data_set: str
    auxiliary: str
    model: str
    images: int
    unscored: int
    paper: dict[str, float | None]
    ours: dict[str, float | None]
    difference: dict[str, float | None]
    classes: list[ReproducedClass]


@dataclass(frozen=True)
class ReproduceSummary:
    """left_out: data sets at hand that there is no model for, because its auxiliary set is not.

    not_recognised: folders that lie there and are called like no data set.
    """

    aupro_definition: str
    sets: list[Reproduced]
    left_out: list[str]
    not_recognised: list[str]


@flow(name="reproduce", flow_run_name="reproduce {root}")
def reproduce(
    root: str,
    sets: list[str] | None = None,
    checkpoints: dict[str, str] | None = None,
    backbone: str = PAPER_BACKBONE,
    epochs: int = 15,
    image_size: int | None = None,
    feature_layers: list[int] | None = None,
    dpam_layers: int | None = None,
    map_definition: MapDefinition = "last",
    store: str | None = None,
) -> ReproduceSummary:
    """Train on MVTec AD's test images and evaluate the others; train on VisA's and evaluate MVTec AD.

    root: a folder or URI with a folder a data set, named after its layout, its title or as its publisher does. sets:
    layouts, all at hand by default. checkpoints: files of the published code by the layout of the set that they were
    trained on, instead of training. Only test images are ingested: the protocol needs no others. Killed anywhere, the
    same call goes on where it was. None of the models becomes the champion, and one that is registered already is taken.
    """
    store, checkpoints = store or default_store(), checkpoints or {}
    folders, not_recognised = find_datasets(root)
    if not folders:
        others = f", but {', '.join(not_recognised)}" if not_recognised else ""
        raise InputError(f"{root!r} has no folder of a data set{others}: call them {', '.join(DATASETS)}")
    chosen, left_out = choose(root, folders, sets, checkpoints)
    auxiliary = [name for name in DATASETS if name in {auxiliary_of(layout) for layout in chosen}]
    for layout in dict.fromkeys([*chosen, *(name for name in auxiliary if name not in checkpoints)]):
        ingest(folders[layout], collection_of(layout), cast(Layout, layout), store=store, split="test")
    geometry = make_geometry(backbone, image_size, feature_layers, dpam_layers, map_definition)
    plan = TrainingPlan(backbone, geometry, epochs)
    models = {name: model_of(name, checkpoints.get(name), plan, store) for name in auxiliary}
    results = [evaluate_set(layout, models[auxiliary_of(layout)], store) for layout in chosen]
    return ReproduceSummary(AUPRO_DEFINITION, results, left_out, not_recognised)


def model_of(layout: str, checkpoint: str | None, plan: TrainingPlan, store: str) -> str:
    """URI of the version with the prompts that were learned on a set: here, or by the published code."""
    if checkpoint:
        return import_published(store, checkpoint, plan.backbone, plan.geometry, for_comparison=True).model.uri
    collections = [collection_of(layout)]
    features = compute_features(store, collections, plan.backbone, plan.geometry)
    return learn_prompts(store, collections, plan, features, for_comparison=True).model.uri


def evaluate_set(layout: str, model: str, store: str) -> Reproduced:
    score(collection_of(layout), model, store=store)
    metrics = evaluate(collection_of(layout), model, store=store).metrics
    classes = [compare_class(layout, row) for row in metrics] if layout in RELEASED else []
    paper, mean = reported(layout), metrics[-1]
    ours, difference = compare(paper, mean)
    auxiliary, counts = auxiliary_of(layout), (mean.images, mean.unscored)
    return Reproduced(layout, auxiliary, model, *counts, paper, ours, difference, classes)


def collection_of(layout: str) -> str:
    return f"paper-{layout}"


def choose(
    root: str, folders: Mapping[str, str], sets: Sequence[str] | None, checkpoints: Collection[str]
) -> tuple[list[str], list[str]]:
    """Layouts to evaluate and, where none were named, those left out for want of a model; raises InputError."""
    for name in (*(sets or ()), *checkpoints):
        if name not in DATASETS:
            raise InputError(f"there is no data set {name!r}: choose from {', '.join(DATASETS)}")
    if unknown := set(checkpoints) - {"mvtec", "visa"}:
        raise InputError(f"the protocol trains on mvtec and visa, not on {min(unknown)}: no checkpoint of it is used")
    for name in sets or ():
        if name not in folders:
            raise InputError(f"{root!r} has no folder of {DATASETS[name].title}: call it {name!r}")
    wanted = [name for name in DATASETS if name in (sets or folders)]
    trainable = {*folders, *checkpoints}
    left_out = [name for name in wanted if auxiliary_of(name) not in trainable]
    if left_out and (sets or left_out == wanted):
        auxiliary = auxiliary_of(left_out[0])
        raise InputError(
            f"to evaluate {DATASETS[left_out[0]].title} the protocol trains on {DATASETS[auxiliary].title}: put it into "
            f"{root!r} as {auxiliary!r}, or give a checkpoint that was trained on it"
        )
    return [name for name in wanted if name not in left_out], left_out


def compare_class(layout: str, row: ClassMetrics) -> ReproducedClass:
    paper = released(layout, row.class_name)
    return ReproducedClass(row.class_name, row.images, paper, *compare(paper, row))


def compare(
    paper: Mapping[str, float | None], row: ClassMetrics
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Ours in percent, and the difference from the published numbers."""
    ours: dict[str, float | None] = {}
    difference: dict[str, float | None] = {}
    for metric in METRICS:
        value, published = getattr(row, metric), paper[metric]
        ours[metric] = None if value is None else 100 * value
        difference[metric] = None if value is None or published is None else 100 * value - published
    return ours, difference
