"""Training of the published code, and that computing features once changes nothing."""

import copy

import numpy as np
import pytest
import torch

from models.losses import LOCAL_WEIGHT, image_loss, local_loss, patch_probabilities
from models.maps import upsample
from models.prompts import PromptLearner
from models.training import Features, extract_features, make_optimizer, train_prompts, validation_loss
from tests.models.conftest import DATA, DPAM_LAYERS, IMAGE_SIZE

GOLDEN = np.load(DATA / "small_train.npz", allow_pickle=False)


def prompts_from(backbone, prefix: str) -> PromptLearner:
    prompts = PromptLearner(backbone)
    prompts.load_state_dict({name: torch.from_numpy(GOLDEN[f"{prefix}/{name}"]) for name in prompts.state_dict()})
    return prompts


def test_two_steps_are_the_published_ones(small_backbone) -> None:
    prompts = prompts_from(small_backbone, "init")
    features = extract_features(small_backbone, torch.from_numpy(GOLDEN["images"]), (6,), DPAM_LAYERS)
    masks, labels = torch.from_numpy(GOLDEN["masks"])[:, 0], torch.from_numpy(GOLDEN["labels"])
    optimizer = make_optimizer(prompts)
    for step in range(2):
        (loss,) = train_prompts(prompts, features, masks, labels, [[0, 1, 2, 3]], optimizer=optimizer)
        np.testing.assert_allclose(loss.parts, GOLDEN[f"step{step}/parts"], rtol=3e-6)
        assert loss.local == pytest.approx(float(GOLDEN[f"step{step}/local"]), rel=3e-6)
        assert loss.image_ce == pytest.approx(float(GOLDEN[f"step{step}/image_ce"]), rel=3e-6)
        for name, value in prompts.state_dict().items():
            np.testing.assert_allclose(value.numpy(), GOLDEN[f"step{step}/param/{name}"], atol=1e-5, rtol=0)


def train_recomputing(prompts, backbone, images, masks, labels, batches, lr=1e-3) -> list[float]:
    """The slow way: the vision tower runs at every step."""
    optimizer = torch.optim.Adam(prompts.parameters(), lr=lr, betas=(0.5, 0.999))
    losses = []
    for batch in batches:
        with torch.no_grad():
            features = backbone.encode_image(images[batch], (4, 6), DPAM_LAYERS)
        text = prompts.text_features()
        loss = image_loss(features.image / features.image.norm(dim=-1, keepdim=True), text, labels[batch])
        for patches in features.patches:
            p = patch_probabilities(patches, text).movedim(-1, 1).unflatten(-1, (backbone.grid, backbone.grid))
            maps = upsample(p, IMAGE_SIZE)
            loss = loss + LOCAL_WEIGHT * local_loss(maps[:, 1], maps[:, 0], masks[batch], len(batch) == 1).total()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


