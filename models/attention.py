"""Multi-head attention by whatever is fastest where it runs; the mathematics are the same everywhere."""

import ctypes
import importlib.util
from ctypes import POINTER, c_float, c_int, c_long, c_void_p

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS = 64  # of a head, in every CLIP ViT up to L: what the kernel is written for
FEWEST_QUERIES = 8  # below, the kernel would spend its time on ordering keys


def load_kernel() -> ctypes.CDLL | None:
    """attention_avx512.c, where the installation could build it and the processor has AVX-512.

    It calls the OpenMP of the process, which torch brings: imported after torch, or not loaded.
    """
    spec = importlib.util.find_spec("models.attention_avx512")
    if spec is None or spec.origin is None or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return None
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError:  # a torch without OpenMP
        return None
    library.scratch_floats.argtypes, library.scratch_floats.restype = [c_long], c_long
    library.attention.argtypes = [
        *[c_void_p] * 4, *[POINTER(c_long)] * 4, *[c_long] * 4, c_float, c_int, c_void_p, c_int,
    ]  # fmt: skip
    library.attention.restype = None
    return library


KERNEL = load_kernel()


def multi_head_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v; q (B, H, M, d), k and v (B, H, N, d) -> (B, H, M, d).

    torch's fused kernel, but on a CPU without gradients. There fp32 goes through a kernel of our own, which takes 0.7 of the
    time at 1,370 tokens, 0.55 where q, k and v are one. bf16 goes a head at a time through oneDNN, 0.6 of the time (the
    weights of one head stay in the cache; the fused kernel is no faster than in fp32) and not slower at 257 tokens.
    """
    if q.device.type != "cpu" or torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v)
    if q.dtype == torch.bfloat16:
        return head_by_head(q, k, v)
    if KERNEL and fits_kernel(q, k, v):
        return by_kernel(KERNEL, q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def head_by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = torch.empty_like(q)
    q = q * q.shape[-1] ** -0.5
    weights = q.new_empty(q.shape[2], k.shape[2])  # M N, one buffer for all heads
    for image in range(q.shape[0]):
        for head in range(q.shape[1]):
            torch.mm(q[image, head], k[image, head].T, out=weights)
            torch.softmax(weights, dim=-1, out=weights)
            out[image, head] = weights @ v[image, head]
    return out


def fits_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    tensors = (q, k, v)
    return q.shape[2] >= FEWEST_QUERIES and all(
        t.dtype == torch.float32 and t.shape[3] == CHANNELS and t.stride(3) == 1 for t in tensors
    )


def by_kernel(kernel: ctypes.CDLL, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, queries, channels = q.shape
    keys, threads = k.shape[2], torch.get_num_threads()
    out = q.new_empty(batch, queries, heads, channels).transpose(1, 2)  # B H M d, the heads of a token side by side
    scratch = q.new_empty(threads * kernel.scratch_floats(keys))
    pointers = [t.data_ptr() for t in (q, k, v, out)]
    strides = [(c_long * 3)(*t.stride()[:3]) for t in (q, k, v, out)]
    itself = pointers[0] == pointers[1] == pointers[2] and q.shape == k.shape and q.stride() == k.stride() == v.stride()
    kernel.attention(
        *pointers, *strides, batch, heads, queries, keys, channels**-0.5, itself, scratch.data_ptr(), threads
    )  # fmt: skip
    return out
