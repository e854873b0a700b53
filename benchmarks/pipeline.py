"""What storage, Prefect and Ray cost around the model, from bucket to bucket.

    python -m benchmarks.pipeline [--images 2000] [--keys 100000] [--json FILE]

A Ceph gateway is started for it (Debian packages: `make stack-packages`), with its objects in memory, on the cores that
everything else runs on.

- ingest: `keys` empty objects in folders of 1,000, their listing by botocore's paginator beside the task of `ingest`, in
  processes of their own.
- score: drawn PNGs of 256 x 256 with the embedded backbone and a champion that is trained for it. The bare loop reads the
  same files from the local disk, decodes, scores and writes nothing, one batch after the other, in one process. `score` is
  the command; its seconds are those of its flow, the model's loading included, the start of Python and of Prefect's
  ephemeral server not. Memory is the peak of its process, and with all its workers and servers.
- requests: lines of the gateway's log. Those of images and masks are told by their paths; beside them there are those of the
  shards, and of the run (manifest, list of what is done, bundle).
- Prefect: tasks that do nothing, with the arguments and settings of a shard's.
- CPU work beside the model, of one core: reading a JPEG into the model's pixels (518 x 518), and cutting a mask of the
  image's size from a grid of 37 x 37, its PNG and its regions included.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import botocore.session
import psutil

from benchmarks.processes import in_its_own_process, peak_memory_gb
from infra.gateway import gateway

SIZE, DISTINCT = 256, 200  # pixels; images that are drawn: the others are of the same bytes under other names
COLLECTION, STORE = "parts", "s3://results/store"
EMPTY_TASKS = 200
SHARD_SIZE = 256
WAYS: dict[str, tuple[str, ...]] = {
    "threads": (),
    "threads, 2 shards at once": ("--workers", "2"),
    "Ray, 1 worker": ("--runner", "ray"),
    "Ray, 2 workers": ("--runner", "ray", "--workers", "2"),
}


@dataclass(frozen=True)
class Scoring:
    """One way to score all images: seconds, images a second, GB at the peak, the S3 server's requests by method.

    server_cpu: core seconds that the server took from the same machine; an_image: requests for reading an image and
    writing its mask, the mean; beside: all other requests.
    """

    way: str
    seconds: float
    per_second: float
    peak_gb: float
    all_processes_gb: float
    server_cpu: float
    requests: dict[str, int]
    an_image: float
    beside: int


# --- ingest -----------------------------------------------------------------------------------------------------------


def put_keys(keys: int) -> None:
    """Objects of three bytes, which every listing takes for images."""
    client = s3_client()
    names = (f"{number // 1000:04d}/{number:07d}.png" for number in range(keys))
    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(lambda name: client.put_object(Bucket="keys", Key=name, Body=b"png"), names):
            pass


def bare_listing() -> tuple[int, float]:
    """Keys and seconds of a paged listing, no row made of them."""
    pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket="keys")
    started = time.perf_counter()
    count = sum(len(page.get("Contents", ())) for page in pages)
    return count, time.perf_counter() - started


def ingest_keys() -> tuple[int, float, float]:
    """Keys, seconds and the process's peak in GB of the task of `ingest`, manifest written."""
    from tasks.manifest import ingest_source

    started = time.perf_counter()
    summary = ingest_source.fn(STORE, "keys", "s3://keys", "flat", False)
    return summary.listed, time.perf_counter() - started, peak_memory_gb()


# --- score ------------------------------------------------------------------------------------------------------------


def draw(folder: Path, images: int) -> None:
    """Images in the layout `folders`, on local disk: every second one damaged."""
    from PIL import Image

    from models.embedded.generator import SPLIT, scene

    families, drawn = SPLIT["auxiliary"], []
    for number in range(min(images, DISTINCT)):
        made = scene(families[number % len(families)], SIZE, number, n_damaged=1)
        drawn.append(Image.fromarray(made.damaged[0] if number % 2 else made.normal))
    for number in range(images):
        path = folder / ("damaged" if number % 2 else "good") / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn[number % DISTINCT].save(path, compress_level=1)


def upload(folder: Path) -> None:
    client = s3_client()
    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(lambda path: put_file(client, folder, path), folder.rglob("*.png")):
            pass


def put_file(client: Any, folder: Path, path: Path) -> None:
    client.put_object(Bucket="photos", Key=path.relative_to(folder).as_posix(), Body=path.read_bytes())


