"""PSNR and SSIM give the field's numbers: against torchmetrics, by hand, and on published test sets."""

import math

import pytest
import torch
from factories import image_set
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from dgunet.images import read_image
from dgunet.metrics import luma, psnr, quantise_8bit, ssim
from dgunet.tensors import to_tensor


def images(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pairs(name: str, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    folder = image_set(name)
    names = sorted(path.name for path in (folder / "input").iterdir())[:count]
    return [(to_tensor(read_image(folder / "input" / n)), to_tensor(read_image(folder / "target" / n))) for n in names]


def test_psnr_of_a_known_error_is_known():
    clean = torch.full((2, 3, 4, 5), 0.5, dtype=torch.float64)
    restored = clean + torch.tensor([0.1, 0.01])[:, None, None, None]
    torch.testing.assert_close(psnr(restored, clean), torch.tensor([20.0, 40.0], dtype=torch.float64))


def test_psnr_is_that_of_torchmetrics():
    restored, clean = images(0, 1, 3, 33, 47), images(1, 1, 3, 33, 47)
    expected = peak_signal_noise_ratio(restored.double(), clean.double(), data_range=1.0)
    torch.testing.assert_close(psnr(restored, clean)[0], expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_other_implementations_where_the_window_fits(channels):
    clean = images(0, 1, channels, 40, 52).double()
    restored = clean + 0.3 * images(1, 1, channels, 40, 52)
    _, reference = structural_similarity_index_measure(restored, clean, data_range=1.0, return_full_image=True)
    torch.testing.assert_close(ssim(restored, clean)[0], reference[..., 5:-5, 5:-5].mean(), atol=1e-9, rtol=0)
    _, reference = structural_similarity(
        *(image[0].permute(1, 2, 0).numpy() for image in (restored, clean)),
        **{"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0},
        **{"channel_axis": 2, "full": True},
    )
    assert ssim(restored, clean).item() == pytest.approx(reference[5:-5, 5:-5].mean(), abs=1e-9)


def test_every_image_of_a_batch_is_measured_on_its_own():
    restored, clean = images(0, 3, 3, 20, 24), images(1, 3, 3, 20, 24)
    for metric in (psnr, ssim):
        one_by_one = torch.cat([metric(a[None], b[None]) for a, b in zip(restored, clean, strict=True)])
        torch.testing.assert_close(metric(restored, clean), one_by_one)


def test_identical_images_have_infinite_psnr_and_ssim_one():
    clean = images(0, 2, 3, 16, 16)
    assert psnr(clean, clean).tolist() == [math.inf, math.inf]
    torch.testing.assert_close(ssim(clean, clean), torch.ones(2, dtype=torch.float64))


def test_float64_holds_differences_that_float32_would_lose():
    clean = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64)
    assert psnr(clean + 1e-9, clean).item() == pytest.approx(180, abs=1e-5)


def test_cropped_borders_do_not_count():
    clean = images(0, 1, 3, 30, 40)
    restored = clean.clone()
    restored[:, :, :4] = restored[..., -4:] = 0
    assert psnr(restored, clean, crop=4).item() == math.inf
    assert psnr(restored, clean, crop=3).item() < math.inf
    assert ssim(restored, clean, crop=4).item() == pytest.approx(1)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 30), (11, 11)])
def test_images_smaller_than_the_window_still_have_an_ssim(size):
    clean = images(0, 1, 1, *size)
    assert ssim(clean, clean).item() == pytest.approx(1)
    assert -1 <= ssim(1 - clean, clean).item() < 1


def test_luma_is_matlabs_rgb2ycbcr():
    colours = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    grey_levels = luma(colours[:, :, None, None])[:, 0, 0, 0] * 255
    expected = torch.tensor([16, 235, 81.481, 144.553, 40.966], dtype=torch.float64)
    torch.testing.assert_close(grey_levels, expected)


def test_quantising_rounds_to_grey_levels_and_clips():
    image = torch.tensor([-1, 0.4 / 255, 0.6 / 255, 100 / 255, 1.5]).view(1, 1, 1, 5)
    torch.testing.assert_close(quantise_8bit(image).ravel() * 255, torch.tensor([0.0, 0, 1, 100, 255]))


def test_images_that_cannot_be_compared_are_refused():
    with pytest.raises((ValueError, TypeError), match=r"shapes differ|clean"):  # TypeError: where types are enforced
        psnr(images(0, 1, 3, 8, 8)[:, :1], images(0, 1, 1, 8, 7))
    with pytest.raises(ValueError, match="crop=4 does not leave"):
        psnr(images(0, 1, 3, 8, 9), images(0, 1, 3, 8, 9), crop=4)


def test_the_known_value_of_gopro_sample():
    values = [psnr(degraded, clean).item() for degraded, clean in pairs("GoPro_sample", 2)]
    assert sum(values) / 2 == pytest.approx(24.58, abs=0.005)


@pytest.mark.slow
def test_the_known_values_of_rain100l_and_polyu():
    rain = [(luma(degraded.double()), luma(clean.double())) for degraded, clean in pairs("Rain100L", 100)]
    assert sum(psnr(*pair).item() for pair in rain) / 100 == pytest.approx(26.901, abs=0.0005)
    assert sum(ssim(*pair).item() for pair in rain) / 100 == pytest.approx(0.8384, abs=0.00005)
    cropped = [(degraded[..., :-1, :-1], clean[..., :-1, :-1]) for degraded, clean in rain]  # to 480x320
    assert sum(psnr(*pair).item() for pair in cropped) / 100 == pytest.approx(26.903, abs=0.0005)
    polyu = [psnr(*pair).item() for pair in pairs("PolyU", 100)]
    assert sum(polyu) / 100 == pytest.approx(35.97, abs=0.005)
