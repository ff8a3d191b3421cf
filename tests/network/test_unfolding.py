"""The whole network: sizes, gradients, refused inputs, sensing, padding and memory, for every family."""

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from dgunet import DGUNet, DGUNetConfig
from dgunet.config import BLOCK_SIZE
from dgunet.network import Measurements
from dgunet.network.gradient import GradientDescentModule, SensingMatrix
from dgunet.network.unfolding import LastStage, pad

SMALL = {"width": 8, "growth": 4, "head_growth": 4, "num_stages": 4}
KINDS = {
    "blind shared": DGUNetConfig(**SMALL),
    "blind separate": DGUNetConfig(**SMALL, share_stages=False),
    "sensing shared": DGUNetConfig(**SMALL, image_channels=1, sensing_ratio_percent=10),
    "sensing separate": DGUNetConfig(**SMALL, image_channels=1, sensing_ratio_percent=4, share_stages=False),
    "sensing by block": DGUNetConfig(**SMALL, image_channels=1, sensing_ratio_percent=10, full_image=False),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def network(request):
    return DGUNet.with_seed(request.param, 0)


def images(network, batch, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, network.config.image_channels, height, width, generator=generator)


def restored(network, image):
    return network(network.sense(image) if network.sensing is not None else image)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (5, 3), (8, 8), (31, 33), (64, 32)])
def test_every_stage_returns_an_estimate_of_the_size_of_the_input(network, size):
    with torch.inference_mode():
        image = images(network, 2, *size)
        estimates = restored(network, image)
    assert len(estimates) == network.config.num_stages
    assert all(estimate.shape == image.shape for estimate in estimates)
    assert all(estimate.isfinite().all() for estimate in estimates)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("content", ["zero", "constant", "random"])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (32, 40)])
def test_every_parameter_has_a_finite_gradient_for_any_image(network, content, size, autocast):
    image = images(network, 1, *size)
    if content != "random":
        image = torch.full_like(image, 0.0 if content == "zero" else 0.7)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        estimates = restored(network, image)
    assert all(estimate.isfinite().all() for estimate in estimates)
    sum(estimate.float().square().mean() for estimate in estimates).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_influences_the_loss(kind):
    network = DGUNet.with_seed(
        replace(KINDS[kind], width=32), 0
    )  # wide enough that the attention's ReLU is not 0 everywhere
    image = images(network, 2, 32, 64)
    sum((estimate - image).abs().mean() for estimate in restored(network, image)).backward()
    assert [name for name, parameter in network.named_parameters() if not parameter.grad.any()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_a_batch_do_not_influence_each_other(kind):
    network = DGUNet(KINDS[kind]).eval()
    image = images(network, 3, 40, 33)
    with torch.inference_mode():
        together = restored(network, image)[-1]
        alone = torch.cat([restored(network, one)[-1] for one in image.split(1)])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)


def test_training_and_evaluation_mode_give_the_same_estimates(network):
    image = images(network, 1, 24, 24)
    with torch.inference_mode():
        torch.testing.assert_close(restored(network.train(), image), restored(network.eval(), image), atol=0, rtol=0)


def test_the_input_is_not_changed(network):
    image = images(network, 1, 32, 32)
    before = image.clone()
    with torch.inference_mode():
        restored(network, image)
    assert torch.equal(image, before)


def test_a_network_with_zero_corrections_returns_its_input():
    network = DGUNet(KINDS["blind shared"])
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, GradientDescentModule):
                module.step_size.zero_()
        for stage in (network.first, *network.between):
            stage.proximal.end.correct.weight.zero_()
        network.last.tail.weight.zero_()
        image = images(network, 1, 17, 9)
        for estimate in network(image):
            torch.testing.assert_close(estimate, image, atol=0, rtol=0)


def test_shared_stages_are_one_module_and_separate_ones_are_not():
    shared, separate = DGUNet(KINDS["blind shared"]), DGUNet(KINDS["blind separate"])
    assert [len({id(stage) for stage in network.stages()}) for network in (shared, separate)] == [3, 4]
    assert [len(list(network.stages())) for network in (shared, separate)] == [4, 4]
    assert isinstance(list(shared.stages())[-1], LastStage)


