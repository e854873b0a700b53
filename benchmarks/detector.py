"""How fast the detector is and how near to the machine's limit: `python -m benchmarks.detector [--quick] [--json FILE]`.

For ViT-L/14@336 at 518 pixels (seeded weights) and for the embedded backbone it measures

- the GEMM ceiling: GFLOP/s of the four products of a block at the model's own shapes, fp32 and bf16, the better of torch's
  default and the detector's own call, its matrices packed;
- seconds an image by batch size and precision, from uint8 pixels in memory to scores and patch grids;
- the share of the ceiling: the floating-point operations of all products (skipped ones not counted) in that time;
- the same for the published form (published_form.py: explicit attention in both streams, nothing skipped), the yardstick;
- peak memory, loading included. Each configuration has a process of its own, so that nothing else is in that number.

It does not measure reading and preparing images. Other work on the machine makes every number worse, and if it comes and
goes, makes one worse than the other: all are measured in turn, some rounds, and the best of each counts. The load average is
in the JSON.

On a GPU (`--device cuda`, the default where there is one) results are read while the next batch runs, as in scoring. An
H100 should take 2 to 4 ms an image in bf16 at batch 8 and above: 1.18 TFLOP at 500 TFLOP/s are 2.4 ms, and what lies
between the products (norms, residuals, GELU, conversions) moves some 2 GB, 0.7 ms. To check, run
`python -m benchmarks.detector --device cuda --batches 8 32`: a share of the ceiling below 0.5 means that the device waits,
and `nsys profile` of the same command must show no gap between batches. `--compiled` tells whether torch.compile, which
fuses what lies between the products, pays on that card: scoring does without it.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import published_form
from benchmarks.processes import in_its_own_process, peak_memory_gb
from models import Detector, attention, load_detector
from models.backbone import Backbone, can_pack, linear, load_backbone, pack_matrix
from models.detector import PRECISIONS, read_bundle_config, resolve_device
from models.embedded import DPAM_LAYERS, FOLDER, IMAGE_SIZE
from models.preprocess import normalise
from models.prompts import PromptLearner
from models.stream import score_stream
from tests.models import seeded

VIT_L, EMBEDDED = "ViT-L-14-336-quickgelu", "embedded"
DETECTOR, PUBLISHED = "detector", "published form"
SHORTEST = 3.0  # seconds that a measurement lasts, unless two runs take longer


@dataclass(frozen=True)
class Case:
    model: str
    implementation: str
    precision: str
    batch: int


@dataclass(frozen=True)
class Shape:
    """What the number of operations depends on; tokens with the class token, embed: the joint space's width.

    embedding: operations of the patch embedding, or of the stem in its place.
    """

    tokens: int
    embedding: int
    width: int
    embed: int
    blocks: int
    dpam_layers: int

    def products(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a block's products with weights."""
        c = self.width
        return [(c, 3 * c), (c, c), (c, 4 * c), (4 * c, c)]

    def gflop(self, implementation: str) -> float:
        """Of one image; the detector computes the last block's ordinary stream for the class token alone."""
        n, c = self.tokens, self.width
        attention = 4 * n * n * c  # q k^T and its product with v
        block = sum(2 * n * i * o for i, o in self.products()) + attention
        vv_path = 2 * n * c * c + attention
        skipped = (n - 1) * (2 * c * 10 * c + 4 * n * c) if implementation == DETECTOR else 0  # q, out, MLP; attention
        ends = self.embedding + 2 * n * c * self.embed  # and the projection of one feature layer
        return (self.blocks * block + self.dpam_layers * vv_path + ends - skipped) / 1e9


# --- in processes of their own ----------------------------------------------------------------------------------------


