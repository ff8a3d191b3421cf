"""Tiles give the image restored as a whole, with statistics of the image and over windows, whatever the tile."""

import inspect
import shutil
from typing import get_args

import numpy as np
import pytest
import torch

from dgunet import tiling
from dgunet.config import LocalStatistics, StatisticsKind
from dgunet.inference import _local, restore
from dgunet.network import DGUNet, DGUNetConfig, fusion

BLIND_SHARED = DGUNetConfig(3, 8, 4, 4, 4, share_stages=True)
BLIND_SEPARATE = DGUNetConfig(3, 8, 4, 4, 3, share_stages=False)
SENSING = DGUNetConfig(1, 8, 4, 4, 3, sensing_ratio_percent=25)
SMALL = DGUNetConfig(3, 4, 2, 2, 2)
ALL_LOCAL = LocalStatistics(96, get_args(StatisticsKind))
HEIGHT, WIDTH = 141, 235


@pytest.fixture(autouse=True)
def exact_projection(monkeypatch):
    """Tiles solve the projection in float64. The whole image does so in float32, to some 4e-5 of what it is here."""
    monkeypatch.setattr(fusion, "_exact_type", lambda device: torch.float64)


def network(config: DGUNetConfig, local: LocalStatistics | None = None) -> DGUNet:
    """A network whose stages change the image much: the initial ones change almost nothing."""
    model = DGUNet.with_seed(config, 0).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith(("end.correct.weight", "last.tail.weight")):
                weights.mul_(100)
            elif "squeeze" in name or "excite" in name:
                weights.mul_(8)
            elif name.endswith("bias"):
                weights.add_(0.1 * torch.randn(weights.shape, generator=random))
    model.local_statistics = local
    return model


