"""What the demo inspects: generated objects with exact masks, and real photographs of solar cells from `elpv-dataset`."""

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image
from prefect import task
from prefect.cache_policies import NO_CACHE

from models.embedded.generator import SPLIT, scene
from tasks.errors import InputError
from tasks.progress import advance, progress
from tasks.store import Store

SIZE = 256  # pixels of a generated image
FIRST_SEED = 10_000_000  # far from the seeds of pre-training


@task(name="generate images", task_run_name="generate {split}", cache_policy=NO_CACHE)
def generate_images(store: str, split: str, per_family: int) -> str:
    """Write generated images of a split's families in MVTec's layout, half of them damaged; returns the source's URI.

    Every image is of a scene of its own; the same arguments give the same bytes.
    """
    folder = DemoFolder(Store(store), f"demo/{split}")
    jobs = [(family, number) for family in SPLIT[split] for number in range(per_family)]

    def write(job: tuple[str, int]) -> list[str]:
        files = generated_files(*job)
        for name, pixels in files.items():
            folder.write(name, png(pixels))
        advance()
        return list(files)

    with progress(f"generate {split}", len(jobs)), ThreadPoolExecutor(2) as pool:
        return folder.keep(name for names in pool.map(write, jobs) for name in names)


class DemoFolder:
    """Files of the demo in the store. What is there already is not written again: another demo ingests nothing new."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.existing = set(store.find(name))

    def write(self, file: str, data: bytes) -> None:
        if file not in self.existing or self.store.read(self.name, file) != data:
            self.store.write(data, self.name, file)

    def keep(self, files: Iterable[str]) -> str:
        """Remove what another demo, of more images, has left; returns the folder's URI."""
        for file in self.existing.difference(files):
            self.store.fs.rm_file(self.store.path(self.name, file))
        return self.store.uri_of(self.name)


def generated_files(family: str, number: int) -> dict[str, np.ndarray]:
    """File names and pixels of one image: flawless for even numbers, damaged with its mask for odd ones."""
    made = scene(family, SIZE, FIRST_SEED + number, n_damaged=number % 2)
    folder, stem = family.replace(" ", "_"), f"{number:04d}"
    if not made.damaged:
        return {f"{folder}/test/good/{stem}.png": made.normal}
    kind = made.defects[0].replace(" ", "_")
    return {
        f"{folder}/test/{kind}/{stem}.png": made.damaged[0],
        f"{folder}/ground_truth/{kind}/{stem}_mask.png": made.masks[0].astype(np.uint8) * 255,
    }


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


@task(name="copy solar cells", cache_policy=NO_CACHE)
def copy_solar_cells(store: str, per_label: int) -> str:
    """Write photographs of functional and of defective solar cells (ELPV, both labels certain) to `good` and `defective`."""
    folder, rng, names = DemoFolder(Store(store), "demo/solar-cells"), np.random.default_rng(0), list[str]()
    for label, certainty in (("good", 0.0), ("defective", 1.0)):
        cells = solar_cell_files(certainty)
        for number in rng.choice(len(cells), min(per_label, len(cells)), replace=False):
            names.append(f"{label}/{cells[number].name}")
            folder.write(names[-1], cells[number].read_bytes())
    return folder.keep(names)


def solar_cell_files(certainty: float) -> list[Path]:
    """Photographs of the cells that are defective with this probability (0 and 1: beyond doubt), in the package's order."""
    try:
        package = Path(str(files("elpv_dataset") / "data"))
    except ModuleNotFoundError as error:
        raise InputError("the demo needs the package elpv-dataset: pip install '.[demo]'") from error
    lines = [line.split() for line in (package / "labels.csv").read_text().splitlines() if line.strip()]
    return [package / name for name, probability, _ in lines if float(probability) == certainty]
