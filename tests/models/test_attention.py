"""Attention on a CPU against double precision, and its kernel against whatever could make it differ from itself."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import attention
from models.attention import multi_head_attention
from models.backbone import encode_image
from tests.models import seeded

needs_kernel = pytest.mark.skipif(attention.KERNEL is None, reason="no AVX-512 here, or no compiler at installation")


def heads_of(batch: int, heads: int, tokens: int, size: float = 1, channels: int = 64) -> tuple[Tensor, ...]:
    """Queries, keys and values (B, H, N, d) as `attend` gives them: views of one tensor."""
    qkv = torch.randn(batch, tokens, 3 * heads * channels, generator=torch.Generator().manual_seed(tokens)) * size
    return tuple(t.unflatten(-1, (heads, channels)).transpose(1, 2) for t in qkv.chunk(3, dim=-1))


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q.double() @ k.double().transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return weights @ v.double()


@torch.no_grad()
def error(q: Tensor, k: Tensor, v: Tensor) -> float:
    expected = exact(q, k, v)
    return float((multi_head_attention(q, k, v) - expected).norm() / expected.norm())


@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_attention_in_bf16_is_attention(tokens: int) -> None:
    """The bf16 form for CPUs, queries of one token included, against double precision."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 64, generator=generator).bfloat16() for n in (tokens, 300, 300))
    with torch.no_grad():
        found = multi_head_attention(q, k, v)
    assert found.dtype == torch.bfloat16
    assert (found - exact(q, k, v)).norm() / exact(q, k, v).norm() < 1e-2


@pytest.mark.parametrize("tokens", [8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 257, 1370])
def test_attention_in_fp32_is_exact_to_rounding(tokens: int) -> None:
    """Around the sizes of the kernel's tiles, panels, blocks and stretches."""
    q, k, v = heads_of(2, 3, tokens)
    assert error(q, k, v) < 1e-6
    assert error(v, v, v) < 1e-6
    assert error(q[:, :, : tokens // 2 + 1], k, v) < 1e-6
    assert error(q, k[:, :, :1], v[:, :, :1]) < 1e-6


@needs_kernel
@pytest.mark.parametrize("channels", [64, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_takes_what_it_was_written_for(
    channels: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    by_kernel = attention.by_kernel
    monkeypatch.setattr(attention, "by_kernel", lambda *given: called.append(given) or by_kernel(*given))
    q, k, v = (t.to(dtype) for t in heads_of(1, 2, 40, channels=channels))
    assert error(q, k, v) < 1e-6
    assert error(q[:, :, :1], k, v) < 1e-6
    assert error(*(t.transpose(2, 3).contiguous().transpose(2, 3) for t in (q, k, v))) < 1e-6  # channels lie apart
    multi_head_attention(q.requires_grad_(), k, v).sum().backward()
    assert len(called) == (channels == 64 and dtype == torch.float32)


@needs_kernel
@pytest.mark.parametrize("size", [0, 0.1, 1, 3, 30, 1e4])
def test_v_v_attention_holds_for_values_of_any_length(size: float) -> None:
    """Short ones share a shift; a row far below the highest would vanish, and is computed with its own."""
    _, _, v = heads_of(1, 2, 200, size)
    assert size == 0 or error(v, v, v) < 1e-6
    v = v.clone()
    v[:, :, ::2] *= 1e-3
    assert size == 0 or error(v, v, v) < 1e-6
    assert multi_head_attention(v, v, v).isfinite().all()


@needs_kernel
@torch.no_grad()
def test_scores_far_from_zero_neither_overflow_nor_vanish() -> None:
    q, k, v = heads_of(1, 2, 100)
    for shift in (-40.0, 40.0):
        far = q.clone()
        far[..., 0], keys = shift * 100, k.clone()
        keys[..., 0] = 10
        found = multi_head_attention(far, keys, v)
        torch.testing.assert_close(found, F.scaled_dot_product_attention(far, keys, v), atol=0.02, rtol=0)


@needs_kernel
@torch.no_grad()
def test_a_head_does_not_see_its_neighbours_threads_or_what_is_not_a_number() -> None:
    q, k, v = heads_of(3, 4, 150)
    threads = torch.get_num_threads()
    for queries, keys in ((q, k), (v, v)):
        whole = multi_head_attention(queries, keys, v)
        alone = multi_head_attention(queries[1:2, 2:3], keys[1:2, 2:3], v[1:2, 2:3])
        assert torch.equal(whole[1:2, 2:3], alone)
        try:
            torch.set_num_threads(1)
            assert torch.equal(multi_head_attention(queries, keys, v), whole)
        finally:
            torch.set_num_threads(threads)
    broken = v.clone()
    broken[1, 2, 7, 3] = torch.nan
    found = multi_head_attention(broken, broken, broken)
    assert found[1, 2].isnan().any(dim=-1).all()
    found[1, 2] = whole[1, 2]
    assert torch.equal(found, whole)


@needs_kernel
def test_threads_call_the_kernel_side_by_side() -> None:
    q, k, v = heads_of(1, 4, 200)
    with torch.no_grad():
        expected = multi_head_attention(q, k, v)
    differences = []

    @torch.no_grad()
    def many() -> None:
        for _ in range(20):
            differences.append(float((multi_head_attention(q, k, v) - expected).abs().max()))

    workers = [threading.Thread(target=many) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert differences == [0] * 80


@needs_kernel
@torch.no_grad()
def test_the_tower_is_the_same_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, images = seeded.backbone(seeded.NARROW_24, 126, seed=3), torch.randn(2, 3, 126, 126)
    arguments = (backbone.clip.visual, backbone.positions, images, (12, 24), 19)
    found = encode_image(*arguments)
    monkeypatch.setattr(attention, "KERNEL", None)
    expected = encode_image(*arguments)
    assert not torch.equal(found.patches[1], expected.patches[1])  # else the kernel did not run
    for a, b in zip([found.image, *found.patches], [expected.image, *expected.patches], strict=True):
        assert (a - b).norm() / b.norm() < 3e-6
