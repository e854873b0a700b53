"""What the demo inspects: generated objects with exact masks, and real photographs of solar cells from `elpv-dataset`."""

import io
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

    Every image is of a scene of its own. What exists is not written again: the same arguments give the same bytes.
    """
    folder = f"demo/{split}-{per_family}"
    jobs = [(family, number) for family in SPLIT[split] for number in range(per_family)]
    target = Store(store)
    existing = set(target.find(folder))

    def write(job: tuple[str, int]) -> None:
        for name, pixels in generated_files(*job).items():
            if name not in existing:
                target.write(png(pixels), folder, name)
        advance()

    with progress(f"generate {split}", len(jobs)), ThreadPoolExecutor(2) as pool:
        list(pool.map(write, jobs))
    return target.uri_of(folder)


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
def copy_solar_cells(store: str, per_label: int, seed: int = 0) -> str:
    """Write photographs of functional and of defective solar cells (ELPV, both labels certain) to `good` and `defective`.

    What exists is not written again, so that another demo on the same store ingests nothing new.
    """
    folder, target = f"demo/solar-cells-{per_label}", Store(store)
    rng, existing = np.random.default_rng(seed), set(target.find(folder))
    for label, certainty in (("good", 0.0), ("defective", 1.0)):
        cells = solar_cell_files(certainty)
        for number in rng.choice(len(cells), min(per_label, len(cells)), replace=False):
            file = cells[number]
            if f"{label}/{file.name}" not in existing:
                target.write(file.read_bytes(), folder, label, file.name)
    return target.uri_of(folder)


def solar_cell_files(certainty: float) -> list[Path]:
    """Photographs of the cells that are defective with this probability (0 and 1: beyond doubt), in the package's order."""
    try:
        package = Path(str(files("elpv_dataset") / "data"))
    except ModuleNotFoundError as error:
        raise InputError("the demo needs the package elpv-dataset: pip install '.[demo]'") from error
    lines = [line.split() for line in (package / "labels.csv").read_text().splitlines() if line.strip()]
    return [package / name for name, probability, _ in lines if float(probability) == certainty]