def photo(channels: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Noise on a bright half and a dark one, so that the statistics of tiles differ from those of the image."""
    noise = np.random.default_rng(0).random((height, width, channels), np.float32)
    return np.where(np.arange(width)[:, None] < width // 2, 0.2 * noise, 0.4 + 0.6 * noise)


def largest(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("local", [None, ALL_LOCAL], ids=["whole", "local"])
@pytest.mark.parametrize("config", [BLIND_SHARED, BLIND_SEPARATE, SENSING], ids=["same", "separate", "sensing"])
def test_tiles_give_the_image_restored_as_a_whole(config, local):
    model, original = network(config, local), photo(config.image_channels)
    whole = restore(model, original)
    assert largest(whole, original) > 0.3, "the network changes the image"
    for tile in (96, 160):
        tiled = restore(model, original, tile=tile, overlap=32)
        assert largest(tiled, whole) < 1e-5
    assert largest(restore(model, original, tile=96, overlap=32, statistics="tile"), whole) > 1e-2


@pytest.mark.parametrize("config", [BLIND_SHARED, BLIND_SEPARATE, SENSING], ids=["same", "separate", "sensing"])
def test_tiles_agree_with_a_projection_in_float32_to_90_db(config, monkeypatch):
    monkeypatch.undo()  # exact_projection
    model, original = network(config), photo(config.image_channels)
    error = restore(model, original, tile=96, overlap=32) - restore(model, original)
    assert -10 * np.log10(np.square(error, dtype=np.float64).mean()) > 90


def test_the_features_between_stages_may_lie_in_files(monkeypatch):
    model, original = network(BLIND_SHARED), photo(3)
    in_memory = restore(model, original, tile=96, overlap=32)
    monkeypatch.setattr(tiling, "MEMORY_LIMIT", 0)
    np.testing.assert_array_equal(restore(model, original, tile=96, overlap=32), in_memory)


def test_a_smaller_halo_would_not_be_exact(monkeypatch):
    model, original = network(SMALL), photo(3)
    whole = restore(model, original)
    exact = largest(restore(model, original, tile=96, overlap=32), whole)
    monkeypatch.setattr(tiling, "HALO", 32)
    assert largest(restore(model, original, tile=96, overlap=32), whole) > 10 * exact


def test_windows_larger_than_the_image_are_the_image():
    original = photo(3)
    whole = restore(network(BLIND_SEPARATE), original)
    wide = LocalStatistics(32 * 31, get_args(StatisticsKind))
    assert largest(restore(network(BLIND_SEPARATE, wide), original), whole) < 1e-5
    for kind in get_args(StatisticsKind):
        model = network(BLIND_SEPARATE, LocalStatistics(96, (kind,)))
        assert largest(restore(model, original), whole) > 1e-3, kind
        np.testing.assert_array_equal(restore(model, original, statistics="whole"), whole)


def test_a_window_sees_the_pixels_around_it_and_no_others():
    model = network(BLIND_SHARED, LocalStatistics(96, get_args(StatisticsKind)))
    original = photo(3, 64, 1600)
    other = original.copy()
    other[:, 1500:] = 0
    first, second = restore(model, original, num_stages=1), restore(model, other, num_stages=1)
    # Five statistics, each of a window and its neighbours between which is interpolated, and the halo of a stage.
    reach = 5 * 80 + 64
    assert largest(first[:, : 1500 - reach], second[:, : 1500 - reach]) == 0
    assert largest(first[:, 1400:1500], second[:, 1400:1500]) > 1e-3


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_an_earlier_stage_is_the_estimate_of_the_network(num_stages):
    model, original = network(BLIND_SHARED), photo(3, 64, 136)
    with torch.inference_mode():
        estimate = model(torch.from_numpy(original).permute(2, 0, 1)[None])[num_stages - 1]
    expected = estimate[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(restore(model, original, num_stages=num_stages), expected, atol=1e-6)
    np.testing.assert_allclose(
        restore(model, original, num_stages=num_stages, tile=96, overlap=32), expected, atol=1e-5
    )


@pytest.mark.parametrize(("config", "channels"), [(SMALL, 1), (SMALL, 4), (DGUNetConfig(1, 4, 2, 2, 2), 3)])
@pytest.mark.parametrize("self_ensemble", [False, True])
def test_gray_colour_alpha_and_self_ensemble_in_tiles(config, channels, self_ensemble):
    model, original = network(config), photo(channels, 72, 140)
    whole = restore(model, original, self_ensemble=self_ensemble)
    assert largest(restore(model, original, tile=96, overlap=32, self_ensemble=self_ensemble), whole) < 1e-5
    in_bytes = (original * 255).astype(np.uint8)
    whole = restore(model, in_bytes, self_ensemble=self_ensemble)
    tiled = restore(model, in_bytes, tile=96, overlap=32, self_ensemble=self_ensemble)
    assert np.abs(whole.astype(int) - tiled).max() <= 1 and (whole != tiled).mean() < 1e-3


@pytest.mark.parametrize("size", [(1, 300), (300, 5), (97, 96), (225, 1)])
def test_narrow_images_and_tiles_with_few_rows(size):
    for config in (BLIND_SHARED, SENSING):
        model, original = network(config), photo(config.image_channels, *size)
        tiled = restore(model, original, tile=96, overlap=32)
        assert largest(tiled, restore(model, original)) < 1e-5


def test_progress_counts_tiles_and_passes():
    calls: list[tuple[int, int]] = []
    restore(network(BLIND_SEPARATE), photo(3), tile=96, overlap=32, progress=lambda *counts: calls.append(counts))
    passes = (5 + 1) + (6 + 1) + (2 + 1)  # statistics of the three stages, and once more for what they give
    assert calls == [(number, 6 * passes) for number in range(1, 6 * passes + 1)]


def test_too_little_space_for_files_is_refused_before_work_begins(monkeypatch):
    monkeypatch.setattr(tiling, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    calls: list[tuple[int, int]] = []
    with pytest.raises(ValueError, match=r"temporary files, and .* has 0.0 GB free: .* TMPDIR"):
        restore(network(BLIND_SHARED), photo(3), tile=96, overlap=32, progress=lambda *counts: calls.append(counts))
    assert not calls


@pytest.mark.parametrize(("choice", "message"), [("local", "no local"), ("median", "one of whole, local, tile")])
def test_statistics_that_there_are_not(choice, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(_local)(network(SMALL), choice)


@pytest.mark.parametrize("num_stages", [0, 5])
def test_stages_that_there_are_not(num_stages):
    with pytest.raises(ValueError, match=f"stages 1 to 4, not {num_stages}"):
        restore(network(BLIND_SHARED), photo(3, 8, 8), num_stages=num_stages)


@pytest.mark.parametrize(("window", "of"), [(64, ("norm",)), (0, ("norm",)), (96, ()), (96, ("norm", "norm"))])
def test_windows_that_are_not_valid(window, of):
    with pytest.raises(ValueError, match=r"^(window: must be an odd multiple of 32|of: must name some of norm)"):
        LocalStatistics(window, of)
