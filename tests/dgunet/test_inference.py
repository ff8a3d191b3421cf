"""`restore` keeps shape, type and alpha, and its tiles leave no visible borders."""

import inspect
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dgunet
from dgunet.inference import _check, _cuts, restore
from dgunet.network import DGUNet, DGUNetConfig
from dgunet.tensors import to_array, to_tensor

SMALL = DGUNetConfig(width=4, growth=2, head_growth=2, num_stages=2)


class FakeNetwork(DGUNet):
    """Applies `action` to the degraded image and records the shapes of its inputs."""

    def __init__(self, action=lambda image: image, image_channels: int = 3) -> None:
        nn.Module.__init__(self)
        self.config, self.sensing = DGUNetConfig(image_channels=image_channels), None
        self.action = action
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, degraded: Tensor) -> tuple[Tensor, ...]:
        self.shapes.append(tuple(degraded.shape))
        return torch.zeros_like(degraded), self.action(degraded)


def network(config: DGUNetConfig = SMALL) -> DGUNet:
    return DGUNet.with_seed(config, 0).eval()


def image(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    random = np.random.default_rng(0)
    if dtype == np.float32:
        return random.random(shape, np.float32)
    return random.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 2), (9, 7, 3), (9, 7, 4)])
@pytest.mark.parametrize("image_channels", [1, 3])
def test_the_identity_keeps_shape_type_and_values(image_channels, shape, dtype):
    original = image(*shape, dtype=dtype)
    restored = restore(FakeNetwork(image_channels=image_channels), original)
    assert restored.dtype == dtype
    rounding = 1e-7 if dtype == np.float32 else 0  # of the mean over three equal channels
    np.testing.assert_allclose(restored, original, atol=rounding, rtol=0)
    assert not np.shares_memory(restored, original)


@pytest.mark.parametrize("size", [(200, 131), (96, 97), (97, 300), (1, 500), (385, 385)])
def test_tiles_of_the_identity_join_to_the_last_bit(size):
    original = image(*size, 3, dtype=np.float32)
    restored = restore(FakeNetwork(), original, tile=96, statistics="tile", overlap=32)
    np.testing.assert_array_equal(restored, original)


def test_tiles_that_differ_are_blended_gradually():
    values = iter(np.linspace(0, 1, 5))
    model = FakeNetwork(lambda degraded: torch.full_like(degraded, next(values)))
    restored = restore(model, image(20, 300, 3, dtype=np.float32), tile=96, statistics="tile", overlap=32)
    assert restored.min() == 0 and restored.max() == 1
    assert np.abs(np.diff(restored, axis=1)).max() < 0.05
    np.testing.assert_array_equal(restored, np.broadcast_to(restored[:1, :, :1], restored.shape))


def test_the_edge_of_a_tile_inside_the_image_is_not_used():
    def spoil_edges(degraded: Tensor) -> Tensor:
        spoilt = degraded.clone()
        spoilt[..., :4] = spoilt[..., -4:] = spoilt[..., :4, :] = spoilt[..., -4:, :] = 9
        return spoilt

    original = image(230, 270, 3, dtype=np.float32)
    restored = restore(FakeNetwork(spoil_edges), original, tile=96, statistics="tile", overlap=32)
    np.testing.assert_array_equal(restored[4:-4, 4:-4], original[4:-4, 4:-4])


@pytest.mark.parametrize(("tile", "overlap"), [(96, 32), (512, 64), (192, 64), (320, 96)])
def test_tiles_cover_any_length_overlap_and_keep_their_size(tile, overlap):
    for length in range(1, 2000, 7):
        cuts = _cuts(length, tile, overlap)
        assert cuts[0].start == 0
        assert cuts[-1].stop == length
        assert all(cut.start % 32 == 0 and cut.stop - cut.start < tile + 32 for cut in cuts)
        assert all(a.stop - b.start >= overlap for a, b in pairwise(cuts))
        middles = [(a.stop + b.start) // 2 for a, b in pairwise(cuts)]
        assert all(b - a >= overlap // 2 for a, b in pairwise(middles)), length


def test_only_large_images_are_tiled():
    model = FakeNetwork()
    restore(model, image(1024, 1024, 3))
    assert model.shapes == [(1, 3, 1024, 1024)]
    model.shapes.clear()
    restore(model, image(1024, 1025, 3), statistics="tile")
    assert max(side for shape in model.shapes for side in shape[2:]) < 512 + 32


def test_tiles_with_their_own_statistics_are_close_to_the_whole_image():
    model, original = network(), image(160, 224, 3, dtype=np.float32)
    whole, tiled = restore(model, original), restore(model, original, tile=96, statistics="tile", overlap=32)
    assert np.abs(whole - original).mean() > 10 * np.abs(whole - tiled).mean()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 8), (17, 33)])
@pytest.mark.parametrize("ratio", [None, 10])
def test_any_size_is_restored_by_both_families(size, ratio):
    config = SMALL if ratio is None else DGUNetConfig(1, 4, 2, 2, 2, sensing_ratio_percent=ratio)
    assert restore(network(config), image(*size, 3)).shape == (*size, 3)


def test_a_small_image_is_the_output_of_the_network_itself():
    model, original = network(), image(33, 47, 3, dtype=np.float32)
    with torch.inference_mode():
        np.testing.assert_array_equal(restore(model, original), to_array(model(to_tensor(original))[-1]))


def test_a_sensing_network_in_tiles_measures_the_blocks_of_the_whole_image():
    config = DGUNetConfig(1, 4, 2, 2, 2, sensing_ratio_percent=25, full_image=False)
    model, original = network(config), image(200, 168, 1, dtype=np.float32)
    tiled = restore(model, original, tile=96, overlap=32)
    np.testing.assert_allclose(tiled, restore(model, original), atol=1e-5)


