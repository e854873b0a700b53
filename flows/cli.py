"""The command `anomalyclip`: a thin layer of arguments over the flows.

Results go to standard output (a table, or one JSON object with --json), progress and logs to standard error.
Exit 0: done; 2: wrong use or unusable input, in one sentence; 1: it failed; 130: stopped by Ctrl-C.
"""

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows import parameters
from flows.parameters import help_of
from tasks.errors import InputError
from tasks.layout_names import LAYOUT_NAMES
from tasks.store import CACHE, Store, default_store

Handler = Callable[[argparse.Namespace], tuple[Any, str]]  # the summary, and what a person reads of it
METRIC_HEADS = {
    "class_name": "class", "images": "images", "image_auroc": "image AUROC", "image_ap": "AP", "image_f1_max": "F1-max",
    "pixel_auroc": "pixel AUROC", "aupro": "AUPRO (official)", "aupro_standard": "AUPRO (standard)",
}  # fmt: skip
GATE = """The gate passes
where the lower end of the 95 % interval of the difference, from a bootstrap paired by image on the newest state of the
reference that both versions have evaluated, is not below -MARGIN: that the version is not worse has to be shown. A gate
that refuses ends with exit code 1, a comparison that cannot be made with 2."""


class Refused(Exception):
    """What was asked for is not done, in one sentence; --json still prints the summary. Exit code 1."""

    def __init__(self, sentence: str, summary: Any) -> None:
        super().__init__(sentence)
        self.summary = summary


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    prepare_environment(arguments.store)
    silence_input_errors()
    try:
        summary, text = arguments.run(arguments)
    except InputError as error:
        print(f"anomalyclip: {error}", file=sys.stderr)
        return 2
    except Refused as refused:
        print(f"anomalyclip: {refused}", file=sys.stderr)
        if arguments.json:
            print(as_json(refused.summary))
        return 1
    except KeyboardInterrupt:
        print("anomalyclip: stopped; what is committed stays, run the same command to go on", file=sys.stderr)
        return 130
    except Exception as error:
        logging.getLogger("anomalyclip").debug("", exc_info=True)
        print(f"anomalyclip: {arguments.command} failed: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(as_json(summary) if arguments.json else text)
    return 1 if getattr(summary, "failed", None) else 0


def as_json(summary: Any) -> str:
    return json.dumps(asdict(summary), ensure_ascii=False)


# --- environment ------------------------------------------------------------------------------------------------------


def prepare_environment(store: str) -> None:
    """Before Prefect, MLflow and torch are imported: all local under the store where nothing else is configured."""
    home = Store(store).local_root or CACHE
    defaults = {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_LOGGING_LEVEL": "INFO" if "PREFECT_API_URL" in os.environ else "ERROR",  # a server shows it in its UI
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads slow the decoding ones
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" not in os.environ:
        Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)  # its database fails without the folder
    warnings.filterwarnings("ignore", message="The specified dataset source can be interpreted in multiple ways")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def silence_input_errors() -> None:
    """Prefect logs the traceback of every exception; ours for the user are said once, in one sentence."""

    def is_about_us(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not (isinstance(error, InputError) or "InputError" in record.getMessage())

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(is_about_us)


# --- commands ---------------------------------------------------------------------------------------------------------


def run_demo(arguments: argparse.Namespace) -> tuple[Any, str]:
    try:
        from flows.demo import demo
    except ModuleNotFoundError as error:
        raise InputError(f"the demo needs {error.name!r}: pip install 'anomalyclip-batch[demo]'") from error

    summary = demo(arguments.images, arguments.cells, arguments.epochs, store=arguments.store)
    rows = [{"collection": name} | asdict(table[-1]) for name, table in summary.metrics.items()]
    heads = {"collection": "collection"} | {name: head for name, head in METRIC_HEADS.items() if name != "class_name"}
    seconds = "  ".join(f"{step} {value:.1f} s" for step, value in summary.seconds.items())
    return summary, "\n".join(
        [
            "",
            as_table(rows, heads),
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

    s = ingest(arguments.source, arguments.collection, arguments.layout, arguments.probe, store=arguments.store)
    counts = f"{s.listed} images listed: {s.new} new, {s.changed} changed, {s.unchanged} unchanged, {s.deleted} deleted"
    unreadable = f"; {s.unreadable} cannot be read" if s.unreadable else ""
    return s, f"{s.collection}: {counts}{unreadable}; {s.labelled} labelled (manifest {s.digest})"


def run_train(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.train import train

    s = train(
        arguments.collection, arguments.backbone, arguments.epochs, arguments.lr, arguments.seed,
        arguments.validation_share, arguments.patience,
        arguments.image_size, arguments.feature_layers, arguments.dpam_layers, store=arguments.store,
    )  # fmt: skip
    return s, f"{s.model}: {s.loss.epoch} epochs on {', '.join(s.collections)}, loss {s.loss.total:.4f}"


def run_import_checkpoint(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.import_checkpoint import import_checkpoint

    s = import_checkpoint(
        arguments.file, arguments.backbone, arguments.image_size, arguments.feature_layers, arguments.dpam_layers,
        store=arguments.store,
    )  # fmt: skip
    names = sorted({name.partition(".")[0] for name in s.ignored})
    ignored = f"; ignored {len(s.ignored)} tensors that AnomalyCLIP never uses ({', '.join(names)})" if names else ""
    return s, f"{s.model}: prompts of {arguments.file} on {arguments.backbone}{ignored}"


def run_score(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.score import score

    s = score(
        arguments.collection, arguments.model, arguments.workers, arguments.shard_size, arguments.precision,
        arguments.runner, arguments.worker_cpus, arguments.worker_gpus, store=arguments.store,
    )  # fmt: skip
    if not s.scored:
        return s, f"{s.collection}: nothing to score, {s.model} has scored all {s.images} images"
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
            as_table([with_intervals(row) for row in rows], METRIC_HEADS),
            "[…] 95 % bootstrap intervals over the images, pixel metrics have none; AUPRO by the published code (official)",
            "and with its usual integral up to a false positive rate of 0.3 (standard)",
            *undefined_lines(rows),
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


def run_compare(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.compare import compare

    s = compare([arguments.run_id, *arguments.others], store=arguments.store)
    heads = {"class_name": "class", "run_id": "run", "model": "model"} | METRIC_HEADS
    moved: dict[tuple[str, str], dict[str, Any]] = {}
    for d in s.differences:
        row = moved.setdefault((d.class_name, d.run_id), {"class_name": d.class_name, "run_id": d.run_id})
        row[d.metric] = str(d)
    moved_heads = {name: heads[name] for name in ("class_name", "run_id", "image_auroc", "image_ap", "image_f1_max")}
    note = f"differences to run {s.metrics[0].run_id}, with 95 % intervals of a paired bootstrap over the images"
    return s, "\n".join(
        [
            f"{s.collection}, {s.images} images",
            as_table([asdict(row) for row in s.metrics], heads),
            "",
            note
            if moved
            else "no class has both normal and anomalous images: there are no differences of image metrics",
            *([as_table(list(moved.values()), moved_heads)] if moved else []),
        ]
    )


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
    return s, f"{s.model} is the champion again, instead of {s.left}"


def run_calibrate(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.calibrate import calibrate

    s = calibrate(arguments.collection, arguments.false_alarm_rate, arguments.model, store=arguments.store)
    rows = [{"class_name": name} | asdict(found) for name, found in s.classes.items()]
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


def run_reproduce(arguments: argparse.Namespace) -> tuple[Any, str]:
    from flows.reproduce import reproduce

    s = reproduce(
        arguments.root, arguments.sets, dict(arguments.checkpoint), arguments.backbone, arguments.epochs,
        arguments.image_size, arguments.feature_layers, arguments.dpam_layers, store=arguments.store,
    )  # fmt: skip
    heads = {"data_set": "data set", "auxiliary": "trained on", "images": "images"}
    for metric in s.sets[0].paper:
        heads |= {f"paper {metric}": METRIC_HEADS[metric], f"ours {metric}": "ours", f"difference {metric}": "±"}
    left_out = [f"left out, for want of the set that its model is trained on: {name}" for name in s.left_out]
    note = f"in percent: the paper's number, ours, the difference; AUPRO is the {s.aupro_definition} definition"
    return s, "\n".join([as_table([reproduced_row(row) for row in s.sets], heads), note, *left_out])


def reproduced_row(row: Any) -> dict[str, Any]:
    cells: dict[str, Any] = {"data_set": row.data_set, "auxiliary": row.auxiliary, "images": row.images}
    for kind, digits in (("paper", ".1f"), ("ours", ".1f"), ("difference", "+.1f")):
        cells |= {f"{kind} {m}": None if v is None else format(v, digits) for m, v in getattr(row, kind).items()}
    return cells


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
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def mlflow_ui(store: str) -> str:
    """How to look at the experiment: MLflow opens on its traces, the runs have an address of their own."""
    from tasks.registry import EXPERIMENT, use_tracking

    experiment = use_tracking(Store(store)).get_experiment_by_name(EXPERIMENT)
    uri = os.environ["MLFLOW_TRACKING_URI"]
    assert experiment, "use_tracking has made it"
    page = f"http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs"
    return f"mlflow ui --backend-store-uri {uri}   then {page}"


# --- arguments --------------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="anomalyclip", description="Zero-shot anomaly detection over image collections, with AnomalyCLIP."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Handler, summary: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=summary, description=summary, epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(run=run)
        sub.add_argument("--store", default=default_store(), metavar="URI",
                         help="folder or bucket with everything (default: $ANOMALYCLIP_STORE, else ./store)")  # fmt: skip
        sub.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        return sub

    demo = command("demo", run_demo, "The whole story on the embedded backbone, offline.", "anomalyclip demo")
    demo.add_argument("--images", type=positive, default=60, help="images of each generated family (default: 60)")
    demo.add_argument("--cells", type=positive, default=150, help="solar cells of each label (default: 150)")
    demo.add_argument("--epochs", type=positive, default=15, help="epochs of training (default: 15)")

    ingest = command("ingest", run_ingest, "List a source and write what is new or changed to a manifest.",
                     "anomalyclip ingest s3://line-4/2026-11-24 --collection line-4")  # fmt: skip
    add_source(ingest)
    add_collection(ingest)
    ingest.add_argument("--probe", action="store_true", help=help_of(parameters.Probe))

    train = command("train", run_train, "Train prompts on labelled collections and register a model version.",
                    "anomalyclip train --collection mvtec --backbone ViT-L-14-336-quickgelu:openai")  # fmt: skip
    train.add_argument("--collection", action="append", required=True, metavar="NAME", help="repeat for more than one")
    train.add_argument("--backbone", default="embedded", metavar="SPEC",
                       help=f"{help_of(parameters.Backbone)} (default: embedded)")  # fmt: skip
    train.add_argument("--epochs", type=positive, default=15, help=help_of(parameters.Epochs))
    train.add_argument("--lr", type=float, default=1e-3, help=help_of(parameters.LearningRate))
    train.add_argument("--seed", type=int, default=111, help=f"{help_of(parameters.Seed)} (default: 111)")
    train.add_argument("--validation-share", type=float, default=0.0, help=help_of(parameters.ValidationShare))
    train.add_argument("--patience", type=positive, default=0, help=f"{help_of(parameters.Patience)} (default: 0)")
    add_geometry(train)

    imported = command("import-checkpoint", run_import_checkpoint,
                       "Register prompts that were trained by the authors' published code.",
                       "anomalyclip import-checkpoint epoch_15.pth --backbone ViT-L-14-336-quickgelu:openai")  # fmt: skip
    imported.add_argument("file", metavar="FILE.pth", help="a checkpoint of the published code")
    imported.add_argument("--backbone", default="ViT-L-14-336-quickgelu:openai", metavar="SPEC",
                          help="what it was trained on (default: ViT-L-14-336-quickgelu:openai)")  # fmt: skip
    add_geometry(imported)

    score = command("score", run_score, "Score what this model has not scored yet.",
                    "anomalyclip score --collection line-4 --model models:/anomalyclip@champion")  # fmt: skip
    add_collection(score)
    add_model(score)
    add_scoring(score)

    evaluate = command("evaluate", run_evaluate, "Metrics against labels and masks, into MLflow.",
                       "anomalyclip evaluate --collection cookies")  # fmt: skip
    add_collection(evaluate)
    evaluated = evaluate.add_mutually_exclusive_group()
    add_model(evaluated)
    evaluated.add_argument("--baseline", choices=("clip", "clip-ac", "winclip"),
                           help=help_of(parameters.BaselineName))  # fmt: skip
    evaluate.add_argument("--backbone", metavar="SPEC", help=help_of(parameters.BaselineBackbone))

    compare = command("compare", run_compare, "Evaluation runs on one collection side by side, with their differences.",
                      "anomalyclip compare 3f2a91c0 8bd4e7f1")  # fmt: skip
    compare.add_argument("run_id", metavar="RUN", help="MLflow run of an evaluation: its id, or how that begins")
    compare.add_argument("others", metavar="RUN", nargs="+", help="runs that are compared with the first")

    promote = command("promote", run_promote, "Make a version the champion if it is not worse than the present one.",
                      "anomalyclip promote 3 --reference cookies")  # fmt: skip
    promote.description = f"{promote.description} {GATE}"
    promote.add_argument("version", metavar="VERSION", help="number of the version, or its models:/ URI")
    promote.add_argument("--reference", metavar="COLLECTION",
                         help="collection that both have evaluated (default: that of the last promotion)")  # fmt: skip
    promote.add_argument("--metric", choices=("image_auroc", "image_ap", "image_f1_max"), default="image_auroc",
                         help="what is compared, as the mean over classes (default: image_auroc)")  # fmt: skip
    promote.add_argument("--margin", type=float, default=0.01, help="how much worse is still let pass (default: 0.01)")
    promote.add_argument("--force", action="store_true",
                         help="promote in any case; who overrode the gate is written to the version's tags")  # fmt: skip

    command("rollback", run_rollback, "Make the version that was champion before the champion again.",
            "anomalyclip rollback")  # fmt: skip

    calibrate = command("calibrate", run_calibrate, "Set thresholds from the scores of an unlabelled reference.",
                        "anomalyclip calibrate --collection line-4 --false-alarm-rate 0.01")  # fmt: skip
    add_collection(calibrate)
    calibrate.add_argument("--false-alarm-rate", type=float, default=0.01, metavar="RATE",
                           help="share of normal images that may raise an alarm (default: 0.01)")  # fmt: skip
    add_model(calibrate)

    nightly = command("nightly", run_nightly, "Ingest, score with the champion, decide, report: what the schedule runs.",
                      "anomalyclip nightly s3://line-4/images --collection line-4")  # fmt: skip
    add_source(nightly)
    add_collection(nightly)
    add_scoring(nightly)

    report = command("report", run_report, "Write the HTML page of a scored collection.",
                     "anomalyclip report --collection line-4")  # fmt: skip
    add_collection(report)
    add_model(report)

    reproduce = command("reproduce", run_reproduce, "The paper's protocol over the data sets at hand, beside its numbers.",
                        "anomalyclip reproduce --root ~/data --sets mvtec,visa,btad")  # fmt: skip
    reproduce.add_argument("--root", required=True, metavar="DIR",
                           help="a folder or URI with a folder a data set, named as its layout: mvtec, visa, …")  # fmt: skip
    reproduce.add_argument("--sets", type=lambda names: names.replace(" ", "").split(","), metavar="SET,…",
                           help="which to evaluate, by their layouts (default: all at hand)")  # fmt: skip
    reproduce.add_argument("--checkpoint", type=checkpoint, action="append", default=[], metavar="SET=FILE.pth",
                           help="import prompts trained on SET (mvtec or visa) instead of training; repeatable")  # fmt: skip
    reproduce.add_argument("--backbone", default="ViT-L-14-336-quickgelu:openai", metavar="SPEC",
                           help="default: ViT-L-14-336-quickgelu:openai, the paper's")  # fmt: skip
    reproduce.add_argument("--epochs", type=positive, default=15, help="default: 15, as published")
    add_geometry(reproduce)
    return parser


def add_collection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--collection", required=True, metavar="NAME", help=help_of(parameters.CollectionName))


def add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help=help_of(parameters.Source))
    parser.add_argument("--layout", default="flat", choices=LAYOUT_NAMES, metavar="LAYOUT",
                        help=f"{help_of(parameters.LayoutName)} (default: flat): {', '.join(LAYOUT_NAMES)}")  # fmt: skip


def add_scoring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runner",
        choices=("threads", "ray"),
        default="threads",
        help=f"{help_of(parameters.Runner)} (default: threads)",
    )
    parser.add_argument("--worker-cpus", type=float, default=1.0, help=f"{help_of(parameters.WorkerCpus)} (default: 1)")
    parser.add_argument("--worker-gpus", type=float, help=help_of(parameters.WorkerGpus))
    parser.add_argument("--workers", type=positive, default=1, help=f"{help_of(parameters.Workers)} (default: 1)")
    parser.add_argument(
        "--shard-size", type=positive, default=256, help=f"{help_of(parameters.ShardSize)} (default: 256)"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help=help_of(parameters.Precision)
    )


def add_geometry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image-size", type=positive, help=help_of(parameters.ImageSize))
    parser.add_argument(
        "--feature-layers", type=positive, nargs="+", metavar="L", help=help_of(parameters.FeatureLayers)
    )
    parser.add_argument("--dpam-layers", type=int, help=help_of(parameters.DpamLayers))


def checkpoint(value: str) -> tuple[str, str]:
    """SET=FILE of `reproduce`."""
    name, separator, file = value.partition("=")
    if not (separator and name and file):
        raise argparse.ArgumentTypeError(f"{value!r} is not of the form SET=FILE.pth")
    return name, file


def add_model(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--model", default="models:/anomalyclip@champion", metavar="URI",
                        help=f"{help_of(parameters.Model)} (default: champion)")  # fmt: skip


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


if __name__ == "__main__":
    sys.exit(main())
