"""Run-length encoding of masks as COCO has it: runs of 0 and 1 in turn, column by column, beginning with zeros."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def run_lengths(inside: NDArray[np.bool_], x: int, y: int, height: int, width: int) -> list[int]:
    """Runs of a height x width mask that is `inside` (h, w) at column x and row y, and zero elsewhere."""
    h, w = inside.shape
    apart = np.zeros((w, h + 1), bool)  # column by column, a zero behind each
    apart[:, :h] = inside.T
    columns, rows = np.divmod(np.flatnonzero(np.diff(apart.ravel(), prepend=False)), h + 1)
    edges = (x + columns) * height + y + rows  # places in the whole mask where runs begin and end in turn, ascending
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])  # one ends where the next column's begins
    edges = np.delete(edges, np.concatenate((2 * joined + 1, 2 * joined + 2)))
    edges = np.concatenate(([0], edges, [height * width]))
    runs = np.diff(edges).tolist()
    return runs if runs[-1] else runs[:-1]


def compress_counts(runs: Iterable[int]) -> str:
    """COCO's string of runs: from the fourth on the difference to the one before the last, 5 bits a character."""
    counts, characters = list(runs), []
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits, value = value & 0x1F, value >> 5
            more = value != (-1 if bits & 0x10 else 0)  # the highest bit of the last character is the sign
            characters.append(chr(48 + (bits | 0x20 if more else bits)))
    return "".join(characters)
