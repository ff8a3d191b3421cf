"""Building blocks, subspace projection, inter-stage fusion and stage end, each against its equation."""

import pytest
import torch
from torch.nn import functional

from dgunet.network.blocks import ChannelAttention, ConvBlock, HalfInstanceNorm
from dgunet.network.fusion import SUBSPACE_RANK, GatedFusion, PlainFusion, SubspaceProjection, project
from dgunet.network.proximal import StageEnd


def random_normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_half_instance_norm_normalises_the_first_half_of_the_channels_only():
    norm = HalfInstanceNorm(8)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    torch.nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(2))
    features = random_normal(2, 8, 12, 10)
    mean = features.mean(dim=(2, 3), keepdim=True)
    variance = features.var(dim=(2, 3), correction=0, keepdim=True)
    expected = (features - mean) / (variance + 1e-5).sqrt()
    expected = expected[:, :4] * norm.weight[:, None, None] + norm.bias[:, None, None]
    for layout in (torch.contiguous_format, torch.channels_last):
        normalised = norm(features.contiguous(memory_format=layout))
        torch.testing.assert_close(normalised[:, :4], expected, atol=1e-5, rtol=0)
        assert torch.equal(normalised[:, 4:], features[:, 4:])


def test_half_instance_norm_is_exact_for_a_mean_far_above_the_deviation():
    features = (1 + 0.01 * random_normal(1, 4, 128, 128)).contiguous(memory_format=torch.channels_last)
    exact = functional.instance_norm(features[:, :2].double(), eps=1e-5)
    torch.testing.assert_close(HalfInstanceNorm(4)(features)[:, :2].double(), exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_instance_norm_keeps_dtype_and_memory_format(autocast):
    features = random_normal(2, 6, 8, 8).to(
        torch.bfloat16 if autocast else torch.float32, memory_format=torch.channels_last
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        normalised = HalfInstanceNorm(6)(features)
    assert normalised.dtype == features.dtype
    assert normalised.is_contiguous(memory_format=torch.channels_last)


def test_conv_block_with_zero_second_convolution_is_its_shortcut():
    block = ConvBlock(4, 6, norm=True)
    with torch.no_grad():
        block.conv2.weight.zero_()
        block.conv2.bias.zero_()
    features = random_normal(1, 4, 8, 8)
    torch.testing.assert_close(block(features), block.shortcut(features))


def test_channel_attention_multiplies_the_residual_by_the_gate():
    attention = ChannelAttention(8)
    with torch.no_grad():
        attention.excite.weight.zero_()  # gate = sigmoid(0)
        features = random_normal(2, 8, 6, 5)
        residual = attention.conv2(attention.activation(attention.conv1(features)))
        torch.testing.assert_close(attention(features), features + residual / 2)


def basis_and_features():
    return random_normal(2, SUBSPACE_RANK, 12, 10, seed=1), random_normal(2, 5, 12, 10, seed=2)


def test_projection_keeps_vectors_of_the_subspace_and_removes_orthogonal_ones():
    basis, features = basis_and_features()
    inside = torch.einsum("brhw,nr->bnhw", basis, random_normal(5, SUBSPACE_RANK))
    torch.testing.assert_close(project(inside, basis), inside, atol=1e-4, rtol=0)
    outside = features - project(features, basis)
    assert project(outside, basis).abs().max() < 1e-4


def test_projection_is_idempotent_and_independent_of_the_scale_of_the_basis():
    basis, features = basis_and_features()
    once = project(features, basis)
    torch.testing.assert_close(project(once, basis), once, atol=1e-4, rtol=0)
    torch.testing.assert_close(project(features, 1e3 * basis), once, atol=1e-4, rtol=0)


def test_projection_equals_least_squares():
    basis, features = basis_and_features()
    rows, columns = basis.double().flatten(2).transpose(1, 2), features.double().flatten(2).transpose(1, 2)
    expected = (rows @ torch.linalg.lstsq(rows, columns).solution).transpose(1, 2).reshape(features.shape)
    torch.testing.assert_close(project(features, basis).double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("fault", ["zero", "equal rows", "one zero row", "two equal rows"])
@pytest.mark.parametrize("size", [(12, 10), (1, 2), (256, 256)])
def test_a_singular_basis_gives_finite_values_and_gradients(fault, size):
    basis, features = random_normal(1, SUBSPACE_RANK, *size), random_normal(1, 4, *size, seed=3).requires_grad_()
    if fault == "zero":
        basis.zero_()
    elif fault == "equal rows":
        basis[:] = basis[:, :1]
    elif fault == "one zero row":
        basis[:, 3] = 0
    else:
        basis[:, 3] = basis[:, 4]
    basis.requires_grad_()
    projected = project(features, basis)
    projected.square().mean().backward()
    for tensor in (projected, basis.grad, features.grad):
        assert tensor.isfinite().all()
    assert projected.norm() <= 1.001 * features.norm()


def test_projection_is_computed_in_float32_under_autocast():
    basis, features = basis_and_features()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(project(features, basis), project(features, basis))
        under = project(features, basis)
    assert under.dtype == torch.float32
    assert torch.equal(under, project(features, basis))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_projection_is_exact_when_float32_products_may_use_less_precision(precision):
    basis, features = basis_and_features()
    expected = project(features, basis)
    torch.set_float32_matmul_precision(precision)
    try:
        torch.testing.assert_close(project(features, basis), expected, atol=1e-5, rtol=0)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_subspace_projection_follows_its_equation():
    merge = SubspaceProjection(4)
    features, previous = random_normal(2, 4, 8, 8), random_normal(2, 4, 8, 8, seed=1)
    basis = merge.basis(torch.cat([features, previous], dim=1))
    expected = features + merge.conv(torch.cat([features, project(previous, basis)], dim=1))
    torch.testing.assert_close(merge(features, previous), expected)


def test_plain_and_gated_fusion_follow_their_equations():
    features, encoder, decoder = (
        random_normal(1, 6, 8, 8),
        random_normal(1, 6, 8, 8, seed=1),
        random_normal(1, 4, 8, 8, seed=2),
    )
    plain, gated = PlainFusion(6, 4), GatedFusion(6, 4)
    summed = plain.from_encoder(encoder) + plain.from_decoder(decoder)
    torch.testing.assert_close(plain(features, plain.mixed(encoder, decoder)), features + summed)
    mixed = functional.leaky_relu(gated.from_encoder(encoder) + gated.from_decoder(decoder), 0.1)
    expected = features * gated.gate(mixed).sigmoid() + gated.shift(mixed) + features
    torch.testing.assert_close(gated(features, gated.mixed(encoder, decoder)), expected)


def test_gated_stage_end_uses_the_new_estimate_for_its_gate():
    end = StageEnd(1, 4, gated=True)
    gradient_step, features = random_normal(1, 1, 8, 8), random_normal(1, 4, 8, 8, seed=1)
    estimate, output = end(gradient_step, features)
    torch.testing.assert_close(estimate, gradient_step + end.correct(features))
    torch.testing.assert_close(output, features + end.attend(features) * end.gate(estimate).sigmoid())
