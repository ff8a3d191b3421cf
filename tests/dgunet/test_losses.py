"""Losses against their definitions, their gradients, and their precision under autocast."""

import math

import pytest
import torch
from torch.nn import functional

from dgunet.losses import charbonnier, laplacian, stage_loss
from dgunet.metrics import psnr


def random_image(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def direct_laplacian(image):
    """The published computation: one 5×5 kernel and a grid with every second pixel filled."""
    taps = torch.tensor([0.05, 0.25, 0.4, 0.25, 0.05])
    kernel = torch.outer(taps, taps).repeat(image.shape[1], 1, 1, 1)

    def blurred(x):
        padded = functional.pad(x, (2, 2, 2, 2), mode="replicate")
        return functional.conv2d(padded, kernel, groups=image.shape[1])

    grid = torch.zeros_like(image)
    grid[:, :, ::2, ::2] = blurred(image)[:, :, ::2, ::2] * 4
    return image - blurred(grid)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 16)])
def test_laplacian_equals_the_published_computation(size):
    image = random_image(2, 3, *size)
    torch.testing.assert_close(laplacian(image), direct_laplacian(image), atol=1e-6, rtol=0)


def test_a_constant_image_has_no_laplacian_inside():
    assert laplacian(torch.full((1, 1, 16, 16), 0.5))[:, :, 4:-4, 4:-4].abs().max() < 1e-6


def test_charbonnier_by_hand():
    assert charbonnier(torch.tensor([0.0, 3.0])).item() == pytest.approx((1e-3 + math.sqrt(9 + 1e-6)) / 2, abs=1e-6)


def by_definition(estimates, clean, kind):
    def smooth(x, y):
        return ((x - y) ** 2 + 1e-6).sqrt().mean()

    def one(estimate):
        clamped = estimate.clamp(0, 1)
        if kind == "psnr":
            below = [10 * torch.log10(1 + 1e6 * ((e - c) ** 2).mean()) for e, c in zip(estimate, clean, strict=True)]
            return torch.stack(below).mean()
        if kind == "mse_clamped":
            return ((clamped - clean) ** 2).mean()
        if kind == "charbonnier_clamped":
            return smooth(clamped, clean)
        edges = smooth(direct_laplacian(estimate), direct_laplacian(clean)) if kind == "charbonnier_edge" else 0
        return smooth(estimate, clean) + 0.05 * edges

    return sum(one(estimate) for estimate in estimates)


@pytest.mark.parametrize("kind", ["charbonnier", "charbonnier_edge", "charbonnier_clamped", "mse_clamped", "psnr"])
def test_stage_loss_is_the_sum_over_all_estimates(kind):
    clean = random_image(2, 3, 12, 10)
    estimates = [3 * random_image(2, 3, 12, 10, seed=seed) - 1 for seed in (1, 2, 3)]
    torch.testing.assert_close(stage_loss(estimates, clean, kind=kind), by_definition(estimates, clean, kind))


def test_every_estimate_is_supervised():
    clean = random_image(1, 3, 8, 8)
    estimates = [random_image(1, 3, 8, 8, seed=seed).requires_grad_() for seed in (1, 2)]
    stage_loss(estimates, clean).backward()
    assert all(estimate.grad.any() for estimate in estimates)


def test_a_perfect_estimate_has_loss_epsilon_and_gradient_zero():
    clean = random_image(1, 3, 8, 8)
    estimate = clean.clone().requires_grad_()
    loss = stage_loss([estimate], clean)
    loss.backward()
    assert loss.item() == pytest.approx(1e-3 * 1.05, rel=1e-4)
    assert torch.equal(estimate.grad, torch.zeros_like(clean))


def test_autocast_does_not_change_the_loss():
    clean, estimates = random_image(1, 3, 8, 8), [random_image(1, 3, 8, 8, seed=1)]
    with torch.autocast("cpu", torch.bfloat16):
        under = stage_loss(estimates, clean)
    assert under.dtype == torch.float32
    assert torch.equal(under, stage_loss(estimates, clean))


def test_edge_weight_zero_is_the_charbonnier_loss():
    clean, estimates = random_image(1, 3, 8, 8), [random_image(1, 3, 8, 8, seed=1)]
    without = stage_loss(estimates, clean, edge_weight=0.0)
    assert torch.equal(without, stage_loss(estimates, clean, kind="charbonnier"))


def test_the_psnr_loss_is_the_distance_from_60_db():
    clean = random_image(2, 3, 12, 10)
    estimate = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    mean = sum(float(psnr(one[None], other[None])) for one, other in zip(estimate, clean, strict=True)) / 2
    assert float(stage_loss([estimate], clean, kind="psnr")) == pytest.approx(60 - mean, abs=1e-3)


def test_in_the_psnr_loss_an_image_with_small_errors_counts_as_much():
    clean = random_image(2, 3, 8, 8)
    errors = torch.tensor([0.01, 0.5])[:, None, None, None].expand_as(clean)
    estimate = (clean + errors).requires_grad_()
    stage_loss([estimate], clean, kind="psnr").backward()
    relative = (estimate.grad * errors).sum((1, 2, 3))  # of a relative change of all errors of an image
    torch.testing.assert_close(relative[0], relative[1], rtol=0.02, atol=0)


def test_the_psnr_loss_of_a_perfect_estimate_is_zero_and_so_is_its_gradient():
    clean = random_image(1, 3, 8, 8)
    estimate = clean.clone().requires_grad_()
    loss = stage_loss([estimate], clean, kind="psnr")
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(estimate.grad, torch.zeros_like(clean))


def test_an_unknown_loss_is_named():
    with pytest.raises(ValueError, match=r"must be one of charbonnier, .*is 'l1'"):
        # Without the check of annotations, as for a value of params.yaml.
        getattr(stage_loss, "__wrapped__", stage_loss)([random_image(1, 3, 8, 8)], random_image(1, 3, 8, 8), kind="l1")