@pytest.mark.parametrize(("num_stages", "share_stages"), [(2, True), (2, False), (3, True), (9, True)])
def test_any_number_of_stages_from_two(num_stages, share_stages):
    network = DGUNet(DGUNetConfig(width=4, growth=0, num_stages=num_stages, share_stages=share_stages))
    estimates = network(torch.rand(1, 3, 16, 16))
    assert len(estimates) == num_stages
    sum(estimate.sum() for estimate in estimates).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ({}, 3_633_118),  # published: 3,661,912 with 28,800 that are never used, but 6 slopes fewer, which it shares
        ({"width": 16, "growth": 8, "num_stages": 3}, 607_390),
        ({"width": 16, "growth": 8, "num_stages": 3, "share_stages": False}, 606_990),
    ],
)
def test_number_of_parameters(sizes, count):
    with torch.device("meta"):
        network = DGUNet(DGUNetConfig(**sizes))
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_channels", 0),
        ("width", 3),
        ("growth", -1),
        ("head_growth", 1.5),
        ("num_stages", 1),
        ("num_stages", True),
        ("share_stages", 1),
        ("sensing_ratio_percent", 0),
        ("sensing_ratio_percent", 101.0),
        ("sensing_ratio_percent", "10"),
        ("full_image", False),
    ],
)
def test_an_invalid_field_is_named(field, value):
    config = replace(DGUNetConfig(), image_channels=1)
    object.__setattr__(config, field, value)  # avoids the check of types, as a config.json does
    with pytest.raises(ValueError, match=f"^{field}: "):
        config.__post_init__()


def test_sensing_of_three_channels_is_refused():
    with pytest.raises(ValueError, match=r"image_channels: .* 1 channel \(luma\)"):
        DGUNetConfig(sensing_ratio_percent=25)


def test_an_input_that_the_network_cannot_restore_is_refused():
    blind, sensing = DGUNet(KINDS["blind shared"]), DGUNet(KINDS["sensing shared"])
    image = torch.rand(1, 1, 32, 32)
    with pytest.raises(ValueError, match="images of 3 channels, but got 1"):
        blind(image)
    with pytest.raises(ValueError, match="got the measurements"):
        blind(sensing.sense(image))
    with pytest.raises(ValueError, match=r"model\.sense"):
        sensing(image)
    with pytest.raises(ValueError, match="103 measurements per block, but got 7"):
        sensing(Measurements(torch.rand(1, 7, 1, 1), 32, 32))
    with pytest.raises(ValueError, match="no sensing matrix"):
        blind.sense(image)


@pytest.mark.parametrize(("percent", "count"), [(1, 11), (4, 41), (10, 103), (25, 256), (50, 512), (100, 1024)])
def test_number_of_measurements_is_the_ratio_rounded_up(percent, count):
    assert DGUNetConfig(image_channels=1, sensing_ratio_percent=percent).num_measurements == count
    exact = 100 * count / 1024
    assert DGUNetConfig(image_channels=1, sensing_ratio_percent=exact).num_measurements == count


def test_sensing_is_one_matrix_product_per_block_with_its_adjoint():
    sensing = SensingMatrix(7)
    image, values = torch.rand(2, 1, 64, 96), torch.rand(2, 7, 2, 3)
    measured = sensing.degrade(image)
    block = image[1, 0, 32:64, 64:96].reshape(-1)
    torch.testing.assert_close(measured[1, :, 1, 2], sensing.matrix @ block, atol=1e-5, rtol=0)
    products = (measured * values).sum(), (image * sensing.adjoint(values)).sum()
    torch.testing.assert_close(*products, atol=1e-3, rtol=1e-5)


def test_a_gradient_step_leaves_a_perfect_estimate_unchanged():
    step, sensing = GradientDescentModule(1, learned_degradation=False), SensingMatrix(20)
    image = torch.rand(1, 1, 64, 32)
    torch.testing.assert_close(step(image, sensing.degrade(image), sensing), image, atol=1e-6, rtol=0)


def test_a_blockwise_network_restores_each_block_separately():
    network = DGUNet(KINDS["sensing by block"])
    image = images(network, 2, 64, 96)
    with torch.inference_mode():
        whole = restored(network, image)[-1]
        corner = restored(network, image[:, :, 32:64, 64:96])[-1]
        other = restored(DGUNet(replace(network.config, full_image=True)).eval(), image)[-1]
    torch.testing.assert_close(whole[:, :, 32:64, 64:96], corner, atol=1e-5, rtol=0)
    assert not torch.allclose(whole, other)


def test_measurements_hold_the_size_of_the_image():
    network = DGUNet(KINDS["sensing shared"])
    measured = network.sense(torch.rand(2, 1, 33, 20))
    assert (measured.values.shape, measured.height, measured.width) == ((2, 103, 2, 1), 33, 20)


