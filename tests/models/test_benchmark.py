"""The benchmark counts the right work and measures every implementation."""

from pathlib import Path

import pytest

from benchmarks import detector as bench


def test_the_work_of_the_papers_model_is_what_its_shapes_say() -> None:
    shape = bench.Shape(
        tokens=1370, embedding=2 * 1369 * 1024 * 3 * 14**2, width=1024, embed=768, blocks=24, dpam_layers=19
    )
    published, ours = shape.gflop(bench.PUBLISHED), shape.gflop(bench.DETECTOR)
    assert published == pytest.approx(1216, abs=1)
    assert published - ours == pytest.approx(36, abs=1)


def test_each_implementation_is_measured_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SHORTEST", 0.0)
    monkeypatch.setattr(bench, "in_its_own_process", lambda function, *arguments: function(*arguments))
    rows = bench.benchmark(bench.EMBEDDED, batches=[2], precisions=["fp32", "bf16"], device="cpu", rounds=2)
    kinds = [(row["implementation"], row["precision"], row["batch"]) for row in rows]
    assert kinds == [(bench.PUBLISHED, "fp32", 1), (bench.DETECTOR, "fp32", 2), (bench.DETECTOR, "bf16", 2)]
    assert rows[0]["times_as_fast"] == 1
    for row in rows:
        assert row["seconds_an_image"] > 0
        assert row["peak_memory_gb"] > 0.1
        assert row["share_of_ceiling"] == pytest.approx(row["gflop_s"] / row["ceiling_gflop_s"])
    lines = bench.table(rows).splitlines()
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
