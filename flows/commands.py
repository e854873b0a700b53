"""What each command of `anomalyclip` does with its arguments: it calls a flow and says what came of it.

Each returns the summary, for --json, and what a person reads of it. Flows are imported when their command runs: they bring
torch, Prefect and MLflow with them.
"""

import argparse
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from tasks.errors import InputError
from tasks.store import Store

IMAGE_HEADS = {"image_auroc": "image AUROC", "image_ap": "AP", "image_f1_max": "F1-max"}
PIXEL_HEADS = {"pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP", "pixel_f1_max": "pixel F1-max"}
AUPRO_HEADS = {"aupro": "AUPRO (official)", "aupro_standard": "AUPRO (standard)"}
METRIC_HEADS = IMAGE_HEADS | PIXEL_HEADS | AUPRO_HEADS
WITH_INTERVALS = (IMAGE_HEADS, PIXEL_HEADS, AUPRO_HEADS)  # of tables: all metrics of pixels side by side are too wide


class Refused(Exception):
    """What was asked for is not done, in one sentence; --json still prints the summary. Exit code 1."""

    def __init__(self, sentence: str, summary: Any) -> None:
        super().__init__(sentence)
        self.summary = summary


def run_demo(arguments: argparse.Namespace) -> tuple[Any, str]:
    try:
        from flows.demo import demo
    except ModuleNotFoundError as error:
        raise InputError(f"the demo needs {error.name!r}: pip install '.[demo]'") from error

    summary = demo(arguments.images, arguments.cells, arguments.epochs, store=arguments.store)
    rows = [{"collection": name} | asdict(table[-1]) for name, table in summary.metrics.items()]
    seconds = "  ".join(f"{step} {value:.1f} s" for step, value in summary.seconds.items())
    return summary, "\n".join(
        [
            "",
            metric_tables(rows, {"collection": "collection"}),
            "",
            f"{seconds}  total {sum(summary.seconds.values()):.1f} s",
            "",
            f"page      {summary.report}",
            f"store     {summary.store}",
            f"model     {summary.model}",
            f"MLflow    {mlflow_ui(arguments.store)}",
        ]
    )


