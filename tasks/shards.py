"""Shards: how a collection is cut into them, which are done, and that all are of one model and one precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import InputError
from tasks.manifest import FACTS_PART, list_parts, manifest_folder
from tasks.registry import ModelVersion
from tasks.store import Store
from tasks.tables import count_rows_of, read_parquet

SHARD_SIZE = 256
PRECISION = "precision.txt"


@dataclass(frozen=True)
class Shard:
    """Rows start..stop of one manifest part, under a name that orders the parts of scores."""

    manifest_part: str
    size: int
    index: int
    rows: int  # in the whole manifest part

    @property
    def name(self) -> str:
        return f"{part_key(self.manifest_part)}-{self.size}-{self.index:05d}"

    @property
    def part_number(self) -> int:
        return part_number(self.manifest_part)

    @property
    def length(self) -> int:
        return min(self.size, self.rows - self.index * self.size)


@dataclass(frozen=True)
class ScoredShard:
    """What scoring a shard came to: images, of which unreadable by kind, and by decision those that have one."""

    name: str
    images: int
    unreadable: dict[str, int]
    decisions: dict[str, int]


@dataclass(frozen=True)
class ShardFailure:
    """A shard that could not be scored in this run, and why."""

    name: str
    reason: str


def part_key(manifest_part: str) -> str:
    return manifest_part.rpartition("part-")[2].removesuffix(".parquet")


def part_name(shard: Shard) -> str:
    return f"part-{shard.name}.parquet"


def part_number(name: str) -> int:
    """Of a manifest part, in the order in which they were written; scores and maps have it in their names, too."""
    return int(part_key(name).partition("-")[0])


def later_parts(store: Store, folder: tuple[str, ...], first_part: int) -> list[str]:
    """Parts of scores or maps of the manifest parts from this number on."""
    return [name for name in store.find(*folder, suffix=".parquet") if part_number(name) >= first_part]


def model_folder(collection: str, partition: str, kind: str = "scores") -> tuple[str, ...]:
    """Where one model's scores, maps, masks, plans, thresholds or exports of a collection lie; partition: `name.vN`."""
    return "collections", collection, kind, f"model={partition}"


# --- planning ---------------------------------------------------------------------------------------------------------


def plan_shards(
    store: Store, collection: str, partition: str, size: int = SHARD_SIZE, parts: Sequence[str] | None = None
) -> tuple[list[Shard], list[Shard]]:
    """All shards of a collection, and those that this model (partition `name.vN`) has not scored.

    parts: those of the manifest's snapshot that is scored, all that there are where none are given.
    A manifest part whose shards were planned at another size keeps that size, so that shards never overlap.
    """
    done = set(store.find(*model_folder(collection, partition), suffix=".parquet"))
    sizes = {part_key(name).rsplit("-", 2)[0]: int(name.rsplit("-", 2)[1]) for name in done}
    parts = list_parts(store, collection) if parts is None else parts
    parts = [part for part in parts if not part.endswith(f"{FACTS_PART}.parquet")]
    shards = []
    for part, rows in zip(parts, count_rows_of(store, manifest_folder(collection), parts), strict=True):
        part_size = sizes.get(part_key(part)) or settle_size(store, collection, partition, part, size)
        shards += [Shard(part, part_size, i, rows) for i in range(-(-rows // part_size))]
    return shards, [shard for shard in shards if part_name(shard) not in done]


def settle_size(store: Store, collection: str, partition: str, part: str, size: int) -> int:
    """Of the shards of a manifest part: what the first run that plans them asks for, also of runs that begin together."""
    return int(settle(store, collection, partition, f"{part_key(part)}.txt", str(size)))


def settle(store: Store, collection: str, partition: str, name: str, value: str) -> str:
    """The value that the first of all runs had for it."""
    plan = plan_path(collection, partition, name)
    return value if store.create(value.encode(), *plan) else store.read(*plan).decode()


def plan_path(collection: str, partition: str, name: str) -> tuple[str, ...]:
    return *model_folder(collection, partition, "plans"), name


@lru_cache(maxsize=64)
def first_precision(store: str, collection: str, partition: str, precision: str) -> str:
    """Of the first shard that any run finished; asked once a process."""
    return settle(Store(store), collection, partition, PRECISION, precision)


def not_committed(store: Store, collection: str, partition: str, shards: list[Shard]) -> list[Shard]:
    """Those of the shards that have no part of scores by now."""
    done = set(store.find(*model_folder(collection, partition), suffix=".parquet"))
    return [shard for shard in shards if part_name(shard) not in done]


class OtherScores(InputError):
    """The scores that are there would not go with ours."""


def check_done(
    store: Store, collection: str, model: ModelVersion, precision: str, shards: list[Shard], pending: list[Shard]
) -> None:
    """Raises OtherScores where the shards that are done were scored by another bundle or in another precision.

    Another bundle has the version's number where a registry began anew beside the scores. Parts that do not name their
    precision are fp32.
    """
    waiting = set(pending)
    done = next((shard for shard in shards if shard not in waiting), None)
    if done is None:
        check_plan(store, collection, model.partition, precision)
        return
    part = read_parquet(store, *model_folder(collection, model.partition), part_name(done), columns=["bundle_digest"])
    check_bundle(collection, model, part["bundle_digest"])
    before = (part.schema.metadata or {}).get(b"precision", b"fp32").decode()
    check_precision(collection, model.partition, before, precision)


def check_plan(store: Store, collection: str, partition: str, precision: str) -> None:
    """Raises OtherScores where no shard is done, but a run in another precision is about to commit its first."""
    path = plan_path(collection, partition, PRECISION)
    if store.exists(*path) and (before := store.read(*path).decode()) != precision:
        raise OtherScores(
            f"{partition} is to score {collection!r} in {before}, says {store.uri_of(*path)}: score in {before}, or delete "
            f"that file where no run is under way, and score in {precision}"
        )


def check_bundle(collection: str, model: ModelVersion, digests: pa.ChunkedArray) -> None:
    """Raises OtherScores unless all rows of scores, of these bundle digests, are of this model."""
    if pc.any(pc.not_equal(digests, model.digest)).as_py():
        raise OtherScores(
            f"the scores of {collection!r} below model={model.partition} are of another model of that name, from another "
            "registry: register this one under a further version, or ingest into a collection of another name"
        )


def check_precision(collection: str, partition: str, before: str, precision: str) -> None:
    if before != precision:
        raise OtherScores(
            f"{partition} has scored {collection!r} in {before}, its scores in {precision} would mix with those: "
            f"score in {before}, or ingest into a collection of another name"
        )
