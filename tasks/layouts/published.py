"""Reading a published data set: where its images and masks lie, which belong together, and what tells the label."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from tasks.errors import InputError
from tasks.layouts.source import NORMAL_NAMES, Entry, Source, StoredObject, open_source

ROOT = r"(?P<root>(?:.+?/)??)"  # the set's own folder: the source, else some folder in it
MASK_SUFFIXES = ("_mask", "_label", "_gt", "_segmentation")  # behind the image's name, in any of the usual cases
NORMAL_STATES = NORMAL_NAMES | {"no"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """An image and the named groups of the pattern that found it."""

    object: StoredObject
    place: Mapping[str, str | None]


@dataclass(frozen=True)
class Truth:
    """What tells the label of an image may tell its split as well."""

    label: int
    split: str | None = None


Pair = tuple[Found, StoredObject | None]  # an image and the mask of its name
Labeller = Callable[[Source, Sequence[Pair]], Sequence[Truth | None]]  # None: the image is not part of the set


def by_state(_source: Source, pairs: Sequence[Pair]) -> list[Truth | None]:
    """The folder tells: `good`, `normal`, `ok` and `no` are normal. Where no folder does, all are anomalous: lesions."""
    return [Truth(int(str(image.place.get("state")).lower() not in NORMAL_STATES)) for image, _ in pairs]


@dataclass(frozen=True)
class Form:
    """One way in which the files of a set lie.

    images, masks: regular expressions over whole names without their last suffix, in any case, with the group `stem` and,
    where names tell them, `class_name`, `split` and `state`. A mask belongs to the image whose stem is the mask's, but
    for a suffix as `_mask`, and whose other groups of the mask's pattern are the same.
    """

    images: str
    masks: str | None = None
    label: Labeller = by_state


@dataclass(frozen=True)
class DataSet:
    """A data set of the paper; forms are tried in turn. normal, anomalous: test images that are expected.

    folder: what the publisher's archive calls the set's folder, where that is neither the layout nor the title.
    copied: sets of others come in this layout too, so that counts are held only against classes of the set, and a class
    that is not of the set may be without any mask. All forms but the last are then for the set alone.
    """

    title: str
    classes: tuple[str, ...]
    normal: int
    anomalous: int
    forms: tuple[Form, ...]
    copied: bool = False
    folder: str | None = None


def read_dataset(dataset: DataSet, uri: str, _collection: str) -> tuple[str, list[Entry]]:
    """The set's images in the folder that is least deep: copies of it further down are left out, and said.

    Raises InputError for two such folders, a mask without an image, an anomalous image without a mask, and two masks of
    one name.
    """
    source = open_source(uri)
    for form in dataset.forms:
        found = list(find(source, form.images))
        images = shallowest(found)
        classes = {class_of(dataset, source, image) for image in images}
        if images and (not dataset.copied or form is dataset.forms[-1] or classes & set(dataset.classes)):
            root = only_root(dataset, source, images)
            masks = [mask for mask in find(source, form.masks) if mask.place["root"] == root] if form.masks else []
            entries = list(to_entries(dataset, form, source, pair_masks(source, images, masks)))
            for line in (*left_out(found, root), *differences(dataset, entries)):
                log.warning("%s in %s: %s", dataset.title, source.uri, line)
            return source.uri, entries
    return source.uri, []


def find(source: Source, pattern: str) -> Iterator[Found]:
    compiled = re.compile(ROOT + pattern, re.IGNORECASE)
    for image in source.images():
        if match := compiled.fullmatch(image.name.removesuffix(PurePosixPath(image.name).suffix)):
            yield Found(image, match.groupdict())


def depth(image: Found) -> int:
    return str(image.place["root"]).count("/")


def shallowest(images: Sequence[Found]) -> list[Found]:
    least = min(map(depth, images), default=0)
    return [image for image in images if depth(image) == least]


def only_root(dataset: DataSet, source: Source, images: Sequence[Found]) -> str:
    """Raises InputError where the images lie in more than one folder that could be the set's own."""
    roots = sorted({str(image.place["root"]) for image in images})
    if len(roots) > 1:
        raise InputError(
            f"{source.uri!r} holds {dataset.title} more than once, in {roots[0]!r} and {roots[1]!r}: give one of them as "
            f"the source"
        )
    return roots[0]