def make_bundle(model: str, folder: Path) -> Shape:
    """Write a bundle with fresh prompts, and the seeded weights that it names where the model does not ship."""
    if model == EMBEDDED:
        backbone, dpam_layers = load_backbone(EMBEDDED, IMAGE_SIZE), DPAM_LAYERS
    else:
        backbone, dpam_layers = seeded_vit_l(folder / "weights.safetensors"), 19
    prompts = PromptLearner(backbone, generator=torch.Generator().manual_seed(0))
    Detector.build(backbone, prompts, backbone.image_size, (backbone.layers,), dpam_layers).save(folder / "bundle")
    with FlopCounterMode(display=False) as embedding:
        backbone.clip.visual.conv1(torch.zeros(1, 3, backbone.image_size, backbone.image_size))
    return Shape(
        backbone.grid**2 + 1, embedding.get_total_flops(), backbone.config["vision_cfg"]["width"], backbone.embed_dim,
        backbone.layers, dpam_layers,
    )  # fmt: skip


def seeded_vit_l(path: Path) -> Backbone:
    from safetensors.numpy import save_file

    save_file(seeded.weights(seeded.VIT_L_14_336), path)
    return load_backbone(f"{VIT_L}:{path}", image_size=518)


def measure_ceiling(shape: Shape, precision: str, batch: int, device: str) -> float:
    """GFLOP/s of a block's products on (batch x tokens, inputs) activations, the faster of two ways of calling them."""
    dtype, where = PRECISIONS[precision], resolve_device(device)
    best = {}
    for call in (F.linear, linear):
        seconds = operations = 0.0
        for inputs, outputs in shape.products():
            x, weight, bias = (
                torch.randn(*size, device=where).to(dtype)
                for size in ((batch * shape.tokens, inputs), (outputs, inputs), (outputs,))
            )
            if call is linear and can_pack(weight):
                weight = pack_matrix(weight, shape.tokens)
            seconds += best_seconds(lambda: call(x, weight, bias), where, SHORTEST / 10)  # noqa: B023
            operations += 2 * batch * shape.tokens * inputs * outputs
        best[call] = operations / seconds / 1e9
    return max(best.values())


def measure(case: Case, bundle: Path, device: str, compiled: bool) -> dict[str, float]:
    """Seconds an image and peak memory (GB) of one configuration."""
    where = resolve_device(device)
    size = read_bundle_config(bundle).image_size
    pixels = np.random.default_rng(0).integers(0, 256, (case.batch, size, size, 3), np.uint8)
    if case.implementation == PUBLISHED:
        call, batches = published_call(bundle, torch.from_numpy(pixels).to(where)), 1
    else:
        detector = load_detector(bundle, device, case.precision, compiled=compiled)
        batches = 8 if where.type == "cuda" else 1
        call = lambda: list(score_stream(detector, [pixels] * batches))  # noqa: E731
    seconds = best_seconds(call, where, SHORTEST) / batches / case.batch
    memory = {"peak_memory_gb": peak_memory_gb()}
    if where.type == "cuda":
        memory["device_memory_gb"] = torch.cuda.max_memory_allocated(where) / 1e9
    return {"seconds_an_image": seconds} | memory


def published_call(bundle: Path, pixels: Tensor) -> Callable[[], Any]:
    config = read_bundle_config(bundle)
    backbone = load_backbone(config.backbone, config.image_size)
    text = load_detector(bundle, "cpu", backbone=backbone).text_features.to(pixels.device)
    backbone.to(pixels.device)
    layers = list(config.feature_layers)
    return lambda: published_form.detect(backbone, text, normalise(pixels), layers, config.dpam_layers, config.sigma)


@torch.inference_mode()
def best_seconds(call: Callable[[], Any], device: torch.device, shortest: float) -> float:
    """The shortest of at least two runs; the first also warms up."""
    times: list[float] = []
    while len(times) < 2 or (sum(times) < shortest and len(times) < 50):
        before = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - before)
    return min(times)


# --- the table --------------------------------------------------------------------------------------------------------