def bare_loop(folder: Path) -> tuple[int, float, float]:
    """Images, seconds with the model's loading, and the process's peak in GB."""
    import numpy as np

    from models.preprocess import to_square
    from models.stream import batch_size_for, score_stream
    from tasks.images import decode_image, viewed
    from tasks.registry import CHAMPION_URI, open_detector, resolve_model
    from tasks.store import Store

    paths = sorted(folder.rglob("*.png"))
    started = time.perf_counter()
    store = Store(STORE)
    detector = open_detector(store, resolve_model(store, CHAMPION_URI))
    size, side = batch_size_for(detector), detector.config.image_size

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(paths), size):
            read = (viewed(decode_image(path.read_bytes())) for path in paths[start : start + size])
            yield np.stack([to_square(image, side) for image in read])

    count = sum(len(scored.scores) for scored in score_stream(detector, batches()))
    return count, time.perf_counter() - started, peak_memory_gb()


def score(way: str, log: Path, *options: str) -> Scoring:
    """All images by the command, after what an earlier way wrote is removed."""
    forget_scores()
    before, server = requests(log), server_cpu()
    summary, peak, everything = command("score", "--collection", COLLECTION, *options)
    time.sleep(1)  # the gateway's log
    seen, images = requests(log) - before, summary["scored"]
    methods = Counter(method for method, _ in seen.elements())
    of_images = sum(count for (_, path), count in seen.items() if path.startswith("/photos/") or "/masks/" in path)
    return Scoring(
        way, summary["seconds"], images / summary["seconds"], peak, everything, server_cpu() - server,
        dict(sorted(methods.items())), of_images / images, seen.total() - of_images,
    )  # fmt: skip


def forget_scores() -> None:
    client = s3_client()
    for kind in ("scores", "maps", "masks"):
        for key in written(client, kind):
            client.delete_object(Bucket="results", Key=key)


def written(client: Any, kind: str) -> list[str]:
    folder = f"store/collections/{COLLECTION}/{kind}/"
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="results", Prefix=folder)
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


# --- Prefect ----------------------------------------------------------------------------------------------------------


def empty_tasks(count: int) -> float:
    """Milliseconds a task that does nothing, run as the shards are."""
    from prefect import flow, task
    from prefect.task_runners import ThreadPoolTaskRunner

    from tasks.registry import CHAMPION_URI, resolve_model
    from tasks.retries import RETRIED
    from tasks.shards import ScoredShard, Shard
    from tasks.store import Store

    @task(task_run_name="{shard.name}", **RETRIED)
    def nothing(store: str, collection: str, model: Any, shard: Shard, precision: str) -> ScoredShard:  # noqa: ARG001
        return ScoredShard(shard.name, 0, {}, {})

    @flow
    def shards() -> float:
        job = {"store": STORE, "collection": COLLECTION, "model": resolve_model(Store(STORE), CHAMPION_URI)}
        started = time.perf_counter()
        with ThreadPoolTaskRunner(max_workers=1) as runner:
            for number in range(count):
                shard = Shard("part-00000.parquet", SHARD_SIZE, number, 1)
                runner.submit(nothing, job | {"precision": "fp32", "shard": shard}).wait()
        return 1000 * (time.perf_counter() - started) / count

    return float(shards())


# --- CPU --------------------------------------------------------------------------------------------------------------


def cpu_work(side: int, times: int = 10) -> tuple[float, float]:
    """Milliseconds on one core of preparing a square JPEG of this side, and of cutting its mask."""
    import io

    import numpy as np
    import torch
    from PIL import Image

    from models.embedded.generator import SPLIT, scene
    from models.preprocess import to_square
    from tasks.images import decode_image, viewed
    from tasks.scoring import ScoredImage, cut_mask

    torch.set_num_threads(1)
    made, buffer = scene(SPLIT["auxiliary"][0], SIZE, 0, n_damaged=1), io.BytesIO()
    Image.fromarray(made.damaged[0]).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    grid = np.zeros((37, 37), np.float32)
    grid[12:17, 20:24] = 0.9  # one region

    def prepare() -> None:
        to_square(viewed(decode_image(buffer.getvalue())), 518)

    def cut() -> None:
        cut_mask(ScoredImage(0.9, grid, side, side), 518, 4.0, 0.5)

    def milliseconds(work: Callable[[], None]) -> float:
        work()
        started = time.process_time()
        for _ in range(times):
            work()
        return 1000 * (time.process_time() - started) / times

    return milliseconds(prepare), milliseconds(cut)