def run_ingest(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.ingest import ingest

    s = ingest(
        arguments.source, arguments.collection, arguments.layout, arguments.probe, arguments.store, arguments.split
    )
    counts = f"{s.listed} images listed: {s.new} new, {s.changed} changed, {s.unchanged} unchanged, {s.deleted} deleted"
    unreadable = f"; {s.unreadable} cannot be read" if s.unreadable else ""
    return s, f"{s.collection}: {counts}{unreadable}; {s.labelled} labelled (manifest {s.digest})"


def run_train(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.train import train

    s = train(
        arguments.collection, arguments.backbone, arguments.epochs, arguments.lr, arguments.seed,
        arguments.validation_share, arguments.patience,
        arguments.image_size, arguments.feature_layers, arguments.dpam_layers, arguments.map_definition,
        store=arguments.store,
    )  # fmt: skip
    held_back = f" ({s.held_back_images} held back)" if s.held_back_images else ""
    chosen = f", prompts of epoch {s.chosen_epoch}" if s.chosen_epoch != s.epochs else ""
    learned = f"{s.epochs} epochs on {s.images} images of {', '.join(s.collections)}{held_back}{chosen}"
    return s, f"{s.model}: {learned}, loss {s.loss.total:.4f}, map: {s.map}"


def run_import_checkpoint(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.import_checkpoint import import_checkpoint

    s = import_checkpoint(
        arguments.file, arguments.backbone, arguments.image_size, arguments.feature_layers, arguments.dpam_layers,
        arguments.map_definition, store=arguments.store,
    )  # fmt: skip
    names = sorted({name.partition(".")[0] for name in s.ignored})
    ignored = f"; ignored {len(s.ignored)} tensors that AnomalyCLIP never uses ({', '.join(names)})" if names else ""
    return s, f"{s.model}: prompts of {arguments.file} on {arguments.backbone}, map: {s.map}{ignored}"


def run_score(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.score import ShardsFailed, score

    try:
        s = score(
            arguments.collection, arguments.model, arguments.workers, arguments.shard_size, arguments.precision,
            arguments.runner, arguments.worker_cpus, arguments.worker_gpus, store=arguments.store,
        )  # fmt: skip
    except ShardsFailed as failed:
        raise Refused(str(failed), failed.summary) from failed
    if not s.scored:
        return s, f"{s.collection}: nothing to score, {s.model} has a row for each of {s.images} versions of images"
    unreadable = "".join(f", {count} {kind}" for kind, count in s.unreadable.items())
    rate = f"{s.scored / s.seconds:.1f} images/s"
    before = f", {s.already_scored} were scored before" if s.already_scored else ""
    return s, f"{s.collection}: scored {s.scored} images in {s.seconds:.1f} s ({rate}){unreadable}{before}\n{s.scores}"


def run_evaluate(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.evaluate import evaluate

    s = evaluate(
        arguments.collection, arguments.model, arguments.baseline, arguments.backbone, store=arguments.store
    )  # fmt: skip
    rows = s.metrics if len(s.metrics) > 2 else s.metrics[:1]
    return s, "\n".join(
        [
            metric_tables([with_intervals(row) for row in rows], {"class_name": "class"}, WITH_INTERVALS),
            "[…] 95 % bootstrap intervals over the images; AUPRO by the published code (official) and with its usual",
            "integral up to a false positive rate of 0.3 (standard)",
            *undefined_lines(rows),
            *unscored_lines(s.metrics),
            f"{s.model} on {s.collection}, MLflow run {s.mlflow_run}",
        ]
    )


def with_intervals(row: Any) -> dict[str, Any]:
    cells = asdict(row)
    return cells | {m: f"{cells[m]:.3f} [{low:.3f}, {high:.3f}]" for m, (low, high) in row.intervals.items()}


def undefined_lines(rows: Sequence[Any]) -> list[str]:
    """A line a reason: which of the metrics shown are undefined for it, and in which classes."""
    found: dict[str, dict[str, list[str]]] = {}  # classes by their metrics by reason
    for row in rows:
        for reason in dict.fromkeys(row.undefined.values()):
            metrics = ", ".join(
                METRIC_HEADS[m] for m, why in row.undefined.items() if why == reason and m in METRIC_HEADS
            )
            found.setdefault(reason, {}).setdefault(metrics, []).append(row.class_name)
    return [
        f"– {reason}: " + "; ".join(f"{metrics} of {', '.join(names)}" for metrics, names in metrics_of.items())
        for reason, metrics_of in found.items()
    ]


def unscored_lines(metrics: Sequence[Any]) -> list[str]:
    """A line where labelled images take no part; metrics: by class, the mean last."""
    *classes, mean = metrics
    if not mean.unscored:
        return []
    by_class = ", ".join(f"{row.class_name} {row.unscored}" for row in classes if row.unscored)
    total = mean.images + mean.unscored
    return [f"– unscored, because they cannot be read: {mean.unscored} of {total} labelled images ({by_class})"]


def run_compare(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.compare import compare

    s = compare([arguments.run_id, *arguments.others], store=arguments.store)
    names = {"class_name": "class", "run_id": "run"}
    return s, "\n".join(
        [
            f"{s.collection}, {s.images} images",
            metric_tables([asdict(row) for row in s.metrics], names | {"model": "model"}),
            "",
            *difference_lines(s, names),
        ]
    )


def difference_lines(summary: Any, names: dict[str, str]) -> list[str]:
    """Tables of those metrics that have differences, and why others have none."""
    moved: dict[tuple[str, ...], dict[str, Any]] = {}
    for d in summary.differences:
        row = {"class_name": d.class_name, "run_id": d.run_id} | dict.fromkeys(METRIC_HEADS)
        place: tuple[str, ...] = d.class_name, d.run_id
        if moved.get(place, row)[d.metric]:
            place = *place, "over classes"  # the mean, after a class of that name
        moved.setdefault(place, row)[d.metric] = str(d)
    shown = [heads for heads in WITH_INTERVALS if any(row[metric] for row in moved.values() for metric in heads)]
    lines = []
    if shown:
        first = summary.metrics[0].run_id
        lines.append(f"differences to run {first}, with 95 % intervals of a paired bootstrap over the images")
        lines.append("\n\n".join(as_table(list(moved.values()), names | heads) for heads in shown))
    if PIXEL_HEADS not in shown and any(row.pixel_auroc is not None for row in summary.metrics):
        lines.append(
            "no differences of pixel metrics: the runs did not draw the same images for them; evaluate both again"
        )
    return lines or ["there are no differences: no class has both normal and anomalous images, or masks"]


def run_promote(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.promote import promote

    s = promote(
        arguments.version, arguments.reference, arguments.metric, arguments.margin, arguments.force,
        store=arguments.store,
    )  # fmt: skip
    if not s.promoted:
        raise Refused(f"{s.model} is not promoted: {s.gate.reason}", s)
    instead = f", instead of version {s.gate.champion}" if s.gate.champion else ""
    overridden = "the gate is overridden: " if s.forced else ""
    return s, f"{s.model} is the champion now{instead}\n{overridden}{s.gate.reason}"


def run_rollback(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.rollback import rollback

    s = rollback(store=arguments.store)
    return s, f"{s.model} is the champion again{f', instead of {s.left}' if s.left else ''}"


def run_calibrate(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.calibrate import calibrate

    s = calibrate(
        arguments.collection, arguments.false_alarm_rate, arguments.model, arguments.nights, store=arguments.store
    )  # fmt: skip
    rows = [
        {"class_name": name, "images": found.images, "score": f"{found.score:.6f}", "pixel": f"{found.pixel:.6f}"}
        for name, found in s.classes.items()
    ]
    table = as_table(rows, {"class_name": "class", "images": "images", "score": "score above", "pixel": "map above"})
    left_out = "".join(f"\n{name}: {count} images are too few, no decisions" for name, count in s.too_small.items())
    after = f"counts for what is ingested into {s.collection} from now on"
    return s, f"{table}{left_out}\nfalse-alarm rate {s.false_alarm_rate}, {after}\n{s.thresholds}"


def run_nightly(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.nightly import nightly

    state = nightly(
        arguments.source, arguments.collection, arguments.layout, arguments.workers, arguments.shard_size,
        arguments.precision, arguments.runner, arguments.worker_cpus, arguments.worker_gpus, store=arguments.store,
        return_state=True,
    )  # fmt: skip
    s: Any = state.result(raise_on_failure=False)
    if isinstance(s, BaseException):
        raise s
    heads = {"class_name": "class", "images": "images", "scored": "scored", "anomalous": "anomalous",
             "unreadable": "unreadable"}  # fmt: skip
    rows = [*map(asdict, s.classes), asdict(s) | {"class_name": "all", "unreadable": sum(s.unreadable.values())}]
    return s, f"{as_table(rows, heads)}\n{s.state}: {s.message} ({s.model}, {s.seconds:.1f} s)\n{s.report}"


def run_report(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.report import report

    s = report(arguments.collection, arguments.model, store=arguments.store)
    return s, s.report


def run_export(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.export import export

    s = export(arguments.collection, arguments.format, arguments.model, arguments.output, store=arguments.store)
    unreadable = f", {s.unreadable} unreadable" if s.unreadable else ""
    undecided = (
        f", {s.undecided} without a decision: nothing was calibrated when they were scored" if s.undecided else ""
    )
    counts = f"{s.images} images, {s.anomalous} anomalous, {s.regions} regions{unreadable}{undecided}"
    return s, f"{s.collection}: {counts}\n{s.output}"


def run_reproduce(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.reproduce import reproduce

    s = reproduce(
        arguments.root, arguments.sets, dict(arguments.checkpoint), arguments.backbone, arguments.epochs,
        arguments.image_size, arguments.feature_layers, arguments.dpam_layers, arguments.map_definition,
        store=arguments.store,
    )  # fmt: skip
    heads = {"data_set": "data set", "auxiliary": "trained on", "images": "images"}
    by_class = [
        f"\n{row.data_set} by class, beside the authors' released checkpoint\n"
        f"{reproduced_table(row.classes, {'class_name': 'class', 'images': 'images'})}\n"
        for row in s.sets
        if row.classes
    ]
    left_out = [f"left out, for want of the set that its model is trained on: {name}" for name in s.left_out]
    left_out += [f"not recognised: {name}" for name in s.not_recognised]
    unscored = [f"unscored, because they cannot be read: {r.unscored} of {r.data_set}" for r in s.sets if r.unscored]
    note = f"in percent: the paper's number, ours, the difference; AUPRO is the {s.aupro_definition} definition"
    return s, "\n".join([reproduced_table(s.sets, heads), *by_class, note, *unscored, *left_out])


def reproduced_table(rows: Sequence[Any], heads: dict[str, str]) -> str:
    """After the columns of the heads, the published number, ours and the difference of each metric."""
    cells = [reproduced_row(row, heads) for row in rows]
    for metric in rows[0].paper:
        heads = heads | {f"paper {metric}": METRIC_HEADS[metric], f"ours {metric}": "ours", f"difference {metric}": "±"}
    return as_table(cells, heads)


def reproduced_row(row: Any, names: Iterable[str]) -> dict[str, Any]:
    cells = {name: getattr(row, name) for name in names}
    for kind, digits in (("paper", ".1f"), ("ours", ".1f"), ("difference", "+.1f")):
        cells |= {f"{kind} {m}": None if v is None else format(v, digits) for m, v in getattr(row, kind).items()}
    return cells


def metric_tables(
    rows: list[dict[str, Any]],
    names: dict[str, str],
    groups: Sequence[dict[str, str]] = (IMAGE_HEADS, PIXEL_HEADS | AUPRO_HEADS),
) -> str:
    """The image metrics and below them, where any is defined, the pixel metrics: side by side they are too wide."""
    first, *others = groups
    defined = [heads for heads in others if any(row[name] is not None for row in rows for name in heads)]
    tables = [
        as_table(rows, names | {"images": "images"} | first),
        *(as_table(rows, names | heads) for heads in defined),
    ]
    return "\n\n".join(tables)


def as_table(rows: list[dict[str, Any]], heads: dict[str, str]) -> str:
    """Aligned columns; undefined values are a dash."""
    cells = [list(heads.values())] + [[as_cell(row[name]) for name in heads] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def as_cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return "".join(c if c.isprintable() else "\ufffd" for c in str(value))  # names of folders reach a terminal here


def mlflow_ui(store: str) -> str:
    """How to look at the experiment: MLflow opens on its traces, the runs have an address of their own."""
    from tasks.registry import EXPERIMENT, pages_of, use_tracking

    experiment = use_tracking(Store(store)).get_experiment_by_name(EXPERIMENT)
    uri = os.environ["MLFLOW_TRACKING_URI"]
    assert experiment, "use_tracking has made it"
    server = pages_of(uri)
    page = f"{server or 'http://127.0.0.1:5000/#'}/experiments/{experiment.experiment_id}/runs"
    shown = uri if uri.startswith("sqlite:") else '"$MLFLOW_TRACKING_URI"'  # another database's may have its password
    return page if server else f"mlflow ui --backend-store-uri {shown}   then {page}"