def benchmark(
    model: str, batches: Sequence[int], precisions: Sequence[str], device: str, compiled: bool = False, rounds: int = 1
) -> list[dict[str, Any]]:
    """One row a configuration, the yardstick first; progress goes to standard error."""
    cases = [Case(model, PUBLISHED, "fp32", 1)]
    cases += [Case(model, DETECTOR, precision, batch) for precision in precisions for batch in batches]
    ceilings, measured = dict.fromkeys(cases, 0.0), dict[Case, dict[str, float]]()
    with tempfile.TemporaryDirectory() as folder:
        shape = in_its_own_process(make_bundle, model, Path(folder))
        for turn, case in product(range(rounds), cases):
            ceiling = in_its_own_process(measure_ceiling, shape, case.precision, case.batch, device)
            ceilings[case] = max(ceilings[case], ceiling)
            found = in_its_own_process(measure, case, Path(folder) / "bundle", device, compiled)
            measured[case] = min(measured.get(case, found), found, key=lambda of: of["seconds_an_image"])
            print(
                f"{model}, {case.implementation}, {case.precision}, batch {case.batch}: "
                f"{found['seconds_an_image']:.4f} s an image, round {turn + 1} of {rounds}",
                file=sys.stderr,
            )
    return [row_of(case, shape, ceilings[case], measured[case], measured[cases[0]]) for case in cases]


def row_of(
    case: Case, shape: Shape, ceiling: float, measured: dict[str, float], yardstick: dict[str, float]
) -> dict[str, Any]:
    operations = shape.gflop(case.implementation)
    speed = operations / measured["seconds_an_image"]
    derived = {
        "gflop_an_image": operations,
        "gflop_s": speed,
        "ceiling_gflop_s": ceiling,
        "share_of_ceiling": speed / ceiling,
        "times_as_fast": yardstick["seconds_an_image"] / measured["seconds_an_image"],
    }
    return asdict(case) | measured | derived


def machine(device: str) -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")] if (
        cpu.exists()
    ) else [platform.processor()]  # fmt: skip
    where = resolve_device(device)
    return {
        "processor": names[0] if names else platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "attention_kernel": "ours" if attention.KERNEL else "torch's",
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "load_average_before": os.getloadavg()[0],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    columns = {
        "model": "model", "implementation": "implementation", "precision": "precision", "batch": "batch",
        "seconds_an_image": "s an image", "gflop_s": "GFLOP/s", "ceiling_gflop_s": "GEMM ceiling",
        "share_of_ceiling": "share", "times_as_fast": "times as fast", "peak_memory_gb": "peak GB",
    }  # fmt: skip
    digits = {"seconds_an_image": 4, "gflop_s": 0, "ceiling_gflop_s": 0}

    def cell(row: dict[str, Any], column: str) -> str:
        value = row[column]
        return f"{value:.{digits.get(column, 2)}f}" if isinstance(value, float) else str(value)

    lines = [list(columns.values()), ["---"] * len(columns), *([cell(row, c) for c in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the detector against the machine's limit.")
    parser.add_argument("--quick", action="store_true", help="batch 1 alone")
    parser.add_argument("--rounds", type=int, default=3, help="through all configurations; of each the best counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    parser.add_argument("--models", nargs="+", choices=(VIT_L, EMBEDDED), default=[EMBEDDED, VIT_L])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--precisions", nargs="+", choices=tuple(PRECISIONS), default=["fp32", "bf16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compiled", action="store_true", help="the detector's tower by torch.compile (CUDA)")
    options = parser.parse_args()
    found, rows = machine(options.device), []
    for model in options.models:
        if model == EMBEDDED and not (FOLDER / "weights.safetensors").exists():
            print("the embedded backbone's weights are not there: skipped", file=sys.stderr)
            continue
        rows += benchmark(
            model, [1] if options.quick else options.batches, options.precisions, options.device, options.compiled,
            options.rounds,
        )  # fmt: skip
    print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found.items()), table(rows), sep="\n\n")
    if options.json:
        options.json.write_text(json.dumps({"machine": found, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