# --- measuring --------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> tuple[dict[str, Any], float, float]:
    """What `anomalyclip … --json` says, the peak in GB of its process, and of it with all that it started."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *arguments, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    peaks = [0.0, 0.0]
    watcher = threading.Thread(target=watch_memory, args=(process, peaks))
    watcher.start()
    out, err = process.communicate()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {err.decode()[-2000:]}")
    return json.loads(out), peaks[0], peaks[1]


def watch_memory(process: "subprocess.Popen[bytes]", peaks: list[float]) -> None:
    """Resident memory of the process, and the sum with its children, whose shared pages are counted once each."""
    while process.poll() is None:
        try:
            parent = psutil.Process(process.pid)
            own = parent.memory_info().rss
            children = sum(child.memory_info().rss for child in parent.children(recursive=True))
        except psutil.Error:
            continue  # one of them has just ended
        peaks[:] = max(peaks[0], own / 1e9), max(peaks[1], (own + children) / 1e9)
        time.sleep(0.1)


REQUEST = re.compile(r'"(GET|PUT|HEAD|POST|DELETE) (/\S*)')


def requests(log: Path) -> Counter[tuple[str, str]]:
    """All that the gateway has answered so far, by method and path."""
    lines = log.read_text(errors="replace").splitlines()
    return Counter((found[1], found[2]) for line in lines if (found := REQUEST.search(line)))


def server_cpu() -> float:
    """Core seconds of the S3 server so far."""
    children = psutil.Process().children(recursive=True)
    server = [child for child in children if child.name() in ("radosgw", "ceph-osd", "ceph-mon")]
    return float(sum(sum(child.cpu_times()[:2]) for child in server))


def s3_client() -> Any:
    return botocore.session.get_session().create_client("s3", config=botocore.config.Config(max_pool_connections=16))


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Variables for this process and those that it starts."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# --- the whole --------------------------------------------------------------------------------------------------------


def measure_ingest(keys: int) -> dict[str, float]:
    print(f"putting {keys} keys", file=sys.stderr)
    put_keys(keys)
    listed, bare = bare_listing()
    found, seconds, peak = in_its_own_process(ingest_keys)
    assert listed == found == keys
    print(
        f"ingest: {keys} keys, bare listing {keys / bare:.0f}/s, ingest {keys / seconds:.0f}/s "
        f"({bare / seconds:.2f} of it), peak {1000 * peak:.0f} MB",
        flush=True,
    )
    return {"keys": keys, "bare_per_second": keys / bare, "ingest_per_second": keys / seconds, "ingest_peak_gb": peak}


def measure_score(folder: Path, log: Path, images: int) -> dict[str, Any]:
    """The bare loop and every way of the command, and how many masks and shards each of the latter wrote."""
    print(f"drawing {images} images and training a champion", file=sys.stderr)
    draw(folder, images)
    upload(folder)
    command("ingest", "s3://photos", "--collection", COLLECTION, "--layout", "folders")
    command("demo", "--images", "20", "--cells", "1", "--epochs", "10")
    count, seconds, peak = in_its_own_process(bare_loop, folder)
    ways = [Scoring("bare loop, local disk, nothing written", seconds, count / seconds, peak, peak, 0.0, {}, 0.0, 0)]
    print(
        "| way | seconds | images/s | of the bare loop | GB | GB with all it started | server's core s | requests "
        "| an image | beside |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    show(ways[0], ways[0])
    for way, options in WAYS.items():
        ways.append(score(way, log, *options))
        show(ways[-1], ways[0])
    masks, shards = (len(written(s3_client(), kind)) for kind in ("masks", "scores"))
    print(f"{images} images, {masks} masks, {shards} shards", flush=True)
    return {"images": images, "masks": masks, "shards": shards, "ways": [asdict(way) for way in ways]}


def show(way: Scoring, bare: Scoring) -> None:
    told = ", ".join(f"{count} {method}" for method, count in way.requests.items()) or "–"
    print(
        f"| {way.way} | {way.seconds:.1f} | {way.per_second:.1f} | {way.per_second / bare.per_second:.2f} "
        f"| {way.peak_gb:.2f} | {way.all_processes_gb:.2f} | {way.server_cpu:.1f} | {told} "
        f"| {way.an_image:.2f} | {way.beside} |",
        flush=True,
    )


def measure_prefect() -> float:
    found = in_its_own_process(empty_tasks, EMPTY_TASKS)
    print(f"Prefect: {found:.1f} ms a shard", flush=True)
    return float(found)


def measure_cpu() -> dict[int, tuple[float, float]]:
    found = {side: in_its_own_process(cpu_work, side) for side in (256, 1024, 2048)}
    for side, (prepare, cut) in found.items():
        print(f"CPU, {side} x {side} JPEG: {prepare:.1f} ms to prepare it, {cut:.1f} ms to cut its mask", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and stop the server
    with tempfile.TemporaryDirectory(prefix="anomalyclip-") as name, gateway(Path(name) / "s3") as s3:
        folder = Path(name)
        variables = s3.environment | {
            "ANOMALYCLIP_STORE": STORE, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "PREFECT_HOME": str(folder / "prefect"), "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        }  # fmt: skip
        with chdir(folder), environment(variables):  # MLflow writes its artifacts there
            s3.make_buckets("keys", "photos", "results")
            found = {
                "cpu_ms": measure_cpu(),
                "ingest": measure_ingest(arguments.keys),
                "score": measure_score(folder / "images", folder / "s3/client.rgw.log", arguments.images),
                "prefect_ms": measure_prefect(),
            }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
