"""The gate before promotion: a version must be shown to be no worse than the champion, on one reference collection.

Champion and candidate are compared on the newest state of the reference that both have evaluated. The metric, one of images
or of pixels, is the mean over its classes, the difference is the candidate's minus the champion's, and its 95 % interval is
that of a bootstrap that draws the same images for both. The gate passes where the lower end of the interval is not below
-margin.

This is a test of non-inferiority: the candidate bears the burden of proof. One that is truly worse by the margin passes
in about 2.5 % of cases (more with a few dozen images, for which percentile intervals are too narrow), and one that is as
good is refused where the images are too few to show it. That a difference is not significant proves nothing, and does
not let a version pass.
"""

from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.comparison import (
    Difference,
    check_same_images,
    differences,
    evaluations_of,
    read_evaluation,
    unpaired,
)
from tasks.errors import InputError
from tasks.evaluation import IMAGE_METRICS
from tasks.manifest import check_name
from tasks.registry import MODEL_NAME, ModelVersion, champion_version, resolve_model, use_tracking
from tasks.store import Store

REFERENCE = "reference"  # tag of the registered model: the collection of the last gate that a promotion went through


@dataclass(frozen=True)
class Gate:
    """What the gate found; reason: a sentence. Without a comparison (there was none to make) the rest is None."""

    passed: bool
    reason: str
    champion: str | None
    reference: str | None
    metric: str
    margin: float
    run: str | None = None
    champion_run: str | None = None
    difference: Difference | None = None


@task(name="gate", task_run_name="gate {candidate.version}", cache_policy=NO_CACHE)
def pass_gate(
    store: str, candidate: ModelVersion, reference: str | None, metric: str, margin: float, force: bool
) -> Gate:
    """Compare a version with the champion as the module says.

    Raises InputError where they cannot be compared; with force that too is a gate that is not passed.
    """
    client = use_tracking(Store(store))
    present = champion_version(client)
    champion = resolve_model(Store(store), f"models:/{MODEL_NAME}/{present}") if present else None
    if champion == candidate:
        raise InputError(f"{candidate.uri} is the champion already")
    try:
        return judge(client, candidate, champion, reference, metric, margin)
    except InputError as error:
        if not force:
            raise
        return Gate(
            False, f"nothing was compared: {error}", champion.version if champion else None, reference, metric, margin
        )


def judge(
    client: MlflowClient, candidate: ModelVersion, champion: ModelVersion | None, reference: str | None, metric: str,
    margin: float,
) -> Gate:  # fmt: skip
    reference = reference or client.get_registered_model(MODEL_NAME).tags.get(REFERENCE)
    if reference is None:
        raise InputError("name the collection to compare on: --reference COLLECTION (it is kept for later promotions)")
    runs = evaluated(client, candidate, check_name(reference))
    if champion is None:
        return Gate(
            True, "there is no champion", None, reference, metric, margin, next(iter(runs.values())).info.run_id
        )
    champion_runs = evaluated(client, champion, reference)
    state = next((state for state in runs if state in champion_runs), None)
    if state is None:
        raise InputError(
            f"{candidate.uri} and the champion {champion.uri} have evaluated different states of {reference!r}: "
            f"run {commands(candidate, reference)} && {commands(champion, reference)}"
        )
    first, other = read_evaluation(champion_runs[state]), read_evaluation(runs[state])
    check_same_images(first, other)
    found = [difference for difference in differences(first, other) if difference.metric == metric]
    if not found:
        raise InputError(f"there is nothing to compare: {nothing_compared(metric, reference)}")
    if left_out := unpaired(first, other, metric):
        raise InputError(
            f"{metric} of {', '.join(left_out)} cannot be compared: it is undefined in one of the evaluations "
            f"{first.run_id} and {other.run_id}, or masks have changed between them; evaluate both again, or compare by "
            "another metric"
        )
    passed = found[-1].low >= -margin
    reason = f"{metric} on {reference}: {found[-1]} against the champion, version {champion.version}; "
    reason += verdict(found[-1], margin)
    return Gate(
        passed, reason, champion.version, reference, metric, margin, other.run_id, first.run_id, found[-1]
    )  # fmt: skip


def nothing_compared(metric: str, reference: str) -> str:
    if metric in IMAGE_METRICS:
        return f"no class of {reference!r} has both normal and anomalous images"
    return f"no class of {reference!r} has {metric} in both evaluations, of the same images with masks; evaluate both again"


def verdict(found: Difference, margin: float) -> str:
    if found.low >= -margin:
        return f"it is not worse by more than {margin}"
    if found.high < -margin:
        return f"it is worse by more than {margin}"
    return f"so few images do not show that it is not worse by more than {margin}"


def evaluated(client: MlflowClient, model: ModelVersion, reference: str) -> dict[str, Run]:
    """The newest evaluation of each state of the reference, by the manifest's digest, the newest first."""
    newest: dict[str, Run] = {}
    for run in evaluations_of(client, model.uri, model.digest, reference):
        newest.setdefault(run.data.params["manifest_digest"], run)
    if not newest:
        raise InputError(f"{model.uri} has no evaluation on {reference!r}: run {commands(model, reference)}")
    return newest


def commands(model: ModelVersion, reference: str) -> str:
    steps = (f"anomalyclip {step} --collection {reference} --model {model.uri}" for step in ("score", "evaluate"))
    return " && ".join(steps)
