"""The arguments of the command `anomalyclip`; the help of what a flow takes is that of flows.parameters."""

import argparse
from collections.abc import Callable
from typing import Any

from flows import commands, parameters
from flows.parameters import choices_of, help_of
from tasks.store import default_store

Handler = Callable[[argparse.Namespace], tuple[Any, str]]  # the summary, and what a person reads of it
Command = Callable[[str, Handler, str, str], argparse.ArgumentParser]
GATE = """The gate passes
where the lower end of the 95 % interval of the difference, from a bootstrap paired by image on the newest state of the
reference that both versions have evaluated, is not below -MARGIN: that the version is not worse has to be shown. A
reference without normal images is judged by a pixel metric. A gate that refuses ends with exit code 1, a comparison
that cannot be made with 2."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="anomalyclip", description="Zero-shot anomaly detection over image collections, with AnomalyCLIP."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Handler, summary: str, example: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            name, help=summary, description=summary, epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(run=run)
        sub.add_argument("--store", default=default_store(), metavar="URI",
                         help="folder or bucket with everything (default: $ANOMALYCLIP_STORE, else ./store)")  # fmt: skip
        sub.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        return sub

    for add_commands in (add_demo_and_learning, add_scoring_and_judging, add_promotion, add_nights, add_reproduce):
        add_commands(command)
    return parser


def add_demo_and_learning(command: Command) -> None:
    demo = command("demo", commands.run_demo, "The whole story on the embedded backbone, offline.", "anomalyclip demo")
    demo.add_argument("--images", type=positive, default=60, help="images of each generated family (default: 60)")
    demo.add_argument("--cells", type=positive, default=150, help="solar cells of each label (default: 150)")
    demo.add_argument("--epochs", type=positive, default=15, help="epochs of training (default: 15)")

    ingest = command("ingest", commands.run_ingest, "List a source and write what is new or changed to a manifest.",
                     "anomalyclip ingest s3://line-4/2026-11-24 --collection line-4")  # fmt: skip
    add_source(ingest)
    add_collection(ingest)
    ingest.add_argument("--probe", action="store_true", help=help_of(parameters.Probe))
    ingest.add_argument("--split", metavar="NAME", help=help_of(parameters.Split))

    train = command("train", commands.run_train, "Train prompts on labelled collections and register a model version.",
                    "anomalyclip train --collection mvtec --backbone ViT-L-14-336-quickgelu:openai")  # fmt: skip
    train.add_argument("--collection", action="extend", nargs="+", required=True, metavar="NAME", help="one or more")
    train.add_argument("--backbone", default="embedded", metavar="SPEC",
                       help=f"{help_of(parameters.Backbone)} (default: embedded)")  # fmt: skip
    train.add_argument("--epochs", type=positive, default=15, help=f"{help_of(parameters.Epochs)} (default: 15)")
    train.add_argument("--lr", type=float, default=1e-3, help=f"{help_of(parameters.LearningRate)} (default: 0.001)")
    train.add_argument("--seed", type=int, default=111, help=f"{help_of(parameters.Seed)} (default: 111)")
    train.add_argument("--validation-share", type=float, default=0.0, help=help_of(parameters.ValidationShare))
    train.add_argument("--patience", type=int, default=0, help=f"{help_of(parameters.Patience)} (default: 0)")
    add_geometry(train)

    imported = command("import-checkpoint", commands.run_import_checkpoint,
                       "Register prompts that were trained by the authors' published code.",
                       "anomalyclip import-checkpoint epoch_15.pth --backbone ViT-L-14-336-quickgelu:openai")  # fmt: skip
    imported.add_argument("file", metavar="FILE.pth", help="a checkpoint of the published code")
    imported.add_argument("--backbone", default="ViT-L-14-336-quickgelu:openai", metavar="SPEC",
                          help="what it was trained on (default: ViT-L-14-336-quickgelu:openai)")  # fmt: skip
    add_geometry(imported)


def add_scoring_and_judging(command: Command) -> None:
    score = command("score", commands.run_score, "Score what this model has not scored yet.",
                    "anomalyclip score --collection line-4 --model models:/anomalyclip@champion")  # fmt: skip
    add_collection(score)
    add_model(score)
    add_scoring(score)

    evaluate = command("evaluate", commands.run_evaluate, "Metrics against labels and masks, into MLflow.",
                       "anomalyclip evaluate --collection cookies")  # fmt: skip
    add_collection(evaluate)
    evaluated = evaluate.add_mutually_exclusive_group()
    add_model(evaluated)
    evaluated.add_argument("--baseline", choices=choices_of(parameters.BaselineName),
                           help=help_of(parameters.BaselineName))  # fmt: skip
    evaluate.add_argument("--backbone", metavar="SPEC", help=help_of(parameters.BaselineBackbone))

    compare = command("compare", commands.run_compare,
                      "Evaluation runs on one collection side by side, with their differences.",
                      "anomalyclip compare 3f2a91c0 8bd4e7f1")  # fmt: skip
    compare.add_argument("run_id", metavar="RUN", help="MLflow run of an evaluation: its id, or how that begins")
    compare.add_argument("others", metavar="RUN", nargs="+", help="runs that are compared with the first")


def add_promotion(command: Command) -> None:
    promote = command("promote", commands.run_promote,
                      "Make a version the champion if it is not worse than the present one.",
                      "anomalyclip promote 3 --reference cookies")  # fmt: skip
    promote.description = f"{promote.description} {GATE}"
    promote.add_argument("version", metavar="VERSION", help="number of the version, or its models:/ URI")
    promote.add_argument("--reference", metavar="COLLECTION",
                         help="collection that both have evaluated (default: that of the last promotion)")  # fmt: skip
    promote.add_argument("--metric", choices=tuple(commands.METRIC_HEADS), default="image_auroc",
                         help="what is compared, as the mean over classes (default: image_auroc)")  # fmt: skip
    promote.add_argument("--margin", type=float, default=0.01, help="how much worse is still let pass (default: 0.01)")
    promote.add_argument("--force", action="store_true",
                         help="promote in any case; who overrode the gate is written to the version's tags")  # fmt: skip

    command("rollback", commands.run_rollback, "Make the version that was champion before the champion again.",
            "anomalyclip rollback")  # fmt: skip


def add_nights(command: Command) -> None:
    calibrate = command("calibrate", commands.run_calibrate,
                        "Set thresholds from the scores of an unlabelled reference.",
                        "anomalyclip calibrate --collection line-4 --false-alarm-rate 0.01 --nights 7")  # fmt: skip
    add_collection(calibrate)
    calibrate.add_argument("--false-alarm-rate", type=float, default=0.01, metavar="RATE",
                           help=f"{help_of(parameters.FalseAlarmRate)} (default: 0.01)")  # fmt: skip
    calibrate.add_argument("--nights", type=positive, metavar="N", help=help_of(parameters.Nights))
    add_model(calibrate)

    nightly = command("nightly", commands.run_nightly,
                      "Ingest, score with the champion, decide, report: what the schedule runs.",
                      "anomalyclip nightly s3://line-4/images --collection line-4")  # fmt: skip
    add_source(nightly)
    add_collection(nightly)
    add_scoring(nightly)

    report = command("report", commands.run_report, "Write the HTML page of a scored collection.",
                     "anomalyclip report --collection line-4")  # fmt: skip
    add_collection(report)
    add_model(report)

    export = command("export", commands.run_export, "Write the decisions of a scored collection for other tools.",
                     "anomalyclip export --collection line-4 --format coco")  # fmt: skip
    add_collection(export)
    export.add_argument("--format", required=True, choices=choices_of(parameters.Format),
                        help=help_of(parameters.Format))  # fmt: skip
    add_model(export)
    export.add_argument("--output", metavar="URI", help=help_of(parameters.Output))


def add_reproduce(command: Command) -> None:
    reproduce = command("reproduce", commands.run_reproduce,
                        "The paper's protocol over the data sets at hand, beside its numbers.",
                        "anomalyclip reproduce --root ~/data --sets mvtec,visa,btad")  # fmt: skip
    reproduce.add_argument("--root", required=True, metavar="DIR",
                           help="folder or URI with a folder a set: mvtec, visa, … or the publisher's name")  # fmt: skip
    reproduce.add_argument("--sets", type=lambda names: names.replace(" ", "").split(","), metavar="SET,…",
                           help="which to evaluate, by their layouts (default: all at hand)")  # fmt: skip
    reproduce.add_argument("--checkpoint", type=checkpoint, action="append", default=[], metavar="SET=FILE.pth",
                           help="import prompts trained on SET (mvtec or visa) instead of training; repeatable")  # fmt: skip
    reproduce.add_argument("--backbone", default="ViT-L-14-336-quickgelu:openai", metavar="SPEC",
                           help="default: ViT-L-14-336-quickgelu:openai, the paper's")  # fmt: skip
    reproduce.add_argument("--epochs", type=positive, default=15, help="default: 15, as published")
    add_geometry(reproduce)


# --- arguments of several commands -------------------------------------------------------------------------------------


def add_collection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--collection", required=True, metavar="NAME", help=help_of(parameters.CollectionName))


def add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help=help_of(parameters.Source))
    layouts = choices_of(parameters.LayoutName)
    parser.add_argument("--layout", default="flat", choices=layouts, metavar="LAYOUT",
                        help=f"{help_of(parameters.LayoutName)} (default: flat): {', '.join(layouts)}")  # fmt: skip


def add_scoring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runner",
        choices=choices_of(parameters.Runner),
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
        "--precision",
        choices=choices_of(parameters.Precision),
        default="fp32",
        help=f"{help_of(parameters.Precision)} (default: fp32)",
    )


def add_geometry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image-size", type=positive, help=help_of(parameters.ImageSize))
    layers = parser.add_mutually_exclusive_group()
    layers.add_argument("--map", dest="map_definition", choices=choices_of(parameters.MapDefinition), default="last",
                        help=f"{help_of(parameters.MapDefinition)} (default: last)")  # fmt: skip
    layers.add_argument(
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
