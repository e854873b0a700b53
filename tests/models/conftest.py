"""The small architecture of the golden values, with its weights and prompts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models import Detector
from models.backbone import Backbone
from models.prompts import PromptLearner
from tests.models import seeded

DATA = Path(__file__).parent / "data"
FEATURE_LAYERS, DPAM_LAYERS, IMAGE_SIZE = (2, 3, 4, 6), 4, 96


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """What the published code computes on the small architecture (see seeded.SMALL)."""
    return dict(np.load(DATA / "small.npz", allow_pickle=False))


@pytest.fixture(scope="session")
def golden_images(golden: dict[str, np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(golden["images"])


@pytest.fixture(scope="session")
def small_backbone() -> Backbone:
    return seeded.backbone(seeded.SMALL, IMAGE_SIZE)


@pytest.fixture
def small_prompts(small_backbone: Backbone) -> PromptLearner:
    prompts = PromptLearner(small_backbone)
    prompts.load_official(DATA / "small_prompts.pth")
    return prompts


@pytest.fixture
def small_detector(small_backbone: Backbone, small_prompts: PromptLearner) -> Detector:
    return Detector.build(small_backbone, small_prompts, IMAGE_SIZE, (6,), DPAM_LAYERS)


def relative_error(found: torch.Tensor, expected: np.ndarray) -> float:
    expected_tensor = torch.from_numpy(expected).reshape(found.shape)
    return float((found - expected_tensor).norm() / expected_tensor.norm())