@pytest.fixture(scope="module")
def material() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(9, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    labels = torch.arange(9) % 2
    masks = torch.zeros(9, IMAGE_SIZE, IMAGE_SIZE)
    masks[labels == 1, 20:50, 30:70] = 1
    return images, masks, labels


def test_two_epochs_from_cached_features_are_those_that_recompute_them(small_backbone, material) -> None:
    images, masks, labels = material
    order = [torch.randperm(9, generator=torch.Generator().manual_seed(epoch)) for epoch in range(2)]
    batches = [batch.tolist() for epoch in order for batch in epoch.split(4)]  # the last one of each holds one image
    cached = PromptLearner(small_backbone, generator=torch.Generator().manual_seed(0))
    slow = copy.deepcopy(cached)
    object.__setattr__(slow, "backbone", small_backbone)
    features = extract_features(small_backbone, images, (4, 6), DPAM_LAYERS, batch_size=4)
    losses = train_prompts(cached, features, masks, labels, batches)
    slow_losses = train_recomputing(slow, small_backbone, images, masks, labels, batches)
    np.testing.assert_allclose(losses, slow_losses, rtol=1e-5)  # Adam's first steps magnify the rounding of a batch
    for ours, theirs in zip(cached.state_dict().values(), slow.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_images_without_ground_truth_train_on_the_image_loss_alone(small_backbone, material) -> None:
    images, masks, labels = material
    features = extract_features(small_backbone, images, (6,), DPAM_LAYERS)
    prompts = PromptLearner(small_backbone, generator=torch.Generator().manual_seed(0))
    nothing, some = torch.zeros(9, dtype=torch.bool), torch.arange(9) < 2
    (without,) = train_prompts(prompts, features, masks, labels, [list(range(9))], lr=0.0, has_mask=nothing)
    (partly,) = train_prompts(prompts, features, masks, labels, [list(range(9))], lr=0.0, has_mask=some)
    (first_two,) = train_prompts(prompts, features, masks, labels, [[0, 1]], lr=0.0)
    assert (without.local, without.parts) == (0, ())
    assert without == pytest.approx(without.image_ce)
    assert partly.image_ce == pytest.approx(without.image_ce)
    assert partly.local == pytest.approx(first_two.local, rel=1e-6)


def test_one_image_with_ground_truth_among_others_is_no_batch_of_one(small_backbone, material) -> None:
    """The published row-wise dice belongs to a last batch of one image alone."""
    images, masks, labels = material
    features = extract_features(small_backbone, images[:4], (6,), DPAM_LAYERS)
    prompts = PromptLearner(small_backbone, generator=torch.Generator().manual_seed(0))
    one = torch.arange(4) == 1
    (partly,) = train_prompts(prompts, features, masks, labels, [[0, 1, 2]], lr=0.0, has_mask=one)
    (twice,) = train_prompts(prompts, features, masks, labels, [[1, 1]], lr=0.0)
    (alone,) = train_prompts(prompts, features, masks, labels, [[1]], lr=0.0)
    assert partly.local == pytest.approx(twice.local, rel=1e-6)
    assert partly.local != pytest.approx(alone.local, rel=1e-3)


def test_the_tower_is_not_changed_by_training(small_backbone, material) -> None:
    images, masks, labels = material
    before = {name: value.clone() for name, value in small_backbone.clip.state_dict().items()}
    features = extract_features(small_backbone, images[:4], (6,), DPAM_LAYERS)
    train_prompts(PromptLearner(small_backbone), features, masks, labels, [[0, 1, 2, 3]])
    assert all(torch.equal(value, before[name]) for name, value in small_backbone.clip.state_dict().items())
    assert not any(p.requires_grad for p in small_backbone.parameters())


def test_features_do_not_depend_on_the_batch_size(small_backbone, material) -> None:
    images, _, _ = material
    one, many = (extract_features(small_backbone, images, (6,), DPAM_LAYERS, batch_size=n) for n in (1, 9))
    assert isinstance(one, Features)
    assert len(one) == 9
    torch.testing.assert_close(one.patches[0], many.patches[0], atol=2e-6, rtol=0)


def test_arrays_a_channel_axis_and_grey_masks_are_the_same_ground_truth(small_backbone, material) -> None:
    images, masks, labels = material
    features = extract_features(small_backbone, images.numpy(), (6,), DPAM_LAYERS)
    prompts = PromptLearner(small_backbone, generator=torch.Generator().manual_seed(0))

    def losses(masks: object, labels: object) -> list[float]:
        return train_prompts(prompts, features, masks, labels, [[0, 1, 2], [3]], lr=0.0)

    expected = losses(masks, labels)
    assert losses(masks[:, None].numpy(), labels.tolist()) == expected
    assert losses((masks * 255).to(torch.uint8), labels.numpy()) == expected
    assert losses(masks.bool(), labels.bool()) == expected
    for wrong in (masks[:, :, :50], masks[:5], masks[:, None].expand(-1, 2, -1, -1)):
        with pytest.raises(ValueError, match="masks of shape"):
            losses(wrong, labels)


def test_a_validation_loss_does_not_depend_on_its_batches(small_backbone, material) -> None:
    images, masks, labels = material
    features = extract_features(small_backbone, images, (6,), DPAM_LAYERS)
    prompts = PromptLearner(small_backbone, generator=torch.Generator().manual_seed(0))
    has_mask = torch.arange(9) % 4 == 0  # three of nine
    found = [
        validation_loss(prompts, features, masks, labels, has_mask, torch.arange(9), batch_size)
        for batch_size in (1, 2, 8, 9)
    ]
    np.testing.assert_allclose(found, found[-1], rtol=1e-6)
    (whole,) = train_prompts(prompts, features, masks, labels, [list(range(9))], lr=0.0, has_mask=has_mask)
    assert found[-1] == pytest.approx(whole, rel=1e-6)
    nothing = torch.zeros(9).bool()
    assert validation_loss(prompts, features, masks, labels, nothing, torch.arange(9)) == pytest.approx(whole.image_ce)