def test_a_colour_network_restores_gray_as_the_mean_of_three_equal_channels():
    weights = torch.tensor([1.0, 2.0, 6.0])[:, None, None]
    restored = restore(FakeNetwork(lambda degraded: degraded * weights), image(8, 9, dtype=np.float32))
    np.testing.assert_allclose(restored, 3 * image(8, 9, dtype=np.float32), rtol=1e-6)


def test_a_gray_network_restores_each_colour_separately():
    model = FakeNetwork(image_channels=1)
    restore(model, image(8, 9, 3))
    assert model.shapes == [(1, 1, 8, 9)] * 3


def test_alpha_is_neither_changed_nor_an_input():
    model, original = FakeNetwork(torch.zeros_like), image(8, 9, 4)
    restored = restore(model, original)
    np.testing.assert_array_equal(restored[..., 3], original[..., 3])
    assert not restored[..., :3].any()
    assert model.shapes == [(1, 3, 8, 9)]


def test_integers_are_clipped_and_floats_are_not():
    model = FakeNetwork(lambda degraded: degraded * 4 - 1)
    assert restore(model, image(8, 9, 3)).max() == 255
    assert restore(model, image(8, 9, 3, dtype=np.float32)).max() > 2


def test_self_ensemble_averages_over_the_eight_symmetries():
    ramp = torch.linspace(0, 1, 12)
    restored = restore(
        FakeNetwork(lambda degraded: degraded + ramp), image(12, 12, 3, dtype=np.float32), self_ensemble=True
    )
    added = restored - image(12, 12, 3, dtype=np.float32)
    np.testing.assert_allclose(added.mean(), 0.5, atol=1e-6)
    for turned in (added[::-1], added[:, ::-1], added.swapaxes(0, 1)):
        np.testing.assert_allclose(added, turned, atol=1e-6)


def test_progress_counts_the_tiles():
    calls: list[tuple[int, int]] = []
    options = {"tile": 96, "overlap": 32, "statistics": "tile"}
    restore(FakeNetwork(), image(96, 200, 3), **options, progress=lambda *counts: calls.append(counts))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_restoring_is_deterministic_and_uses_no_random_numbers():
    model, before = network(), torch.get_rng_state()
    first = restore(model, image(100, 131, 3), tile=96, overlap=32)
    np.testing.assert_array_equal(first, restore(model, image(100, 131, 3), tile=96, overlap=32))
    assert torch.equal(before, torch.get_rng_state())


class TestRefused:
    image: ClassVar = image(8, 9, 3, dtype=np.float32)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_an_image_that_is_not_finite(self, bad):
        with pytest.raises(ValueError, match="image has NaN"):
            restore(FakeNetwork(), np.where(self.image > 0.5, np.float32(bad), self.image))

    def test_a_network_that_diverged(self):
        with pytest.raises(ValueError, match="network gave NaN"):
            restore(FakeNetwork(lambda degraded: degraded / 0), self.image)

    @pytest.mark.parametrize("dtype", [np.float64, np.int64, bool])
    def test_other_types(self, dtype):
        with pytest.raises(ValueError, match=r"uint8, uint16, or float32"):
            restore(FakeNetwork(), self.image.astype(dtype))

    @pytest.mark.parametrize(
        ("array", "precision", "message"),
        [
            (torch.zeros(8, 9, 3), "float32", "is a Tensor; give a NumPy array"),
            (np.zeros(12, np.uint8), "float32", r"shape \(12,\)"),
            (image, "float16", "precision: must be one of float32, bfloat16"),
        ],
    )
    def test_other_arguments_than_the_annotations_allow(self, array, precision, message):
        with pytest.raises(ValueError, match=message):
            inspect.unwrap(_check)(FakeNetwork(), array, None, 64, precision)

    @pytest.mark.parametrize("shape", [(0, 5, 3), (5, 5, 5), (4, 4, 0), (2, 8, 8, 3)])
    def test_other_shapes(self, shape):
        with pytest.raises(ValueError, match="shape"):
            restore(FakeNetwork(), np.zeros(shape, np.uint8))

    @pytest.mark.parametrize(
        "options",
        [{"tile": 64}, {"tile": 96, "overlap": 40}, {"tile": 100, "overlap": 32}, {"overlap": 0}, {"tile": -1}],
    )
    def test_tiles_that_cannot_be_joined(self, options):
        with pytest.raises(ValueError, match="multiples of 32"):
            restore(FakeNetwork(), self.image, **options)

    def test_a_network_of_two_channels(self):
        with pytest.raises(ValueError, match="2 channels"):
            restore(FakeNetwork(image_channels=2), self.image)


def test_the_package_exports_the_function():
    assert dgunet.restore is restore


def test_bfloat16_is_close_to_float32_and_not_the_default():
    original, model = image(40, 48, 3, dtype=np.float32), network()
    exact, fast = restore(model, original), restore(model, original, precision="bfloat16")
    assert np.array_equal(exact, to_array(model(to_tensor(original))[-1].detach()))
    assert 0 < np.abs(fast - exact).max() < 0.05


@pytest.mark.gpu
def test_gpu_and_cpu_give_the_same_result():
    original = image(100, 131, 3, dtype=np.float32)
    on_cpu = restore(network(), original)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        assert np.abs(restore(network(), original, device="cuda") - on_cpu).max() < 1e-3
    assert np.abs(restore(network(), original, device="cuda", precision="bfloat16") - on_cpu).max() < 0.1
