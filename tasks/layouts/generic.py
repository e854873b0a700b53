"""Layouts for images of one's own: no labels at all, or a folder a state. They hold no more of a source than its page."""

from collections.abc import Iterator

from tasks.layouts.source import NORMAL_NAMES, Entry, Source, StoredObject, is_image, open_source


def flat(uri: str, collection: str) -> tuple[str, Iterator[Entry]]:
    source = open_source(uri)
    return source.uri, (Entry(image, class_name=collection) for image in filter(is_image, source))


def folders(uri: str, collection: str) -> tuple[str, Iterator[Entry]]:
    source = open_source(uri)
    return source.uri, (labelled_by_folder(source, image, collection) for image in filter(is_image, source))


def labelled_by_folder(source: Source, image: StoredObject, collection: str) -> Entry:
    *above, state = image.name.split("/")[:-1] or [source.name]
    normal = state.lower() in NORMAL_NAMES
    return Entry(image, "/".join(above) or collection, None, None if normal else state, 0 if normal else 1)
