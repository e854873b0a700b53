"""A stream of batches gives what the detector gives image by image, however its memory makes it split them."""

import numpy as np
import pytest
import torch

from models.preprocess import normalise
from models.stream import batch_size_for, launch, score_stream
from tests.models.conftest import IMAGE_SIZE

PIXELS = np.random.default_rng(0).integers(0, 256, (7, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)


def scored_alone(detector) -> tuple[np.ndarray, np.ndarray]:
    results = [detector.score_grids(normalise(one[None])) for one in PIXELS]
    return torch.cat([score for score, _ in results]).numpy(), torch.cat([grid for _, grid in results]).numpy()


@pytest.mark.parametrize("lengths", [(7,), (1,) * 7, (3, 3, 1), (0, 5, 0, 2)])
def test_results_come_in_order_one_a_batch(small_detector, lengths: tuple[int, ...]) -> None:
    batches = np.split(PIXELS, np.cumsum(lengths)[:-1])
    results = list(score_stream(small_detector, batches))
    scores, grids = scored_alone(small_detector)
    assert [len(result.scores) for result in results] == list(lengths)
    np.testing.assert_allclose(np.concatenate([result.scores for result in results]), scores, atol=1e-6, rtol=0)
    np.testing.assert_allclose(np.concatenate([result.grids for result in results]), grids, atol=1e-6, rtol=0)


def test_a_batch_is_read_while_the_one_before_is_not_yet_asked_for(small_detector) -> None:
    read = []
    batches = (read.append(number) or PIXELS[:1] for number in range(3))
    stream = score_stream(small_detector, batches)
    next(stream)
    assert read == [0, 1]


def test_no_batch_gives_no_result(small_detector) -> None:
    assert list(score_stream(small_detector, [])) == []


@pytest.fixture
def cramped_detector(small_detector, monkeypatch: pytest.MonkeyPatch):
    """A detector whose memory holds two images; `tried` lists the lengths of what it was given."""
    score_grids, tried = small_detector.score_grids, []

    def limited(images):
        tried.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("no memory")
        return score_grids(images)

    monkeypatch.setattr(small_detector, "score_grids", limited)
    monkeypatch.setattr(small_detector, "tried", tried, raising=False)
    return small_detector


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_the_next_ones_start_there(cramped_detector) -> None:
    expected, _ = scored_alone(cramped_detector)
    cramped_detector.tried.clear()
    first, second = score_stream(cramped_detector, [PIXELS[:5], PIXELS[5:]])
    assert cramped_detector.tried == [5, 3, 2, 2, 1, 2]
    np.testing.assert_allclose(np.concatenate([first.scores, second.scores]), expected, atol=1e-6, rtol=0)


def test_one_image_that_does_not_fit_is_an_error(small_detector, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(images):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(small_detector, "score_grids", full)
    with pytest.raises(torch.OutOfMemoryError):
        launch(small_detector, torch.from_numpy(PIXELS))


def test_a_batch_holds_as_many_images_as_their_activations_allow(small_detector) -> None:
    tokens, width = small_detector.positions.shape
    assert batch_size_for(small_detector) == min(256, 1_600_000 // (tokens * width))
    small_detector.positions = small_detector.positions.repeat(40, 40)
    assert batch_size_for(small_detector) == 1
