"""Captions of generated scenes, in the manner of CLIP's prompt ensembles: template x state x name."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

TEMPLATES = (
    "{}",
    "{}.",
    "a photo of a {}.",
    "a close-up photo of a {}.",
    "a cropped photo of the {}.",
    "a photo of the {} for visual inspection.",
    "a bright photo of a {}.",
    "a dark photo of the {}.",
    "a blurry photo of a {}.",
    "a black and white photo of a {}.",
    "an image of one {} taken by a camera on the line.",
    "this is a {} in the scene of an industrial inspection.",
    "there is a {} in the picture.",
)
GENERIC_NAMES = ("object", "item", "surface", "product", "thing")
NORMAL_STATES = (
    *("{}", "flawless {}", "perfect {}", "unblemished {}", "normal {}", "intact {}", "clean {}"),
    *("{} without flaw", "{} without defect", "{} without damage"),
)
DAMAGED_STATES = (
    *("damaged {}", "defective {}", "broken {}", "abnormal {}", "flawed {}", "imperfect {}"),
    *("{} with a flaw", "{} with a defect", "{} with damage"),
)


@dataclass(frozen=True)
class Caption:
    """text, and what it claims: a family (None: any), a state, a kind of defect (None: any)."""

    text: str
    family: str | None
    damaged: bool
    defect: str | None = None


def random_captions(rng: np.random.Generator, families: Sequence[str], defects: Sequence[str | None]) -> list[Caption]:
    """One true caption an image; 40 % name no family, a third of the damaged ones name their defect."""
    return [random_caption(rng, family, defect) for family, defect in zip(families, defects, strict=True)]


def random_caption(rng: np.random.Generator, family: str, defect: str | None) -> Caption:
    named = rng.random() >= 0.4
    name = family if named else pick(rng, GENERIC_NAMES)
    specific = defect is not None and rng.random() < 1 / 3
    state = f"{{}} with a {defect}" if specific else pick(rng, NORMAL_STATES if defect is None else DAMAGED_STATES)
    text = with_filler(rng, pick(rng, TEMPLATES).format(state.format(name)))
    return Caption(text, family if named else None, defect is not None, defect if specific else None)


def state_pairs(rng: np.random.Generator, families: Sequence[str], n: int) -> tuple[list[str], list[str]]:
    """n pairs of captions that differ in the state only: normal ones, damaged ones. Names are mostly generic."""
    normal, damaged = [], []
    for _ in range(n):
        name = pick(rng, GENERIC_NAMES) if rng.random() < 0.75 else pick(rng, families)
        template = with_filler(rng, pick(rng, TEMPLATES))
        normal.append(template.format(pick(rng, NORMAL_STATES).format(name)))
        damaged.append(template.format(pick(rng, DAMAGED_STATES).format(name)))
    return normal, damaged


def with_filler(rng: np.random.Generator, text: str) -> str:
    """Sometimes up to 12 meaningless words before the caption: learned prompts stand in that place later."""
    words = int(rng.integers(1, 13)) if rng.random() < 0.25 else 0
    return "X " * words + text


def pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def tokens(texts: Sequence[str]) -> Tensor:
    """CLIP token ids (n, T), cut behind the longest text."""
    ids = torch.stack([token_row(text) for text in texts])
    return ids[:, : int(ids.argmax(-1).max()) + 1]


@lru_cache(maxsize=100_000)
def token_row(text: str) -> Tensor:
    return tokenizer()(text)[0]


@lru_cache(maxsize=1)
def tokenizer():  # type: ignore[no-untyped-def]
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=77)


def all_phrases(families: Sequence[str]) -> list[str]:
    """Texts that together contain every word of every caption."""
    from models.embedded.generator import DEFECTS

    states = [state.format("X") for state in NORMAL_STATES + DAMAGED_STATES]
    return [*TEMPLATES, *GENERIC_NAMES, *states, *families, *(f"with a {defect}" for defect in DEFECTS)]