def left_out(found: Sequence[Found], root: str) -> Iterator[str]:
    if deeper := [image.object.name for image in found if image.place["root"] != root]:
        yield f"{len(deeper)} images further down are left out, as {deeper[0]!r}"


# --- pairing ----------------------------------------------------------------------------------------------------------

Key = tuple[str | None, ...]


def pair_masks(source: Source, images: Sequence[Found], masks: Sequence[Found]) -> list[Pair]:
    """Each image with the mask of its name, or None; a mask left over is an error."""
    groups = sorted(masks[0].place.keys() - {"stem"}) if masks else []
    by_name: dict[Key, StoredObject] = {}
    for mask in masks:
        other = by_name.setdefault(key_of(mask, groups), mask.object)
        if other is not mask.object:
            raise InputError(f"the masks {other.name!r} and {mask.object.name!r} in {source.uri!r} have the same name")
    paired: dict[str, StoredObject] = {}
    for suffix in suffixes():  # an image whose mask has just its name goes first
        for image in images:
            key = key_of(image, groups, suffix)
            if image.object.name not in paired and key in by_name:
                paired[image.object.name] = by_name.pop(key)
    if by_name:
        raise InputError(
            f"the mask {next(iter(by_name.values())).name!r} belongs to no image of its name in {source.uri!r}"
        )
    return [(image, paired.get(image.object.name)) for image in images]


def key_of(found: Found, groups: Sequence[str], suffix: str = "") -> Key:
    """A split is the same in any case, all other names as they are written."""
    names = {**found.place, "split": (found.place.get("split") or "").lower()}
    return (f"{found.place['stem']}{suffix}", *(names[group] for group in groups))


def suffixes() -> Iterator[str]:
    yield ""
    for suffix in MASK_SUFFIXES:
        yield from dict.fromkeys((suffix, suffix.upper(), suffix.title()))


def to_entries(dataset: DataSet, form: Form, source: Source, pairs: Sequence[Pair]) -> Iterator[Entry]:
    with_masks = {class_of(dataset, source, image) for image, mask in pairs if mask}
    for (image, mask), truth in zip(pairs, form.label(source, pairs), strict=True):
        if truth is None:
            continue
        place, class_name = image.place, class_of(dataset, source, image)
        masked = form.masks and (class_name in with_masks or not dataset.copied or class_name in dataset.classes)
        if truth.label and masked and mask is None:
            raise InputError(f"the anomalous image {image.object.name!r} has no mask of its name in {source.uri!r}")
        yield Entry(
            object=image.object,
            class_name=class_name,
            split=truth.split or (place.get("split") or "").lower() or None,
            defect_type=place.get("state") if truth.label else None,
            label=truth.label,
            mask_uri=mask.uri if mask and truth.label else None,
        )


def class_of(dataset: DataSet, source: Source, image: Found) -> str:
    return dataset.classes[0] if len(dataset.classes) == 1 else image.place.get("class_name") or source.name


# --- counts -----------------------------------------------------------------------------------------------------------


def differences(dataset: DataSet, entries: Sequence[Entry]) -> Iterator[str]:
    """What differs from the paper's set, a sentence each."""
    tested = [entry for entry in entries if entry.split in (None, "test")]
    classes = {entry.class_name for entry in tested}
    if dataset.copied and 2 * len(classes & set(dataset.classes)) <= len(dataset.classes):
        return  # a data set of one's own in that form, or a few classes
    if missing := [name for name in dataset.classes if name not in classes]:
        yield f"classes missing: {', '.join(missing)}"
    if unknown := sorted(classes - set(dataset.classes)):
        yield f"classes that the set does not have: {', '.join(unknown)}"
    counts = Counter(entry.label for entry in tested)
    if (counts[0], counts[1]) != (dataset.normal, dataset.anomalous):
        yield (
            f"{counts[0]} normal and {counts[1]} anomalous test images, "
            f"{dataset.normal} and {dataset.anomalous} are expected"
        )
