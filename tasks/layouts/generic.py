"""Layouts for images of one's own: no labels at all, or a folder a state."""

from tasks.layouts.source import NORMAL_NAMES, Entry, list_source


def flat(uri: str, collection: str) -> tuple[str, list[Entry]]:
    source = list_source(uri)
    return source.uri, [Entry(image, class_name=collection) for image in source.images()]


def folders(uri: str, collection: str) -> tuple[str, list[Entry]]:
    source = list_source(uri)
    entries = []
    for image in source.images():
        *above, state = image.name.split("/")[:-1] or [source.name]
        normal = state.lower() in NORMAL_NAMES
        class_name = "/".join(above) or collection
        entries.append(Entry(image, class_name, None, None if normal else state, 0 if normal else 1))
    return source.uri, entries