@pytest.mark.parametrize(
    ("size", "padded"), [((1, 1), (8, 16)), ((8, 8), (8, 16)), ((16, 8), (16, 8)), ((17, 9), (24, 16))]
)
def test_padding_is_at_bottom_and_right_and_gives_the_bottom_level_two_pixels(size, padded):
    image = torch.rand(1, 3, *size)
    grown = pad(image, 8)
    assert tuple(grown.shape[2:]) == padded
    assert torch.equal(grown[:, :, : size[0], : size[1]], image)


def test_padding_reflects_or_replicates_short_sides():
    image = torch.rand(1, 3, 20, 20)
    grown = pad(image, BLOCK_SIZE)
    assert torch.equal(grown[:, :, :20, 20:], image[:, :, :, 7:19].flip(3))
    assert torch.equal(pad(image[:, :, :, :1], 8)[:, :, :20], image[:, :, :, :1].expand(-1, -1, -1, 8))


def test_a_deep_copy_shares_no_weights(network):
    image = images(network, 1, 16, 16)
    twin = copy.deepcopy(network)
    with torch.inference_mode():
        before = restored(network, image)[-1]
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(restored(network, image)[-1], before)


COMPILE = """
import torch
from dgunet import DGUNet, DGUNetConfig
sizes = {"width": 8, "growth": 4, "num_stages": 3}
sensing = {"image_channels": 1, "sensing_ratio_percent": 10, "full_image": False}
for kind in ({}, {"share_stages": False}, sensing):
    network = DGUNet(DGUNetConfig(**sizes, **kind))
    def restored(image):
        return network(network.sense(image) if network.sensing is not None else image)
    image = torch.rand(1, network.config.image_channels, 32, 40)
    estimates = torch.compile(restored, backend="aot_eager", fullgraph=True)(image)
    sum(estimate.sum() for estimate in estimates).backward()
    torch.testing.assert_close(estimates, restored(image))
"""


@pytest.mark.slow
def test_the_network_compiles_as_one_graph():
    # In a process of its own: the shape checks that pytest turns on are not for the compiler.
    subprocess.run([sys.executable, "-c", COMPILE], check=True)


@pytest.mark.slow
def test_a_small_network_overfits_one_pair():
    network = DGUNet.with_seed(DGUNetConfig(width=8, growth=4, num_stages=3), 0)
    sampled = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 4, 4, generator=sampled)
    clean = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 1)
    degraded = clean + 0.2 * torch.randn(clean.shape, generator=sampled)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(150):
        optimiser.zero_grad()
        sum((estimate - clean).square().mean() for estimate in network(degraded)).backward()
        optimiser.step()
    with torch.inference_mode():
        error = (network(degraded)[-1] - clean).square().mean()
    assert error < 0.05 * (degraded - clean).square().mean()


@pytest.mark.parametrize("count", [1, 11, 256, 1024])
def test_initial_sensing_matrix_is_orthonormal_and_keeps_the_energy_of_smooth_images(count):
    sensing = SensingMatrix(count)
    torch.testing.assert_close(sensing.matrix @ sensing.matrix.T, torch.eye(count), atol=1e-5, rtol=0)
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    smooth = (0.5 + 0.2 * rows - 0.1 * columns**2)[None, None]
    share = sensing.degrade(smooth).square().sum() / smooth.square().sum()
    assert share > (0.95 if count == 1 else 0.999)


def test_a_new_network_starts_at_the_degraded_image_or_the_back_projection():
    image = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(DGUNet.with_seed(DGUNetConfig(width=16), 0)(image)[-1], image, atol=0.03, rtol=0)
        network = DGUNet.with_seed(DGUNetConfig(image_channels=1, width=16, sensing_ratio_percent=25), 0)
        measured = network.sense(image[:, :1])
        linear = network.sensing.adjoint(measured.values)[:, :, :40, :48]
        for estimate in network(measured):
            torch.testing.assert_close(estimate, linear, atol=0.03, rtol=0)


def test_recompute_stores_less_and_gives_the_same_gradients(network):
    def saved_for_backward(recompute):
        """Bytes that autograd saves for the backward pass, and the gradients."""
        network.recompute = recompute
        stored = {}

        def pack(tensor):
            stored[tensor.data_ptr()] = tensor.nbytes
            return tensor

        clean = torch.rand(1, network.config.image_channels, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            estimates = network(clean if network.sensing is None else network.sense(clean))
            total = sum(stored.values())
        gradients = torch.autograd.grad(sum(e.square().sum() for e in estimates), list(network.parameters()))
        return total, gradients

    all_bytes, gradients = saved_for_backward(False)
    fewer_bytes, recomputed = saved_for_backward(True)
    assert fewer_bytes < all_bytes / 2
    assert all(torch.equal(a, b) for a, b in zip(gradients, recomputed, strict=True))
