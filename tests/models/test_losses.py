"""The published losses, stated again without shortcuts."""

import torch

from models.losses import dice_loss, focal_loss


def test_focal_loss_is_the_published_formula_for_every_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    abnormal = torch.rand(2, 5, 5, generator=generator)
    masks = (torch.rand(2, 5, 5, generator=generator) > 0.7).float()
    total = 0.0
    for p, t in zip(abnormal.flatten().tolist(), masks.flatten().tolist(), strict=True):
        one_hot = [min(max(1 - t, 1e-5), 1 - 1e-5), min(max(t, 1e-5), 1 - 1e-5)]
        pt = torch.tensor(one_hot[0] * (1 - p) + one_hot[1] * p + 1e-5)
        total += float(-((1 - pt) ** 2) * pt.log())
    torch.testing.assert_close(
        float(focal_loss(abnormal, 1 - abnormal, masks)), total / masks.numel(), rtol=1e-5, atol=0
    )


def test_dice_loss_is_a_mean_over_images() -> None:
    probability, target = torch.rand(3, 4, 4), (torch.rand(3, 4, 4) > 0.5).float()
    each = [1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1) for p, t in zip(probability, target, strict=True)]
    torch.testing.assert_close(dice_loss(probability, target, by_row=False), torch.stack(each).mean())


def test_dice_loss_of_one_image_is_a_mean_over_its_rows_as_published() -> None:
    probability, target = torch.rand(1, 4, 4), (torch.rand(1, 4, 4) > 0.5).float()
    rows = zip(probability[0], target[0], strict=True)
    each = [1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1) for p, t in rows]
    torch.testing.assert_close(dice_loss(probability, target, by_row=True), torch.stack(each).mean())
